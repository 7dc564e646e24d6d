# Every target sets up what it needs; `make help` lists them.
# demo: BACKEND=local|rbd, IMAGE=path of a disk image. test: TESTS="words for pytest". bench, bench-local,
# bench-openstack: BENCH="words". asan: ASAN="words for scripts/asan". soak: SOAK="words for scripts/soak".
.DEFAULT_GOAL := help
.PHONY: help demo test test-openstack test-pacemaker lint types protos asan build bench bench-local bench-openstack soak docs clean
MAKEFLAGS += --no-print-directory
unexport PYTHONHOME PYTHONPATH
export PYTHONNOUSERSITE := 1

BACKEND ?= local
IMAGE ?=
TESTS ?=
BENCH ?=
ASAN ?= fuzz --seconds 300
SOAK ?=
PYTHON := .venv/bin/python
DEMO_SETUP := $(if $(filter rbd,$(BACKEND)),demo-rbd,demo)
$(if $(filter local rbd,$(BACKEND)),,$(error BACKEND is local or rbd, not '$(BACKEND)'))

help: ## show this list
	@sed -n "s,^\([a-z-]*\): *\#\# ,\1\t,p" Makefile | awk -F"\t" "{printf \"  make %-14s %s\\n\", \$$1, \$$2}"

demo: ## golden image to booted VM, for real (BACKEND=local|rbd IMAGE=path)
	@scripts/setup $(DEMO_SETUP)
	@$(PYTHON) scripts/demo.py --backend $(BACKEND) $(if $(IMAGE),--image '$(IMAGE)')

test: ## lint, types, proto lint and all tests, live Ceph included (TESTS="...")
	@scripts/setup test
	@scripts/test $(TESTS)

test-openstack: ## real Cinder services with the driver, live Ceph included (TESTS="...")
	@scripts/setup openstack
	@$(PYTHON) -m pytest tests/openstack $(TESTS)

test-pacemaker: ## failover of a server and its address, real Pacemaker and Corosync, five minutes
	@scripts/setup pacemaker
	@$(PYTHON) -m pytest tests/pacemaker -s $(TESTS)

lint: ## ruff, codespell and buf
	@scripts/setup dev
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/codespell
	@scripts/protolint

types: ## mypy, strict
	@scripts/setup dev
	@.venv/bin/mypy

protos: ## regenerate volcore/v1 from proto/
	@scripts/setup dev
	@scripts/protos

asan: ## NBD fuzzer for 5 minutes under AddressSanitizer (ASAN="fuzz --seconds 60")
	@scripts/setup dev
	@scripts/asan $(ASAN)

build: ## sdist, and the wheel built from it, in dist/
	@scripts/setup dev
	@scripts/build

bench: ## volumes on Ceph against their bars and rivals, 15 minutes (BENCH="clone scaling")
	@scripts/setup bench
	@$(PYTHON) -m benchmarks $(BENCH)

bench-local: ## the embedded backend against its bars and rivals, ten minutes (BENCH="clone fio")
	@scripts/setup bench
	@$(PYTHON) -m benchmarks.local $(BENCH)

bench-openstack: ## Cinder with our driver against the stock RBD driver, ten minutes (BENCH="driver api")
	@scripts/setup openstack
	@scripts/setup bench
	@$(PYTHON) -m benchmarks openstack $(BENCH)

soak: ## long crash tests: power cuts, corruptions, kill -9 under load, rbd (SOAK="--seconds 60 load")
	@scripts/setup test
	@scripts/soak $(SOAK)

docs: ## regenerate the pages that come from code
	@scripts/setup dev
	@$(PYTHON) scripts/docs.py

clean: ## delete what was built, the virtual environment and the caches
	rm -rf build dist *.egg-info .cache .venv .venv-openstack .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find volcore tests benchmarks scripts \( -name __pycache__ -o -name '*.so' \) -exec rm -rf {} +
	find _ext -name '*.c' ! -name '*_impl.c' -delete
