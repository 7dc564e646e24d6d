"""scripts/asan_report.py: what counts, and what does not."""

import runpy
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "asan_report.py"
LEAKS = """
==1==ERROR: LeakSanitizer: detected memory leaks

Direct leak of 12 byte(s) in 1 object(s) allocated from:
    #0 0x7 in __interceptor_malloc ../asan_malloc_linux.cpp:69
    #1 0x7 in __pyx_f_take_buffer _ext/datapath.c:15290

Direct leak of 34 byte(s) in 1 object(s) allocated from:
    #0 0x7 in __interceptor_malloc ../asan_malloc_linux.cpp:69
    #1 0x7 (/lib/x86_64-linux-gnu/libffi.so.8+0x6f79)

SUMMARY: AddressSanitizer: 46 byte(s) leaked in 2 allocation(s).
"""


def test_what_is_ours_counts(tmp_path: Path) -> None:
    script = runpy.run_path(str(SCRIPT))
    (leak,) = script["findings"](LEAKS)
    assert leak.startswith("Direct leak of 12")
    for text in (
        "==1==ERROR: AddressSanitizer: heap-buffer-overflow on",
        "x.c:1:2: runtime error: y",
    ):
        assert script["findings"](text) == [text]
    assert script["main"](tmp_path) == 0
    (tmp_path / "asan.1").write_text(LEAKS)
    assert script["main"](tmp_path) == 1
