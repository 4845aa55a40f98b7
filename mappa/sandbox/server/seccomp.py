"""The system call filter, assembled by hand: a program for the kernel's classic BPF machine.

A list of what is denied, and a ceiling: calls newer than the list get ENOSYS, as on the kernel this was written for,
so that a new kernel opens nothing. clone3 gets ENOSYS as well (its flags lie in memory where a filter cannot look);
C libraries then fall back to clone, whose flags are checked.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from .syscalls import PR_SET_SECCOMP, prctl

# name: (x86-64, aarch64); -1 where the architecture has no such call.
DENIED = {
    # No network, not even Unix sockets. socketpair stays, for streams: pipes between one's own processes.
    "socket": (41, 198),
    "connect": (42, 203),
    "accept": (43, 202),
    "bind": (49, 200),
    "listen": (50, 201),
    "accept4": (288, 242),
    # Other processes' memory and descriptors.
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440),
    # Namespaces, mounts and other ways to see more of the file system.
    "unshare": (272, 97),
    "setns": (308, 268),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "mount": (165, 40),
    "umount2": (166, 39),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
    # Large, intricate interfaces that model-written code has no use for.
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "userfaultfd": (323, 282),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "seccomp": (317, 277),
    "memfd_secret": (447, 447),
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
    "vmsplice": (278, 75),
    "remap_file_pages": (216, 234),
    "lookup_dcookie": (212, 18),
    "nfsservctl": (180, 42),
    "uselib": (134, -1),
    "ustat": (136, -1),
    "sysfs": (139, -1),
    "_sysctl": (156, -1),
    # Memory that belongs to no process, so that nobody who sums up what processes hold would see it.
    "memfd_create": (319, 279),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "semget": (64, 190),
    "semop": (65, 193),
    "semctl": (66, 191),
    "semtimedop": (220, 192),
    # The machine itself. All of it needs capabilities too; the filter is the second lock.
    "personality": (135, 92),
    "modify_ldt": (154, -1),
    "iopl": (172, -1),
    "ioperm": (173, -1),
    "vhangup": (153, 58),
    "adjtimex": (159, 171),
    "acct": (163, 89),
    "settimeofday": (164, 170),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "reboot": (169, 142),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "init_module": (175, 105),
    "delete_module": (176, 106),
    "finit_module": (313, 273),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "syslog": (103, 116),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
}
OTHERS = {
    # Where executions see the processes of the machine, or share a user with them: what signals' scope leaves open.
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118),
    "sched_setattr": (314, 274),
    "process_mrelease": (448, 448),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    "inotify_add_watch": (254, 27),
}
IGNORED = {
    # Landlock rules over what a file holds, not over its mode, owner, times and attributes. These calls do nothing
    # and say that all went well, since honest programs copy such things along with a file.
    "chmod": (90, -1),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, -1),
    "fchown": (93, 55),
    "lchown": (94, -1),
    "fchownat": (260, 54),
    "utime": (132, -1),
    "utimes": (235, -1),
    "futimesat": (261, -1),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
}
_SELF_ONLY = {
    # Only with 0, the caller, as their process.
    "prlimit64": (302, 261),
    "sched_setaffinity": (203, 122),
}
_CLONE = (56, 220)
_CLONE3 = (435, 435)
_IOCTL = (16, 29)
_SOCKETPAIR = (53, 199)
FIRST_UNKNOWN = 457
"""Numbers from here on are newer than the list (on x86-64 this takes in the x32 calls, which start at 2^30)."""

AUDIT_ARCH = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}
_COLUMN = {"x86_64": 0, "aarch64": 1}

_NEW_NAMESPACES = 0x7E02_0000  # all CLONE_NEW* flags that clone knows
_TERMINAL_INPUT = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX
_SOCK_STREAM = 1
_SOCK_TYPE = 0xF

_LOAD, _JUMP, _EQUAL, _AT_LEAST, _ANY_BIT, _AND, _RETURN = 0x20, 0x05, 0x15, 0x35, 0x45, 0x54, 0x06
ALLOW = 0x7FFF_0000
DENY = 0x0005_0000 | errno.EPERM
ABSENT = 0x0005_0000 | errno.ENOSYS
IGNORE = 0x0005_0000
KILL = 0x8000_0000

_NUMBER_AT, _ARCH_AT = 0, 4  # offsets in struct seccomp_data
_Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, operand


def program(machine: str, *, shared: bool = False) -> bytes:
    """The filter for `machine` (`os.uname().machine`). KeyError where it is neither x86-64 nor aarch64.

    `shared`: for executions that are among the machine's other processes and files, with no namespaces of their own.
    """
    column = _COLUMN[machine]
    code: list[_Instruction] = [
        (_LOAD, 0, 0, _ARCH_AT),
        (_EQUAL, 1, 0, AUDIT_ARCH[machine]),
        (_RETURN, 0, 0, KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_AT_LEAST, 0, 1, FIRST_UNKNOWN),
        (_RETURN, 0, 0, ABSENT),
        (_EQUAL, 0, 1, _CLONE3[column]),
        (_RETURN, 0, 0, ABSENT),
    ]
    code += _each(DENIED | (OTHERS if shared else {}), column, DENY)
    if shared:
        code += _each(IGNORED, column, IGNORE)
        for numbers in _SELF_ONLY.values():
            code += _when(numbers[column], [_argument(0), (_EQUAL, 1, 0, 0), (_RETURN, 0, 0, DENY)])
    code += _when(_CLONE[column], [_argument(0), (_ANY_BIT, 0, 1, _NEW_NAMESPACES), (_RETURN, 0, 0, DENY)])
    for request in _TERMINAL_INPUT:
        code += _when(
            _IOCTL[column], [_argument(1), (_EQUAL, 0, 1, request), (_RETURN, 0, 0, DENY)], falls_through=True
        )
    stream_only = [_argument(1), (_AND, 0, 0, _SOCK_TYPE), (_EQUAL, 1, 0, _SOCK_STREAM), (_RETURN, 0, 0, DENY)]
    code += _when(_SOCKETPAIR[column], stream_only)
    code.append((_RETURN, 0, 0, ALLOW))
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


def _each(calls: dict[str, tuple[int, int]], column: int, verdict: int) -> list[_Instruction]:
    """One verdict for every call of a list."""
    found = sorted(numbers[column] for numbers in calls.values() if numbers[column] >= 0)
    code: list[_Instruction] = [(_EQUAL, len(found) - place, 0, number) for place, number in enumerate(found)]
    return [*code, (_JUMP, 0, 0, 1), (_RETURN, 0, 0, verdict)]  # those that matched land on the second


def _when(number: int, body: list[_Instruction], *, falls_through: bool = False) -> list[_Instruction]:
    """`body` for the call `number` alone, then allow it, or go on with its number loaded again."""
    end: _Instruction = (_LOAD, 0, 0, _NUMBER_AT) if falls_through else (_RETURN, 0, 0, ALLOW)
    return [(_EQUAL, 0, len(body) + 1, number), *body, end]


def _argument(index: int) -> _Instruction:
    """Load the low half of a call's argument (both architectures are little-endian)."""
    return (_LOAD, 0, 0, 16 + 8 * index)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


class Filter:
    """The filter of this machine, ready to be laid on the calling process (which needs no_new_privs)."""

    def __init__(self, *, shared: bool = False) -> None:
        machine = os.uname().machine
        if machine not in AUDIT_ARCH:
            raise OSError(errno.ENOSYS, f"no system call filter for {machine}: x86_64 and aarch64 have one")
        self._code = program(machine, shared=shared)
        self._program = _Program(len(self._code) // 8, self._code)

    def install(self) -> None:
        prctl(PR_SET_SECCOMP, 2, ctypes.byref(self._program))
