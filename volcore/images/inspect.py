"""Inspection: an image file is looked at here, by our own code, before anything else opens it.

Two opinions must agree: oslo.utils' format inspector, which finds the format and knows the tricks
of the trade, and the checks of this room, which follow what the reader will do with the file. What
is not understood is refused. See docs/images.md for the list.
"""

import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

from volcore.errors import PreconditionError, Reason
from volcore.images import qcow2_format, refusals, vdi_format, vmdk_format
from volcore.images.fileio import read_at, size_of
from volcore.limits import BLOCK_SIZE_BYTES, KIB, MIB

try:
    from oslo_utils.imageutils import format_inspector
except ImportError as err:
    raise PreconditionError(
        "oslo.utils is too old to inspect images, as it is beside an OpenStack before 2025.1: give"
        " the server an environment of its own, or pip install 'oslo.utils[image-inspection]>=10'",
        reason=Reason.TOOL_MISSING,
    ) from err

FORMATS: Final = ("raw", "qcow2", "vmdk", "vdi", "vhdx")
"""What is accepted."""
HEAD_BYTES: Final = 1 * MIB
"""How much of a file `detect` wants to see; fewer only when the file is shorter."""

_STEP_BYTES: Final = 4 * KIB
_DETECT_BYTES: Final = 128 * KIB
_FOOTER_BYTES: Final = 1536
_VMDK_HEAD_BYTES: Final = MIB + 512
_VHDX_HEAD_BYTES: Final = 64 * MIB
"""Where the metadata of a VHDX file must have been found."""
_RAW_WORDS: Final = frozenset({"raw", "gpt"})
"""A disk with a partition table, GPT or MBR, is raw: nobody here interprets its content."""
_PACKED: Final = {
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"PK\x03\x04": "zip",
}
_MAGICS: Final = {
    (0, b"QFI\xfb"): "qcow2",
    (0, b"KDMV"): "vmdk",
    (0, b"vhdxfile"): "vhdx",
    (0x40, b"\x7f\x10\xda\xbe"): "vdi",
    (0, b"LUKS\xba\xbe"): "luks",
    (0, b"QED\0"): "qed",
}
_DESCRIPTOR: Final = re.compile(rb"^\s*createtype\s*=", re.IGNORECASE | re.MULTILINE)
"""A text that QEMU may take as a VMDK descriptor."""
_FOREIGN: Final = {
    b"COWD": "an old VMware sparse file",
    b"WithoutFreeSpace": "a Parallels file",
    b"WithouFreSpacExt": "a Parallels file",
    b"conectix": "a vhd file",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFacts:
    """What a safe image file is."""

    format_name: str
    """One of FORMATS."""
    virtual_size_bytes: int
    """Size of the disk, rounded up to whole blocks; the rest reads as zeroes."""
    file_size_bytes: int


def inspect(file: BinaryIO, *, expected_format: str = "") -> ImageFacts:
    """Look at an opened regular file; read it through this same descriptor afterwards.

    *Complexity*: headers and first-level tables only. The file position stays.

    Args:
        file: opened for reading, seekable.
        expected_format: what the caller says it is; empty to find out.

    Raises:
        InvalidArgumentError: IMAGE_FORMAT_UNKNOWN, IMAGE_FORMAT_MISMATCH, IMAGE_UNSAFE,
            IMAGE_CORRUPT.
        OutOfRangeError: SIZE_NOT_ALLOWED.
    """
    file_size_bytes = size_of(file)
    format_name = detect(read_at(file, 0, HEAD_BYTES), expected_format=expected_format)
    if format_name == "raw":
        size_bytes = file_size_bytes
    else:
        size_bytes = _CHECKS[format_name](file, file_size_bytes)
        _check_by_oslo(file, format_name, file_size_bytes)
    refusals.check_virtual_size(size_bytes)
    return ImageFacts(
        format_name=format_name,
        virtual_size_bytes=-(-size_bytes // BLOCK_SIZE_BYTES) * BLOCK_SIZE_BYTES,
        file_size_bytes=file_size_bytes,
    )


def detect(head: bytes, *, expected_format: str = "") -> str:
    """Return the format, one of FORMATS, from the first HEAD_BYTES of a file.

    Nothing is said about safety yet: only `raw` may be used without `inspect`.

    Raises:
        InvalidArgumentError: IMAGE_FORMAT_UNKNOWN, IMAGE_FORMAT_MISMATCH, IMAGE_UNSAFE.
    """
    if expected_format and expected_format not in FORMATS:
        raise refusals.unknown(
            f"{expected_format[:20]!r} is no accepted format; give one of {', '.join(FORMATS)}"
        )
    words = _words(head)
    if len(words) > 1:
        raise refusals.unsafe(
            f"the file looks like several formats at once ({', '.join(sorted(words))}); convert it "
            "to qcow2 with qemu-img convert"
        )
    (found,) = words
    if found in _RAW_WORDS:
        return _raw_or_foreign(head, expected_format)
    if found == "luks":
        raise refusals.unsafe("the file is encrypted with LUKS; decrypt it first")
    if expected_format and found != expected_format:
        raise refusals.mismatch(expected=expected_format, found=found)
    if found not in FORMATS:
        raise refusals.unknown(
            f"the file is in the format {found}, which is not accepted; convert it to qcow2 with "
            "qemu-img convert -O qcow2"
        )
    return found


def _raw_or_foreign(head: bytes, expected_format: str) -> str:
    """Return raw, unless the bytes say something else that the inspector does not know."""
    for magic, name in _FOREIGN.items():
        if head.startswith(magic):
            raise refusals.unknown(
                f"the file is {name}, which is not accepted; convert it to qcow2 with qemu-img "
                "convert -O qcow2"
            )
    if expected_format not in ("", "raw"):
        raise refusals.mismatch(expected=expected_format, found="raw")
    if not expected_format:
        for magic, name in _PACKED.items():
            if head.startswith(magic):
                raise refusals.unknown(
                    f"the file is packed with {name}; unpack it first, or declare it as raw if "
                    "these are the bytes of the disk"
                )
    return "raw"


def _words(head: bytes) -> set[str]:
    """Return the names of all formats that the inspector sees; `raw` stands alone."""
    wrapper = format_inspector.InspectWrapper(io.BytesIO(head[:_DETECT_BYTES]))
    while wrapper.read(_STEP_BYTES):
        pass
    wrapper.close()
    words = {str(found) for found in wrapper.formats or ()}
    if words <= _RAW_WORDS:
        words = {_cut_short(head)} - {""} or words
    return words


def _cut_short(head: bytes) -> str:
    """Return the format of a file that the inspector finds too short or too odd to name."""
    for (start, magic), name in _MAGICS.items():
        if head[start : start + len(magic)] == magic:
            return name
    return "vmdk" if _DESCRIPTOR.search(head[:_DETECT_BYTES].split(b"\0")[0]) else ""


def _check_by_oslo(file: BinaryIO, format_name: str, file_size_bytes: int) -> None:
    """Run the inspector's own safety checks on the parts of the file that it wants to see."""
    inspector = format_inspector.ALL_FORMATS[format_name]()
    try:
        for piece in _relevant(file, format_name, file_size_bytes):
            inspector.eat_chunk(piece)
            if inspector.complete:
                break
        inspector.finish()
        inspector.safety_check()
    except format_inspector.SafetyCheckFailed as err:
        found = "; ".join(str(failure) for failure in err.failures.values())
        raise refusals.unsafe(
            f"the {format_name} file is not safe to open ({found[:200]}); make a single plain file "
            "of it with qemu-img convert -O qcow2"
        ) from err
    except format_inspector.ImageFormatError as err:
        raise refusals.corrupt(
            f"the header of the {format_name} file is damaged or cut off; get the file again"
        ) from err
    except Exception as err:  # whatever a parser of hostile bytes stumbles over
        raise refusals.corrupt(
            f"the header of the {format_name} file makes no sense; get the file again"
        ) from err


def _relevant(file: BinaryIO, format_name: str, file_size_bytes: int) -> Iterator[bytes]:
    """Yield the head of the file in steps, and for VMDK its last bytes, which may be a footer."""
    limit = {"vmdk": _VMDK_HEAD_BYTES, "vhdx": _VHDX_HEAD_BYTES}.get(format_name, _STEP_BYTES)
    if format_name == "vmdk":
        limit = min(limit, max(0, file_size_bytes - _FOOTER_BYTES))
    for position in range(0, min(limit, file_size_bytes), _STEP_BYTES):
        yield read_at(file, position, min(_STEP_BYTES, limit - position))
    if format_name == "vmdk":
        start = max(limit, file_size_bytes - _FOOTER_BYTES)
        yield read_at(file, start, _FOOTER_BYTES)


def _qcow2_size(file: BinaryIO, file_size_bytes: int) -> int:
    header = qcow2_format.read_header(file)
    qcow2_format.read_l1(file, header, file_size_bytes)
    return header.size_bytes


def _vhdx_size(file: BinaryIO, file_size_bytes: int) -> int:
    """Return the size that the metadata states; the rest is left to the converter's checks."""
    inspector = format_inspector.ALL_FORMATS["vhdx"]()
    try:
        for piece in _relevant(file, "vhdx", file_size_bytes):
            inspector.eat_chunk(piece)
            if inspector.complete and inspector.virtual_size:
                break
        size_bytes: int = inspector.virtual_size
    except Exception as err:  # see _check_by_oslo
        raise refusals.corrupt(
            "the header of the vhdx file makes no sense; get the file again"
        ) from err
    return size_bytes


_CHECKS: Final[dict[str, Callable[[BinaryIO, int], int]]] = {
    "qcow2": _qcow2_size,
    "vmdk": vmdk_format.check,
    "vdi": vdi_format.check,
    "vhdx": _vhdx_size,
}
