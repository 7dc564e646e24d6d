"""The cage of the converting process: a program of its own that locks itself in, then runs a tool.

`python cage.py PLAN TOOL ARGUMENT...`, PLAN being JSON, see `Plan`. It stands alone (standard
library only) because it runs isolated, without site packages. Doing this in a process of our own,
and not between fork and exec of a server full of threads, is what makes it safe.

In this order: die with the parent, be polite, limit memory, CPU and files, lose root, then shut the
file system and the network (Landlock, Linux 5.13 and later): what remains is the image file,
inherited sockets, and the libraries of the tool. What the kernel does not offer is left out; the
inspection before is the first wall, this is the second.
"""

import ctypes
import json
import os
import resource
import signal
import stat
import sys
from typing import Any, TypedDict


class Plan(TypedDict):
    """What the cage shall allow."""

    parent: int
    """Process id of the server; the tool must not outlive it."""
    file: int
    """Descriptor of the image file, the only file that may be opened."""
    memory_bytes_max: int
    cpu_s_max: int


_NICE = 10
_FILES_MAX = 256
_NOBODY = 65534
_PR_SET_PDEATHSIG = 1
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITIES_MAX = 63

_LANDLOCK_CREATE = 444
_LANDLOCK_ADD = 445
_LANDLOCK_RESTRICT = 446
_LANDLOCK_VERSION = 1
_RULE_PATH_BENEATH = 1
_EXECUTE = 1 << 0
_READ_FILE = 1 << 2
_READ_DIR = 1 << 3
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
"""How many rights on files each version knows; from version 5 on, 16."""
_FILE_RIGHTS_NEWEST = 16
_NETWORK_SINCE = 4
_SCOPES_SINCE = 6
_LIBRARIES = ("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/dev/null", "/dev/urandom")


def main(arguments: list[str]) -> None:
    """Lock in, then become the tool."""
    plan: Plan = json.loads(arguments[0])
    tool = arguments[1:]
    libc = ctypes.CDLL(None, use_errno=True)
    _die_with(libc, plan["parent"])
    os.nice(_NICE)
    limits = (
        (resource.RLIMIT_AS, plan["memory_bytes_max"]),
        (resource.RLIMIT_CPU, plan["cpu_s_max"]),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, _FILES_MAX),
    )
    for kind, bound in limits:
        _, hard = resource.getrlimit(kind)
        if hard != resource.RLIM_INFINITY:
            bound = min(bound, hard)
        resource.setrlimit(kind, (bound, bound))
    _lose_root(libc, plan["file"])
    _die_with(libc, plan["parent"])  # a change of user forgets it
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _shut(libc, plan["file"], tool[0])
    os.execve(tool[0], tool, {"PATH": "/usr/bin:/bin", "LC_ALL": "C"})  # noqa: S606 - the purpose


def _die_with(libc: Any, parent: int) -> None:
    """Ask the kernel to kill us when the parent goes, and go if it is gone already."""
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def _lose_root(libc: Any, file: int) -> None:
    """Become nobody where nobody may read the file; otherwise keep the user, but no capability."""
    if os.geteuid() != 0:
        return
    for capability in range(_CAPABILITIES_MAX + 1):
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    os.setgroups([])
    if os.fstat(file).st_mode & stat.S_IROTH:
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)


def _shut(libc: Any, file: int, tool: str) -> None:
    """Allow the image file and the tool's libraries for reading; no other file, no network."""
    version = libc.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), _LANDLOCK_VERSION)
    if version < 1:
        return
    file_rights = (1 << _FILE_RIGHTS.get(version, _FILE_RIGHTS_NEWEST)) - 1
    words = [file_rights]
    if version >= _NETWORK_SINCE:
        words.append(0b11)
    if version >= _SCOPES_SINCE:
        words.append(0b11)
    attributes = (ctypes.c_uint64 * len(words))(*words)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    rules = libc.syscall(_LANDLOCK_CREATE, attributes, size, 0)
    if rules < 0:
        return
    _allow(libc, rules, file, _READ_FILE)
    for path in (*_LIBRARIES, os.path.dirname(tool)):
        try:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        rights = _READ_FILE
        if stat.S_ISDIR(os.fstat(place).st_mode):
            rights |= _EXECUTE | _READ_DIR
        _allow(libc, rules, place, rights)
    libc.syscall(_LANDLOCK_RESTRICT, rules, 0)
    os.close(rules)


def _allow(libc: Any, rules: int, place: int, rights: int) -> None:
    """Add a rule: struct landlock_path_beneath_attr is 12 bytes, packed."""
    rule = rights.to_bytes(8, sys.byteorder) + place.to_bytes(4, sys.byteorder, signed=True)
    libc.syscall(_LANDLOCK_ADD, rules, _RULE_PATH_BENEATH, ctypes.c_char_p(rule), 0)


if __name__ == "__main__":
    main(sys.argv[1:])
