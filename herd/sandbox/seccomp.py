"""The filter on system calls, as a classic BPF program.

It is a list of refused calls, not of allowed ones: the runtimes of eight languages must work, kernels gain calls, and
there are also namespaces. It refuses calls that reach beyond the box (mounts, namespaces, other processes, kernel
modules, clocks), those used in container escapes (user namespaces, io_uring, bpf, keyrings), all sockets (AF_VSOCK and
AF_ALG ignore network namespaces), and memory that no limit covers (memfd, System V).
"""

from __future__ import annotations

import errno
import platform
import struct

_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x40000000  # the second ABI of x86-64: other numbers for the same calls

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_KILL, _ALLOW, _ERROR = 0x80000000, 0x7FFF0000, 0x00050000
_NEW_NAMESPACES = 0x7E020080  # every CLONE_NEW* bit of clone's flags
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C  # injecting input into the terminal of the calling user
_F_SETSIG = 10  # fcntl: could send SIGCONT on pipe activity, which would wake a frozen process

_REFUSED: dict[str, tuple[int | None, int | None]] = {  # x86-64, arm64
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "setns": (308, 268), "unshare": (272, 97), "kexec_load": (246, 104), "kexec_file_load": (320, 294),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "add_key": (248, 217), "request_key": (249, 218),
    "keyctl": (250, 219), "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "acct": (163, 89),
    "swapon": (167, 224), "swapoff": (168, 225), "reboot": (169, 142), "settimeofday": (164, 170),
    "clock_settime": (227, 112), "clock_adjtime": (305, 266), "adjtimex": (159, 171), "sethostname": (170, 161),
    "setdomainname": (171, 162), "iopl": (172, None), "ioperm": (173, None), "modify_ldt": (154, None),
    "quotactl": (179, 60), "syslog": (103, 116), "vhangup": (153, 58), "personality": (135, 92),
    "fanotify_init": (300, 262), "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180),
    "migrate_pages": (256, 238), "move_pages": (279, 239), "socket": (41, 198), "io_setup": (206, 0),
    "pidfd_send_signal": (424, 424), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440), "mount_setattr": (442, 442), "quotactl_fd": (443, 443), "statmount": (457, 457),
    "listmount": (458, 458), "open_tree_attr": (467, 467),
}  # fmt: skip

_NOT_THERE: dict[str, tuple[int | None, int | None]] = {  # answered with ENOSYS: runtimes fall back to older calls
    "clone3": (435, 435),  # its flags are in memory, which a filter cannot read
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "memfd_create": (319, 279), "memfd_secret": (447, 447),
    "timer_create": (222, 107),  # its signal may be SIGCONT, which would wake a frozen process
}  # fmt: skip

_OWN_ONLY: dict[str, tuple[int, int, int]] = {  # calls on other processes; the last is the argument's index
    "prlimit64": (302, 261, 0), "sched_setaffinity": (203, 122, 0), "sched_setparam": (142, 118, 0),
    "sched_setscheduler": (144, 119, 0), "sched_setattr": (314, 274, 0), "setpriority": (141, 140, 1),
    "ioprio_set": (251, 30, 1),
}  # fmt: skip


def program(machine: str | None = None) -> bytes:
    """The filter for this machine, as `sock_filter` structures of eight bytes."""
    machine = machine or platform.machine()
    at = list(_ARCHITECTURE).index(machine)
    refuse, missing = _ERROR | errno.EPERM, _ERROR | errno.ENOSYS
    lines = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, _ARCHITECTURE[machine]), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    if machine == "x86_64":
        lines += [(_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _KILL)]
    for table, answer in ((_REFUSED, refuse), (_NOT_THERE, missing)):
        for numbers in table.values():
            if (number := numbers[at]) is not None:
                lines += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, answer)]
    for *own, argument in _OWN_ONLY.values():
        lines += _on_argument(own[at], argument, (_EQUAL, 1, 0, 0), refuse)
    lines += _on_argument((56, 220)[at], 0, (_ANY_BIT, 0, 1, _NEW_NAMESPACES), refuse)
    for command in (_TIOCSTI, _TIOCLINUX):
        lines += _on_argument((16, 29)[at], 1, (_EQUAL, 0, 1, command), refuse)
    lines += _on_argument((72, 25)[at], 1, (_EQUAL, 0, 1, _F_SETSIG), refuse)
    lines.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


def _on_argument(number: int, argument: int, test: tuple[int, int, int, int], answer: int) -> list[tuple]:
    """Refuse a call by the low half of an argument; the kernel uses only 32 bits of all of these."""
    skip = (_EQUAL, 0, 4, number)
    return [skip, (_LOAD, 0, 0, 16 + 8 * argument), test, (_RETURN, 0, 0, answer), (_LOAD, 0, 0, 0)]
