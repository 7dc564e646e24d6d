"""Import: the content of an inspected image file into a blank device, and its digest.

Raw and qcow2 are read by this room (`raw_reader`, `qcow2_reader`) in one pass that reads, hashes
and writes several chunks at once. Other formats, and qcow2 with zstd, go through `qemu`; their
digest is computed from the device afterwards. Why so: docs/design/0004-import.md.
"""

from typing import BinaryIO

from volcore.backends.contract import BlockDevice, Progress
from volcore.images import chunks, hashing, qemu, refusals
from volcore.images.inspect import ImageFacts
from volcore.images.qcow2_format import read_header
from volcore.images.qcow2_reader import Qcow2Source
from volcore.images.raw_reader import RawSource


def convert_into(
    file: BinaryIO, facts: ImageFacts, device: BlockDevice, *, progress: Progress
) -> str:
    """Write the content into the device, zeroes left out, flush, and return the content digest.

    *Precondition*: `facts` is what `inspect` said about this very descriptor; the device is blank
    (reads as zeroes) and has `facts.virtual_size_bytes`. *Durability*: all is flushed at return.
    After an error the device holds a part and is good for nothing. *Concurrency*: `progress` is
    called in the calling thread, at least every quarter second unless storage hangs.

    Raises:
        InvalidArgumentError: IMAGE_CORRUPT, found only while reading.
        PreconditionError: TOOL_MISSING.
        ExhaustedError: POOL_FULL.
        CancelledError: raised by `progress`; no thread and no process of this call is left.
    """
    assert device.size_bytes == facts.virtual_size_bytes, "the device was made for this image"
    if not needs_tool(file, facts):
        return read_into(file, facts, device, progress=progress)
    half = device.size_bytes // 2
    qemu.convert(file, facts.format_name, device, lambda done, total: progress(done // 2, total))
    return hashing.digest_device(device, lambda done, total: progress(half + done // 2, total))


def read_into(file: BinaryIO, facts: ImageFacts, device: BlockDevice, *, progress: Progress) -> str:
    """Do what `convert_into` does, without a tool whatever the file says by now."""
    return chunks.store(open_source(file, facts), device, progress)


def open_source(file: BinaryIO, facts: ImageFacts) -> RawSource | Qcow2Source:
    """Return the chunks of a file that needed no tool when it was inspected.

    Raises:
        InvalidArgumentError: IMAGE_CORRUPT, the file is another one by now.
    """
    reader = RawSource if facts.format_name == "raw" else Qcow2Source
    source = reader(file, facts.file_size_bytes)
    if source.size_bytes != facts.virtual_size_bytes:
        raise refusals.changed(facts.format_name)
    return source


def needs_tool(file: BinaryIO, facts: ImageFacts) -> bool:
    """Say whether `qemu-img` must read this file, because this room does not."""
    if facts.format_name == "qcow2":
        return not read_header(file).zlib
    return facts.format_name != "raw"
