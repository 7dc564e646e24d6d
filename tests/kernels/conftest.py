"""Every test that takes a kernel runs on the compiled code and on its oracle.

`crc32c` also runs once per implementation of the compiled code. `VOLCORE_TEST_REQUIRE_NATIVE=1`
turns the skip of a missing compiled kernel into a failure.
"""

import os
from importlib import import_module

import pytest

from volcore.kernels import select


def native(name):
    try:
        return import_module(f"volcore.kernels._native.{name}")
    except ImportError as err:
        if os.environ.get("VOLCORE_TEST_REQUIRE_NATIVE"):
            raise
        pytest.skip(f"compiled kernels are not built: {err}")


def oracle(name):
    return import_module(f"volcore.kernels.pure.{name}")


def crc32c_rows():
    try:
        names = import_module("volcore.kernels._native.crc32c").implementations()
    except ImportError:
        names = ["native"]
    return ["pure", *names]


@pytest.fixture(params=crc32c_rows())
def crc32c(request):
    if request.param == "pure":
        yield oracle("crc32c")
        return
    kernel = native("crc32c")
    before = kernel.implementation()
    kernel.use_implementation(request.param)
    yield kernel
    kernel.use_implementation(before)


@pytest.fixture(params=[select.PURE, select.NATIVE])
def zero(request):
    return oracle("zero") if request.param == select.PURE else native("zero")


@pytest.fixture(params=[select.PURE, select.NATIVE])
def chunkmap(request):
    return oracle("chunkmap") if request.param == select.PURE else native("chunkmap")


@pytest.fixture(params=[select.PURE, select.NATIVE])
def mapscan(request):
    return oracle("mapscan") if request.param == select.PURE else native("mapscan")


@pytest.fixture(params=[select.PURE, select.NATIVE])
def extents(request):
    return oracle("extents") if request.param == select.PURE else native("extents")


@pytest.fixture(params=["crc32c", "zero", "chunkmap", "mapscan", "extents"])
def pair(request):
    """One kernel's name, compiled code and oracle."""
    return request.param, native(request.param), oracle(request.param)


def outcome(function, *args, **kwargs):
    """What a call gives: its result, or the class of its error."""
    try:
        return function(*args, **kwargs)
    except Exception as err:
        return type(err)
