"""A fuzzer of the NBD server: hostile and honest clients together, against a real process.

`python -m nbd.fuzz --seconds 300` in `tests/`, or `scripts/asan fuzz` with the compiled modules
under AddressSanitizer. Deterministic it is not, as threads and sockets are in it; each session has
a seed of its own that `--seed` and the session's name bring back.
"""
