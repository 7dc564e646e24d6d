"""What buf does not know: units in names, error tables, generated code that is up to date."""

import re
import subprocess
import sysconfig

import pytest
from google.protobuf import descriptor_pb2

from .sources import GENERATED, ROOT

INTEGERS = {
    descriptor_pb2.FieldDescriptorProto.Type.Value(f"TYPE_{name}")
    for name in ("INT32", "INT64", "UINT32", "UINT64", "SINT32", "SINT64", "FIXED32", "FIXED64")
}
PAGE_SIZE = "page_size"  # a count, so named by aip.dev


@pytest.fixture(scope="module")
def protos(tmp_path_factory):
    """The descriptors of proto/volcore/v1, comments kept."""
    output = tmp_path_factory.mktemp("protos") / "all.binpb"
    sources = sorted(str(p.relative_to(ROOT / "proto")) for p in (ROOT / "proto").rglob("*.proto"))
    subprocess.run(
        [
            ROOT / ".venv/bin/python", "-m", "grpc_tools.protoc", "-I", "proto",
            "-I", sysconfig.get_paths()["purelib"], "--include_source_info",
            f"--descriptor_set_out={output}", *sources,
        ],
        cwd=ROOT, check=True,
    )  # fmt: skip
    return descriptor_pb2.FileDescriptorSet.FromString(output.read_bytes()).file


def comments(proto):
    """Leading comment by path of descriptor numbers."""
    return {tuple(place.path): place.leading_comments for place in proto.source_code_info.location}


def fields(protos):
    """(where, field, comment) of every field of every message."""
    for proto in protos:
        said = comments(proto)
        for m, message in enumerate(proto.message_type):
            for f, field in enumerate(message.field):
                yield f"{message.name}.{field.name}", field, said.get((4, m, 2, f), "")


def test_every_call_names_its_errors(protos):
    """Goal: a caller knows what can happen. Method: each rpc comment ends with its error table."""
    bare = [
        f"{service.name}.{method.name}"
        for proto in protos
        for s, service in enumerate(proto.service)
        for r, method in enumerate(service.method)
        if not re.search(r"\n\s*\n Errors: [A-Z_]{5,}", comments(proto).get((6, s, 2, r), ""))
    ]
    assert not bare, f"no 'Errors:' in the comment of {bare}"


def test_byte_counts_say_so(protos):
    """Goal: units in names. Method: an integer called size, or said to be bytes, ends in _bytes."""
    wrong = []
    for where, field, comment in fields(protos):
        if field.type not in INTEGERS or field.name == PAGE_SIZE or field.name.endswith("_bytes"):
            continue
        if re.search(r"(^|_)(size|length|offset)(_|$)", field.name) or re.search(
            r"\bbytes?\b", comment, re.IGNORECASE
        ):
            wrong.append(where)
    assert not wrong, f"counts of bytes whose names do not end in _bytes: {wrong}"


def test_byte_counts_are_integers(protos):
    """Goal: `_bytes` means a number. Method: look at the type of every such field."""
    wrong = [
        w
        for w, field, _ in fields(protos)
        if field.name.endswith("_bytes") and field.type not in INTEGERS
    ]
    assert not wrong, wrong


def test_request_fields_say_whether_they_are_required(protos):
    """Goal: nobody has to guess. Method: fields of requests say REQUIRED or OPTIONAL.

    Members of a oneof are told by the oneof.
    """
    silent = [
        where
        for where, field, comment in fields(protos)
        if where.split(".")[0].endswith("Request")
        and not field.HasField("oneof_index")
        and "REQUIRED" not in comment
        and "OPTIONAL" not in comment
        and where not in {"DeployVolumesRequest.volume_ids", "DeployVolumesRequest.name_prefix",
                          "DeployVolumesRequest.count"}  # a choice, told in the comments
    ]  # fmt: skip
    assert not silent, silent


def test_generated_code(tmp_path):
    """Goal: volcore/v1 is what proto/ says. Method: generate again beside it and compare."""
    subprocess.run([ROOT / "scripts" / "protos", tmp_path], cwd=ROOT, check=True)
    fresh = {path.name: path.read_text() for path in (tmp_path / "volcore" / "v1").iterdir()}
    ours = {path.name: path.read_text() for path in GENERATED.iterdir() if path.is_file()}
    assert fresh.keys() == ours.keys(), "run 'make protos'"
    stale = [name for name in fresh if fresh[name] != ours[name]]
    assert not stale, f"run 'make protos': {stale} are stale"


def test_floors():
    """Goal: no environment gets a runtime that the generated code refuses. Method: compare."""
    text = (ROOT / "pyproject.toml").read_text()
    code = (GENERATED / "volume_pb2.py").read_text()
    made_by = re.search(r"Domain\.PUBLIC,\s+(\d+),\s+(\d+),\s+(\d+)", code)
    assert made_by is not None
    assert f'"protobuf>={".".join(made_by.groups())}"' in text
    made_by = re.search(
        r"GRPC_GENERATED_VERSION = '([\d.]+)'",
        (GENERATED / "volume_service_pb2_grpc.py").read_text(),
    )
    assert made_by is not None
    assert f'"grpcio>={made_by[1]}"' in text
