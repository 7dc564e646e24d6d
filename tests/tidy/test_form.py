"""Sizes, names and the few words that belong to one file only."""

import ast
import re

import pytest

from .sources import ROOT, attributes, files, module_name, project_files, shown, tree

LINES_MAX = {"volcore": 500, "scripts": 500, "benchmarks": 500, "tests": 700}
INIT_LINES_MAX = 40
PYX_LINES_MAX = 350
FUNCTION_LINES_MAX = 70
EXCUSE = "Why so long:"
BANNED = {"util", "utils", "helper", "helpers", "manager", "managers", "misc"}

MODULES = files("volcore", "scripts", "benchmarks", "tests", suffix=".py")
SHIPPED = [path for path in MODULES if path.relative_to(ROOT).parts[0] == "volcore"]
# Test equipment may touch Ceph and the environment by itself.
SERVICE = [path for path in SHIPPED if "testing" not in path.relative_to(ROOT).parts]

# Exceptions of the bindings that do not end in Error.
CEPH_EXCEPTIONS = {
    "ConnectionShutdown", "DiskQuotaExceeded", "FunctionNotSupported", "ImageBusy", "ImageExists",
    "ImageHasSnapshots", "ImageMemberOf", "ImageNotFound", "InvalidArgument",
    "NoData", "ObjectBusy", "ObjectExists", "ObjectNotFound", "ObjectStateError",
    "OperationCanceled", "OperationNotSupported", "ReadOnlyImage", "TimedOut", "Timeout",
    "ArgumentOutOfRange", "InProgress",
}  # fmt: skip


def line_count(path):
    return len(path.read_text().splitlines())


def words(name):
    """`VolumeManager` and `volume_manager` are volume and manager."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])", name)}


@pytest.mark.parametrize("path", MODULES, ids=shown)
def test_module_size(path):
    """Goal: modules that fit a head. Method: count lines, unless the docstring gives a reason."""
    limit = LINES_MAX[path.relative_to(ROOT).parts[0]]
    if path.name == "__init__.py":
        limit = INIT_LINES_MAX
    excused = EXCUSE in (ast.get_docstring(tree(path)) or "")
    assert excused or line_count(path) <= limit, (
        f"{shown(path)} has {line_count(path)} lines, the limit is {limit}: split it, or say "
        f"'{EXCUSE}' in its docstring"
    )


@pytest.mark.parametrize("path", files("_ext", suffix=".pyx"), ids=shown)
def test_kernel_size(path):
    """Goal: one kernel, one job. Method: count lines."""
    assert line_count(path) <= PYX_LINES_MAX


@pytest.mark.parametrize("path", MODULES, ids=shown)
def test_function_length(path):
    """Goal: functions that fit a screen. Method: count their lines without the docstring."""
    long = []
    for node in ast.walk(tree(path)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        start = node.lineno
        if ast.get_docstring(node) is not None:
            start = node.body[0].end_lineno
        count = node.end_lineno - start + 1
        if count > FUNCTION_LINES_MAX:
            long.append(f"{shown(path, node.lineno)}: {node.name} has {count} lines")
    assert not long, "\n".join(long)


@pytest.mark.parametrize("path", MODULES, ids=shown)
def test_names(path):
    """Goal: names that say something. Method: look at module and class names word by word."""
    stem = path.parent.name if path.name == "__init__.py" else path.stem
    classes = [node.name for node in ast.walk(tree(path)) if isinstance(node, ast.ClassDef)]
    banned = [name for name in [stem, *classes] if words(name) & BANNED]
    assert not banned, f"{shown(path)}: {banned} say nothing about what is in there"


@pytest.mark.parametrize("path", SHIPPED, ids=shown)
def test_status_codes_are_in_one_place(path):
    """Goal: one translator between errors and gRPC. Method: look for StatusCode."""
    if module_name(path) == "volcore.wire.status":
        return
    uses = [line for line, name in attributes(path, "grpc") if name == "StatusCode"]
    assert not uses, f"{shown(path)}: grpc.StatusCode in lines {uses}; use volcore.wire.status"


@pytest.mark.parametrize("path", SERVICE, ids=shown)
def test_ceph_exceptions_are_in_one_place(path):
    """Goal: one translator of Ceph's errors. Method: look for exception classes of the bindings."""
    if module_name(path) == "volcore.backends.rbd.errmap":
        return
    uses = [
        f"{shown(path, line)}: {owner}.{name}"
        for owner in ("rbd", "rados")
        for line, name in attributes(path, owner)
        if name.endswith("Error") or name in CEPH_EXCEPTIONS
    ]
    assert not uses, "\n".join(["use volcore/backends/rbd/errmap.py instead of:", *uses])


@pytest.mark.parametrize("path", SERVICE, ids=shown)
def test_environment_is_read_in_one_place(path):
    """Goal: settings come from config. Method: look for os.environ and os.getenv.

    The kernels are chosen at import, before there is any configuration, and so is what grpc does at
    a fork.
    """
    if module_name(path) in {"volcore.config", "volcore.kernels.select", "volcore.cinder"}:
        return
    uses = [
        line for line, name in attributes(path, "os") if name in {"environ", "environb", "getenv"}
    ]
    assert not uses, f"{shown(path)}: the environment is read in lines {uses}; use volcore.config"


def test_every_reason_is_used():
    """Goal: no reason that nothing ever gives. Method: look for each one outside of errors.py."""
    from volcore.errors import Reason

    text = "\n".join(path.read_text() for path in SHIPPED if path.name != "errors.py")
    unused = [reason for reason in Reason if not re.search(rf"\bReason\.{reason}\b", text)]
    assert not unused, f"nothing gives {unused}: use them or delete them"


def test_no_paths_of_one_machine():
    """Goal: nothing of the author's machine in the project. Method: search all text files."""
    pattern = re.compile(r"(?<![\w.:/-])/(?:work|root|home|Users)/[\w.-]+")
    found = []
    for path in project_files():
        try:
            lines = path.read_text().splitlines()
        except UnicodeDecodeError:
            continue
        found += [shown(path, n) for n, line in enumerate(lines, 1) if pattern.search(line)]
    assert not found, f"paths of one machine: {found}"
