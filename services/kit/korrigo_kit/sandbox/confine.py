"""Take away what a document's child does not need; called by the zygote and its children only.

Each step does what this kernel and container allow and says whether it held; nothing here makes a run fail
except a refused rlimit. `Sandbox.level()` shows what was achieved, measured in a trial child.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from korrigo_kit.sandbox.outcome import Limits

_libc = ctypes.CDLL(None, use_errno=True)

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_CLONE_NEWUSER = 0x1000_0000
_CLONE_NEWNET = 0x4000_0000
# Each child of a root owner gets a uid of its own, so that neighbours cannot signal or read each other.
# systemd hands the same range to its dynamic users; nothing on disk belongs to them.
_FIRST_UID = 61_184
_UIDS = 4_000

# Landlock (kernel 5.13, docs/userspace-api/landlock): syscalls and rights have the same numbers everywhere.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_RULE_PATH_BENEATH = 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIR, _REMOVE_FILE, _MAKE_DIR, _MAKE_REG = 1 << 4, 1 << 5, 1 << 7, 1 << 8
_REFER, _TRUNCATE = 1 << 13, 1 << 14
_READ = _READ_FILE | _READ_DIR
# Plain files and folders only: no link, device or pipe that the owner could stumble over.
_WORK = _READ | _WRITE_FILE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _REFER | _TRUNCATE
_RIGHTS_OF_ABI = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1}
_ALL_RIGHTS = (1 << 16) - 1
_ALL_TCP, _ALL_SCOPES = 0b11, 0b11
# Shared libraries, fonts and time zones that a library may open late; no user's data lies there.
_SYSTEM_FOLDERS = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/local/lib", "/usr/share", "/etc/fonts")
_SYSTEM_FILES = ("/etc/ld.so.cache", "/etc/localtime", "/dev/urandom", "/dev/zero")


def isolate_network() -> bool:
    """Move this process to an empty network namespace, by way of a user namespace when not root."""
    if _libc.unshare(_CLONE_NEWNET) == 0:
        return True
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0 or _libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
        return False
    with contextlib.suppress(OSError):  # without the maps we are "nobody" by name only; files stay ours
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    return True


def confine(workdir: int, number: int, limits: Limits, base_bytes: int, zygote: int) -> dict[str, bool | int]:
    """Confine this freshly forked child, whose current folder becomes `workdir` (a descriptor).

    `number` picks its uid, `base_bytes` is the address space of the zygote, `zygote` its pid.
    Returns the protections achieved.
    """
    os.fchdir(workdir)
    has_own_uid = _drop_root(workdir, number)
    _set_limits(limits, base_bytes)
    has_no_capabilities = _drop_capabilities()
    # After the drop, because a change of uid clears it.
    dies_with_zygote = _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0
    if os.getppid() != zygote:
        os._exit(1)
    no_new_privileges = _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    return {
        "own_uid": has_own_uid,
        "no_capabilities": has_no_capabilities,
        "dies_with_zygote": dies_with_zygote,
        "no_new_privileges": no_new_privileges,
        "landlock": _restrict_files(workdir) if no_new_privileges else 0,
    }


def _drop_root(workdir: int, number: int) -> bool:
    if os.geteuid() != 0:
        return False
    # A later run in the same folder goes on with the files of the first.
    owner = os.fstat(workdir).st_uid
    uid = owner if _FIRST_UID <= owner < _FIRST_UID + _UIDS else _FIRST_UID + number % _UIDS
    try:
        os.fchown(workdir, uid, uid)
        os.fchmod(workdir, 0o700)
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    except OSError:  # a container may be root without the capabilities of root
        return False
    return True


def _drop_capabilities() -> bool:
    # The user namespace of a non-root zygote, or a root that could not change its uid, still has some.
    header = (ctypes.c_uint32 * 2)(0x2008_0522, 0)
    return int(_libc.capset(header, (ctypes.c_uint32 * 6)())) == 0


def _set_limits(limits: Limits, base_bytes: int) -> None:
    bounds: Mapping[int, tuple[int, int]] = {
        resource.RLIMIT_AS: (base_bytes + limits.memory_bytes,) * 2,
        resource.RLIMIT_CPU: (limits.cpu_seconds, limits.cpu_seconds + 1),
        resource.RLIMIT_FSIZE: (limits.output_bytes,) * 2,
        resource.RLIMIT_NOFILE: (limits.open_files,) * 2,
        resource.RLIMIT_NPROC: (0, 0),
        resource.RLIMIT_CORE: (0, 0),
    }
    for kind, (soft, hard) in bounds.items():
        ceiling = resource.getrlimit(kind)[1]
        if ceiling != resource.RLIM_INFINITY:
            soft, hard = min(soft, ceiling), min(hard, ceiling)
        resource.setrlimit(kind, (soft, hard))


class _Ruleset(ctypes.Structure):
    _fields_ = (("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def _restrict_files(workdir: int) -> int:
    """Allow the workdir, and reading of the interpreter and the system's libraries; return Landlock's ABI or 0."""
    abi = int(_libc.syscall(_CREATE_RULESET, None, 0, 1))
    if abi <= 0:
        return 0
    handled = _RIGHTS_OF_ABI.get(abi, _ALL_RIGHTS)
    wanted = _Ruleset(handled, _ALL_TCP if abi >= 4 else 0, _ALL_SCOPES if abi >= 6 else 0)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    ruleset = int(_libc.syscall(_CREATE_RULESET, ctypes.byref(wanted), ctypes.c_size_t(size), 0))
    if ruleset < 0:
        return 0
    try:
        _allow(ruleset, workdir, _WORK & handled)
        for folder in {*_SYSTEM_FOLDERS, sys.prefix, sys.base_prefix, *filter(os.path.isdir, sys.path)}:
            _allow_path(ruleset, folder, _READ, os.O_DIRECTORY)
        for file in _SYSTEM_FILES:
            _allow_path(ruleset, file, _READ_FILE, 0)
        _allow_path(ruleset, "/dev/null", _READ_FILE | _WRITE_FILE, 0)
        return abi if _libc.syscall(_RESTRICT_SELF, ruleset, 0) == 0 else 0
    finally:
        os.close(ruleset)


def _allow_path(ruleset: int, path: str, rights: int, flags: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC | flags)
    except OSError:  # not there, or not for this uid
        return
    _allow(ruleset, descriptor, rights)
    os.close(descriptor)


def _allow(ruleset: int, descriptor: int, rights: int) -> None:
    rule = _PathBeneath(rights, descriptor)
    _libc.syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, ctypes.byref(rule), 0)
