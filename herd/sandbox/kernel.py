"""System calls that Python has no function for: mounts, namespaces, capabilities, Landlock.

Every call either succeeds or raises OSError with its name, so that a failed layer of isolation cannot go unnoticed.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)

NEWNS, NEWCGROUP, NEWUTS, NEWIPC = 0x20000, 0x02000000, 0x04000000, 0x08000000
NEWUSER, NEWPID, NEWNET = 0x10000000, 0x20000000, 0x40000000
NAMESPACES = NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWPID | NEWNET
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 8, 0x1000, 0x4000, 0x40000
_MNT_DETACH = 2
_PDEATHSIG, _DUMPABLE, _SUBREAPER, _NO_NEW_PRIVS, _BOUNDING_DROP, _SECCOMP = 1, 4, 36, 38, 24, 22
_CALLS = {"pivot_root": (155, 41), "capset": (126, 91), "unshare": (272, 97)}
_SAME_EVERYWHERE = {
    "mount_setattr": 442,
    "landlock_create_ruleset": 444,
    "landlock_add_rule": 445,
    "landlock_restrict_self": 446,
}
_AT_RECURSIVE, _AT_FDCWD = 0x8000, -100


def supported() -> bool:
    """Whether this is Linux on an architecture with known system call numbers (x86-64, arm64)."""
    return platform.system() == "Linux" and platform.machine() in ("x86_64", "aarch64")


def call(name: str, *arguments: object) -> int:
    """Make a system call by name; raises OSError."""
    number = _SAME_EVERYWHERE.get(name) or _CALLS[name][platform.machine() == "aarch64"]
    wide = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    return _checked(_libc.syscall(ctypes.c_long(number), *wide), name)


def mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """mount(2)."""
    words = [word.encode() if word is not None else None for word in (source, target, kind)]
    data = options.encode() if options else None
    _checked(_libc.mount(words[0], words[1], words[2], ctypes.c_ulong(flags), data), f"mount {target}")


def restrict_mount(path: str, flags: int, *, recursive: bool) -> None:
    """Add MS_RDONLY, MS_NOSUID, MS_NODEV to a mount (and those below it), and keep its other flags.

    mount(2) with MS_REMOUNT would remove other flags, and would not change the mounts below.
    """
    attributes = ctypes.create_string_buffer(struct.pack("=QQQQ", flags, 0, 0, 0))
    call("mount_setattr", _AT_FDCWD, path.encode(), _AT_RECURSIVE if recursive else 0, attributes, 32)


def unmount(path: str) -> None:
    """Detach a mount: it is invisible at once, and unmounted when no longer in use."""
    _checked(_libc.umount2(path.encode(), _MNT_DETACH), "umount2")


def unshare(flags: int) -> None:
    """Move into new namespaces of the given kinds."""
    call("unshare", flags)


def die_with_parent() -> None:
    """Let the kernel kill this process when its parent ends."""
    _prctl(_PDEATHSIG, 9)


def undumpable() -> None:
    """Forbid other processes of the same user to trace this one or open its /proc/PID/mem."""
    _prctl(_DUMPABLE, 0)


def dumpable() -> None:
    """Undo `undumpable`, as needed for writing one's own uid_map."""
    _prctl(_DUMPABLE, 1)


def adopt_orphans() -> None:
    """Become the parent of descendants whose parent ends, instead of init."""
    _prctl(_SUBREAPER, 1)


def no_new_privileges() -> None:
    """Ignore setuid bits and file capabilities in all programs started from here."""
    _prctl(_NO_NEW_PRIVS, 1)


def drop_capabilities() -> None:
    """Drop all capabilities, and the bounding set if permitted."""
    for number in range(64):
        if _libc.prctl(_BOUNDING_DROP, number, 0, 0, 0) != 0:
            break  # EINVAL: there are no more; EPERM: there were none
    header = ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0))
    call("capset", header, ctypes.create_string_buffer(24))


def install_filter(program: bytes) -> None:
    """Install a seccomp filter; needs `no_new_privileges` first."""
    code = ctypes.create_string_buffer(program, len(program))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    filled = Program(len(program) // 8, ctypes.addressof(code))
    _checked(_libc.prctl(_SECCOMP, 2, ctypes.byref(filled), 0, 0), "seccomp")


def pivot(root: str) -> None:
    """Make `root` the root of this mount namespace; the old one becomes inaccessible."""
    os.chdir(root)
    call("pivot_root", b".", b".")
    unmount(".")
    os.chdir("/")


# ---- Landlock --------------------------------------------------------------------------------------------------------

_FS_BY_ABI = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
_ON_FILES = 0b1 | 0b10 | 0b100 | 1 << 14 | 1 << 15  # the rights that a rule for a file may carry
READ = 0b1 | 0b100 | 0b1000  # execute, read files, list directories
_IOCTL_DEVICE = 1 << 15


def landlock_abi() -> int:
    """Landlock's ABI version in this kernel; 0 if there is none."""
    try:
        return call("landlock_create_ruleset", 0, 0, 1)
    except OSError:
        return 0


def landlock(readable: list[str], writable: list[str]) -> None:
    """Restrict this process and its children to these paths, without TCP, or signals and abstract sockets to others."""
    abi = landlock_abi()
    everything = sum(bits for since, bits in _FS_BY_ABI.items() if abi >= since)
    network = 0b11 if abi >= 4 else 0
    scopes = 0b11 if abi >= 6 else 0
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    ruleset = ctypes.create_string_buffer(struct.pack("=QQQ", everything, network, scopes))
    handle = call("landlock_create_ruleset", ruleset, size, 0)
    for paths, rights in ((readable, READ), (writable, everything & ~_IOCTL_DEVICE)):
        for path in filter(os.path.exists, paths):
            _landlock_rule(handle, Path(path), rights & everything)
    call("landlock_restrict_self", handle, 0)
    os.close(handle)


def _landlock_rule(handle: int, path: Path, rights: int) -> None:
    opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    allowed = rights if path.is_dir() else rights & _ON_FILES
    rule = ctypes.create_string_buffer(struct.pack("=Qi", allowed, opened))
    call("landlock_add_rule", handle, 1, rule, 0)
    os.close(opened)


def _prctl(option: int, value: int) -> None:
    _checked(_libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0), f"prctl {option}")


def _checked(result: int, name: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result
