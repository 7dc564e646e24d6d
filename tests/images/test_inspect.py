"""Inspection: every refusal by name, with files made by qemu-img and patched by hand."""

import os
import struct
import subprocess

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from volcore.backends.memory import MemoryBackend
from volcore.errors import Reason, VolcoreError
from volcore.images.convert import convert_into
from volcore.images.inspect import FORMATS, ImageFacts, detect, inspect
from volcore.limits import GIB, MIB, TIB

from .conftest import make_raw, qemu_img, silent

SECRET = "/etc/passwd"


def look(path, expected_format="") -> ImageFacts:
    with path.open("rb") as file:
        return inspect(file, expected_format=expected_format)


def refused(path, reason, *words, expected_format="") -> str:
    """Check class, reason, and that the one sentence says what is wrong and what to do."""
    with pytest.raises(VolcoreError) as caught:
        look(path, expected_format)
    error = caught.value
    assert error.reason is reason, error.message
    for word in words:
        assert word in error.message
    assert str(path) not in error.message
    assert "\n" not in error.message
    assert len(error.message) < 400
    return error.message


def patch(path, offset, data):
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.fixture
def qcow2(tmp_path):
    raw, path = tmp_path / "disk.raw", tmp_path / "disk.qcow2"
    make_raw(raw, 8 * MIB)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", raw, path)
    return path


@pytest.fixture(params=["vmdk", "vdi", "vhdx"])
def other(request, tmp_path):
    raw, path = tmp_path / "disk.raw", tmp_path / f"disk.{request.param}"
    make_raw(raw, 8 * MIB)
    qemu_img("convert", "-f", "raw", "-O", request.param, raw, path)
    return path


def vmdk(tmp_path, subformat):
    raw, path = tmp_path / "disk.raw", tmp_path / f"{subformat}.vmdk"
    make_raw(raw, 8 * MIB)
    qemu_img("convert", "-f", "raw", "-O", "vmdk", "-o", f"subformat={subformat}", raw, path)
    return path


def create_encrypted(*arguments):
    """qemu-img measures how fast it hashes, and gives up on a busy machine: try again."""
    for _ in range(20):
        try:
            return qemu_img("create", *arguments)
        except subprocess.CalledProcessError as err:
            if "accurate CPU usage" not in err.stderr:
                raise
    pytest.skip("too busy to make an encrypted image")


class TestNames:
    """What is what."""

    def test_facts(self, qcow2):
        assert look(qcow2) == look(qcow2, "qcow2")
        assert look(qcow2).virtual_size_bytes == 8 * MIB
        assert look(qcow2).file_size_bytes == qcow2.stat().st_size

    def test_the_file_position_stays(self, qcow2):
        with qcow2.open("rb") as file:
            file.seek(7)
            inspect(file)
            assert file.tell() == 7

    def test_declared_as_something_else(self, qcow2, tmp_path):
        for name in FORMATS:
            if name != "qcow2":
                refused(qcow2, Reason.IMAGE_FORMAT_MISMATCH, "qcow2", expected_format=name)
        raw = tmp_path / "disk.raw"
        for name in ("qcow2", "vmdk", "vdi", "vhdx"):
            refused(raw, Reason.IMAGE_FORMAT_MISMATCH, "raw", expected_format=name)
        assert look(raw, "raw").format_name == look(raw).format_name == "raw"

    def test_declared_as_what_nobody_knows(self, qcow2):
        refused(qcow2, Reason.IMAGE_FORMAT_UNKNOWN, "qcow2", expected_format="qed")

    def test_partition_tables_are_raw(self, tmp_path):
        path = tmp_path / "disk"
        path.write_bytes(bytes(MIB))
        entry = b"\x80\0\2\0\x83\0\0\0" + struct.pack("<II", 2048, 1000)
        patch(path, 446, entry)
        patch(path, 510, b"\x55\xaa")
        assert look(path).format_name == look(path, "raw").format_name == "raw"
        patch(path, 446, b"\x13")  # a boot flag that makes no sense is the guest's business
        assert look(path).format_name == "raw"

    def test_raw_is_rounded_up(self, tmp_path):
        path = tmp_path / "disk"
        path.write_bytes(b"x" * 5000)
        assert look(path).virtual_size_bytes == 8192

    @pytest.mark.parametrize("format_name", ["qed", "vpc"])
    def test_formats_that_are_not_accepted(self, format_name, tmp_path):
        path = tmp_path / "disk"
        qemu_img("create", "-f", format_name, path, "8M")
        refused(path, Reason.IMAGE_FORMAT_UNKNOWN, "qemu-img convert")
        refused(path, Reason.IMAGE_FORMAT_MISMATCH, expected_format="raw")

    def test_iso(self, tmp_path):
        path = tmp_path / "disk"
        path.write_bytes(bytes(32769) + b"CD001" + bytes(MIB))
        refused(path, Reason.IMAGE_FORMAT_UNKNOWN, "iso")
        refused(path, Reason.IMAGE_FORMAT_MISMATCH, "iso", expected_format="raw")

    def test_two_formats_at_once(self, qcow2):
        patch(qcow2, 32769, b"CD001")
        refused(qcow2, Reason.IMAGE_UNSAFE, "iso", "qcow2")
        refused(qcow2, Reason.IMAGE_UNSAFE, expected_format="qcow2")

    def test_packed_files(self, tmp_path):
        path = tmp_path / "disk.raw"
        path.write_bytes(os.urandom(4096))
        subprocess.run(["gzip", path], check=True)
        refused(tmp_path / "disk.raw.gz", Reason.IMAGE_FORMAT_UNKNOWN, "gzip", "unpack")
        assert look(tmp_path / "disk.raw.gz", "raw").format_name == "raw"

    def test_empty(self, tmp_path):
        path = tmp_path / "disk"
        path.touch()
        refused(path, Reason.SIZE_NOT_ALLOWED)


class TestQcow2:
    @pytest.mark.parametrize("backing", [SECRET, "base", "../" * 100 + "etc/passwd"])
    def test_backing_file(self, backing, tmp_path):
        path = tmp_path / "disk"
        qemu_img("create", "-f", "qcow2", "-u", "-b", backing, "-F", "raw", path, "8M")
        message = refused(path, Reason.IMAGE_UNSAFE, "backing file", "qemu-img convert")
        assert "passwd" not in message

    def test_backing_file_version_2(self, tmp_path):
        path = tmp_path / "disk"
        options = ("-o", "compat=0.10", "-u", "-b", SECRET, "-F", "raw")
        qemu_img("create", "-f", "qcow2", *options, path, "8M")
        refused(path, Reason.IMAGE_UNSAFE, "backing file")

    def test_backing_format_without_a_file(self, tmp_path):
        path = tmp_path / "disk"
        qemu_img("create", "-f", "qcow2", "-u", "-b", SECRET, "-F", "raw", path, "8M")
        patch(path, 8, bytes(12))
        refused(path, Reason.IMAGE_UNSAFE, "names another file")

    def test_external_data_file(self, tmp_path):
        path = tmp_path / "disk"
        options = f"data_file={tmp_path / 'data'},data_file_raw=on"
        qemu_img("create", "-f", "qcow2", "-o", options, path, "8M")
        refused(path, Reason.IMAGE_UNSAFE, "data")
        patch(path, 72, bytes(8))  # the bit is gone, the name is not
        refused(path, Reason.IMAGE_UNSAFE, "names another file")

    def test_encrypted(self, tmp_path):
        path = tmp_path / "disk"
        secret = "secret,id=s,data=geheim"
        options = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"
        create_encrypted("-f", "qcow2", "--object", secret, "-o", options, path, "8M")
        refused(path, Reason.IMAGE_UNSAFE, "encrypted", "LUKS")
        patch(path, 32, struct.pack(">I", 1))
        refused(path, Reason.IMAGE_UNSAFE, "AES")

    def test_luks_file(self, tmp_path):
        path = tmp_path / "disk"
        secret = "secret,id=s,data=geheim"
        options = "key-secret=s,iter-time=10"
        create_encrypted("-f", "luks", "--object", secret, "-o", options, path, "8M")
        refused(path, Reason.IMAGE_UNSAFE, "LUKS", "decrypt")
        refused(path, Reason.IMAGE_UNSAFE, "LUKS", expected_format="raw")

    @pytest.mark.parametrize("bit", [4, 5, 17, 63])
    def test_unknown_features(self, bit, qcow2):
        patch(qcow2, 72, struct.pack(">Q", 1 << bit))
        refused(qcow2, Reason.IMAGE_UNSAFE, "features")

    def test_marked_as_corrupt(self, qcow2):
        patch(qcow2, 72, struct.pack(">Q", 2))
        refused(qcow2, Reason.IMAGE_CORRUPT, "qemu-img check")

    def test_dirty_is_fine(self, qcow2):
        patch(qcow2, 72, struct.pack(">Q", 1))
        assert look(qcow2).format_name == "qcow2"

    def test_unknown_compression(self, qcow2):
        patch(qcow2, 72, struct.pack(">Q", 8))
        patch(qcow2, 104, b"\x07")
        refused(qcow2, Reason.IMAGE_UNSAFE, "compression")

    @pytest.mark.parametrize("version", [0, 1, 4, 2**32 - 1])
    def test_versions(self, version, qcow2):
        patch(qcow2, 4, struct.pack(">I", version))
        with pytest.raises(VolcoreError) as caught:
            look(qcow2)
        assert caught.value.reason in {Reason.IMAGE_FORMAT_UNKNOWN, Reason.IMAGE_UNSAFE}

    @pytest.mark.parametrize(
        "size_bytes", [0, 16 * TIB + 1, 2**63, 2**64 - 1], ids=["none", "more", "half", "all"]
    )
    def test_absurd_sizes(self, size_bytes, qcow2):
        patch(qcow2, 24, struct.pack(">Q", size_bytes))
        refused(qcow2, Reason.SIZE_NOT_ALLOWED, "16 TiB")

    def test_more_than_the_table_maps(self, qcow2):
        patch(qcow2, 24, struct.pack(">Q", 15 * TIB))
        refused(qcow2, Reason.IMAGE_CORRUPT)

    @pytest.mark.parametrize(
        ("offset", "data"),
        [
            (20, struct.pack(">I", 8)),
            (20, struct.pack(">I", 22)),
            (20, struct.pack(">I", 2**32 - 1)),
            (36, struct.pack(">I", 0)),
            (36, struct.pack(">I", 2**32 - 1)),
            (40, struct.pack(">Q", 0)),
            (40, struct.pack(">Q", 12345)),
            (40, struct.pack(">Q", 2**62)),
            (40, struct.pack(">Q", 2**64 - 65536)),
            (100, struct.pack(">I", 0)),
            (100, struct.pack(">I", 2**32 - 8)),
        ],
    )
    def test_numbers_that_make_no_sense(self, offset, data, qcow2):
        patch(qcow2, offset, data)
        refused(qcow2, Reason.IMAGE_CORRUPT)

    @pytest.mark.parametrize("size_bytes", [40, 72, 104, 300, 4096, 200_000])
    def test_truncated_tables(self, size_bytes, qcow2):
        os.truncate(qcow2, size_bytes)
        refused(qcow2, Reason.IMAGE_CORRUPT, "cut off")

    def test_truncated_data(self, qcow2):
        os.truncate(qcow2, qcow2.stat().st_size - 65536)
        with pytest.raises(VolcoreError, match="cut off") as caught:
            import_(qcow2)
        assert caught.value.reason is Reason.IMAGE_CORRUPT

    def test_one_cluster_for_everything(self, tmp_path):
        """A small file that claims a terabyte of data must not fill the pool."""
        path = tmp_path / "disk"
        qemu_img("create", "-f", "qcow2", path, "512M")
        run = ["qemu-io", "-f", "qcow2", "-c", "write 0 64k", path]
        subprocess.run(run, check=True, capture_output=True)
        with path.open("r+b") as file:
            data = file.read()
            (l1,) = struct.unpack_from(">Q", data, 40)
            (l2,) = struct.unpack_from(">Q", data, l1)
            l2 &= 0x00FF_FFFF_FFFF_FE00
            file.seek(l2)
            file.write(data[l2 : l2 + 8] * 8192)
        with pytest.raises(VolcoreError, match="more data than it holds") as caught:
            import_(path)
        assert caught.value.reason is Reason.IMAGE_CORRUPT

    def test_sparse_claims_cost_nothing(self, tmp_path):
        path = tmp_path / "disk"
        qemu_img("create", "-f", "qcow2", path, "15T")
        assert look(path).virtual_size_bytes == 15 * TIB

    def test_garbage_instead_of_compressed_data(self, tmp_path):
        raw, path = tmp_path / "disk.raw", tmp_path / "disk"
        raw.write_bytes(b"abc" * MIB)
        qemu_img("convert", "-f", "raw", "-c", "-O", "qcow2", raw, path)
        with path.open("r+b") as file:
            file.seek(5 * 65536)
            file.write(b"\xff" * (path.stat().st_size - 5 * 65536))
        with pytest.raises(VolcoreError, match="unpack") as caught:
            import_(path)
        assert caught.value.reason is Reason.IMAGE_CORRUPT


class TestVmdk:
    @pytest.mark.parametrize("subformat", ["monolithicFlat", "twoGbMaxExtentSparse",
                                           "twoGbMaxExtentFlat"])  # fmt: skip
    def test_descriptors_are_refused(self, subformat, tmp_path):
        refused(vmdk(tmp_path, subformat), Reason.IMAGE_UNSAFE, "qemu-img convert")

    @pytest.mark.parametrize("target", ["/dev/sda", SECRET, "../../secret", "plain.bin"])
    @pytest.mark.parametrize("create_type", ["monolithicFlat", "fullDevice", "monolithicSparse"])
    @pytest.mark.parametrize("kind", ["FLAT", "SPARSE"])
    def test_pointing_elsewhere(self, target, create_type, kind, tmp_path):
        path = tmp_path / "disk.vmdk"
        path.write_text(
            "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\n"
            f'createType="{create_type}"\nRW 2048 {kind} "{target}" 0\n'
        )
        refused(path, Reason.IMAGE_UNSAFE)
        refused(path, Reason.IMAGE_UNSAFE, expected_format="vmdk")

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            (b'createType="monolithicSparse"', b'createType="monolithicFlat"  '),
            (b"SPARSE", b"FLAT  "),
            (b'"monolithicSparse.vmdk"', b'"/etc/passwd"'),
            (b'"monolithicSparse.vmdk"', b'"../../../secret.vmdk"'),
            (b"RW ", b"XX "),
            (b"# Extent description", b'RW 1 FLAT "other" 0'),
            (b"# Extent description", b'RW 1 SPARSE "other"'),
            (b"# Extent description", b'parentFileNameHint="x"'),
            (b"# Extent description", b'#PARENTfilenamehint="x'),
        ],
    )
    def test_descriptors_inside(self, old, new, tmp_path):
        path = vmdk(tmp_path, "monolithicSparse")
        data = path.read_bytes()
        at = data.index(old)
        patch(path, at, new.ljust(len(old), b"\n"))
        refused(path, Reason.IMAGE_UNSAFE)

    def test_a_parent_behind_the_descriptor(self, tmp_path):
        path = vmdk(tmp_path, "monolithicSparse")
        patch(path, 28, struct.pack("<QQ", 1, 1))
        patch(path, 512 + 9 * 1024, b'parentFileNameHint="/etc/passwd"')
        refused(path, Reason.IMAGE_UNSAFE)

    def test_capacity_0_makes_the_descriptor_count(self, tmp_path):
        path = vmdk(tmp_path, "monolithicSparse")
        patch(path, 12, bytes(8))
        refused(path, Reason.SIZE_NOT_ALLOWED)

    @pytest.mark.parametrize("capacity", [2**40, 2**63, 2**64 - 1])
    def test_absurd_sizes(self, capacity, tmp_path):
        path = vmdk(tmp_path, "monolithicSparse")
        patch(path, 12, struct.pack("<Q", capacity))
        refused(path, Reason.SIZE_NOT_ALLOWED)

    @pytest.mark.parametrize("subformat", ["monolithicSparse", "streamOptimized"])
    def test_truncated(self, subformat, tmp_path):
        path = vmdk(tmp_path, subformat)
        os.truncate(path, path.stat().st_size - 66_000)
        with pytest.raises(VolcoreError) as caught:
            look(path)
        assert caught.value.reason in {Reason.IMAGE_CORRUPT, Reason.IMAGE_UNSAFE}

    def test_footer(self, tmp_path):
        """As streams have it: the header says that the directory stands in the footer."""
        path = vmdk(tmp_path, "streamOptimized")
        digest = import_(path)
        header = path.read_bytes()[:512]
        size_bytes = path.stat().st_size
        patch(path, 56, b"\xff" * 8)
        footer = struct.pack("<QII496x", 1, 0, 3) + header + bytes(512)
        patch(path, size_bytes, footer)
        assert import_(path) == digest
        patch(path, size_bytes + 512 + 12, struct.pack("<Q", 1))
        refused(path, Reason.IMAGE_UNSAFE, "footer")


class TestVdiAndVhdx:
    @pytest.mark.parametrize("offset", [0x1A8, 0x1B8])
    def test_vdi_parent(self, offset, tmp_path):
        path = tmp_path / "disk"
        qemu_img("create", "-f", "vdi", path, "8M")
        patch(path, offset, b"parent")
        refused(path, Reason.IMAGE_UNSAFE, "another file")

    @pytest.mark.parametrize(("kind", "offset"), [("vdi", 0x170)])
    @pytest.mark.parametrize("size_bytes", [0, 17 * TIB, 2**64 - 1])
    def test_absurd_sizes(self, kind, offset, size_bytes, tmp_path):
        path = tmp_path / "disk"
        qemu_img("create", "-f", kind, path, "8M")
        patch(path, offset, struct.pack("<Q", size_bytes))
        refused(path, Reason.SIZE_NOT_ALLOWED)

    def test_vhdx_without_metadata(self, tmp_path):
        path = tmp_path / "disk"
        path.write_bytes(b"vhdxfile" + bytes(MIB))
        with pytest.raises(VolcoreError) as caught:
            look(path)
        assert caught.value.reason is Reason.IMAGE_CORRUPT

    def test_truncated(self, other):
        os.truncate(other, other.stat().st_size // 2)
        with pytest.raises(VolcoreError) as caught:
            import_(other)
        assert caught.value.reason in {Reason.IMAGE_CORRUPT, Reason.IMAGE_UNSAFE}
        assert "/" not in caught.value.message


def import_(path):
    """Inspect and convert into memory."""
    with path.open("rb") as file:
        facts = inspect(file)
        backend = MemoryBackend()
        backend.create("v", facts.virtual_size_bytes)
        with backend.open_device("v", read_only=False) as device:
            return convert_into(file, facts, device, progress=silent)


FUZZ = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
EXPECTED = {
    Reason.IMAGE_CORRUPT,
    Reason.IMAGE_UNSAFE,
    Reason.IMAGE_FORMAT_UNKNOWN,
    Reason.IMAGE_FORMAT_MISMATCH,
    Reason.SIZE_NOT_ALLOWED,
}
PATCHES = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 127), st.integers(0, 1024), st.integers(0, 300_000)),
        st.one_of(
            st.binary(min_size=1, max_size=16),
            st.integers(0, 2**64 - 1).map(lambda n: struct.pack(">Q", n)),
            st.integers(0, 2**64 - 1).map(lambda n: struct.pack("<Q", n)),
            st.sampled_from([b"\0" * 8, b"\xff" * 8]),
        ),
    ),
    min_size=1,
    max_size=4,
)


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    place = tmp_path_factory.mktemp("samples")
    raw = place / "disk.raw"
    make_raw(raw, 3 * MIB, pieces=6)
    made = {}
    for name, options in {
        "qcow2": ("qcow2",), "qcow2c": ("qcow2", "-c"), "vmdk": ("vmdk",), "vdi": ("vdi",),
        "stream": ("vmdk", "-o", "subformat=streamOptimized"), "vhdx": ("vhdx",),
    }.items():  # fmt: skip
        qemu_img("convert", "-f", "raw", "-O", options[0], *options[1:], raw, place / name)
        made[name] = (place / name).read_bytes()
    return made


@pytest.mark.parametrize("name", ["qcow2", "qcow2c", "vmdk", "stream", "vdi", "vhdx"])
@given(patches=PATCHES, size_share=st.sampled_from([1, 1, 1, 0.9, 0.5]))
@FUZZ
def test_fuzz(name, patches, size_share, samples, tmp_path):
    """Goal: hostile bytes never surprise us. Method: patch headers; taxonomy errors only."""
    data = bytearray(samples[name])
    for offset, piece in patches:
        if offset + len(piece) <= len(data):
            data[offset : offset + len(piece)] = piece
    path = tmp_path / "fuzzed"
    path.write_bytes(data[: int(len(data) * size_share)])
    try:
        facts = look(path)
        if facts.format_name == "qcow2" and facts.virtual_size_bytes <= GIB:
            import_(path)
    except VolcoreError as err:
        if err.reason not in EXPECTED:
            raise


@given(head=st.binary(max_size=3000), expected=st.sampled_from(["", *FORMATS]))
@FUZZ
def test_fuzz_detect(head, expected):
    """Goal: any bytes have a format or a refusal."""
    try:
        assert detect(head, expected_format=expected) in FORMATS
    except VolcoreError as err:
        if err.reason not in EXPECTED:
            raise
