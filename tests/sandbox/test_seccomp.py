"""The system call filter, run on a model of the kernel's machine for both architectures."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from mappa.sandbox.server.seccomp import (
    ABSENT,
    ALLOW,
    AUDIT_ARCH,
    DENIED,
    DENY,
    IGNORE,
    IGNORED,
    KILL,
    OTHERS,
    program,
)

MACHINES = ["x86_64", "aarch64"]
CLONE = {"x86_64": 56, "aarch64": 220}
SOCKETPAIR = {"x86_64": 53, "aarch64": 199}
IOCTL = {"x86_64": 16, "aarch64": 29}


def verdict(machine: str, number: int, *arguments: int, arch: int | None = None, shared: bool = False) -> int:
    """What the filter says to a call: classic BPF, the instructions it uses."""
    data = struct.pack(
        "IIQ6Q", number, AUDIT_ARCH[machine] if arch is None else arch, 0, *[*arguments, 0, 0, 0, 0, 0, 0][:6]
    )
    code = list(struct.iter_unpack("HBBI", program(machine, shared=shared)))
    at = accumulator = 0
    while True:
        kind, yes, no, operand = code[at]
        at += 1
        match kind:
            case 0x20:
                (accumulator,) = struct.unpack_from("I", data, operand)
            case 0x54:
                accumulator &= operand
            case 0x05:
                at += operand
            case 0x15:
                at += yes if accumulator == operand else no
            case 0x35:
                at += yes if accumulator >= operand else no
            case 0x45:
                at += yes if accumulator & operand else no
            case 0x06:
                return int(operand)
            case _:
                raise AssertionError(kind)


@pytest.mark.parametrize("machine", MACHINES)
def test_every_denied_call_is_denied_and_all_others_pass(machine: str) -> None:
    column = MACHINES.index(machine)
    denied = {numbers[column] for numbers in DENIED.values()} - {-1}
    special = {435, CLONE[machine], SOCKETPAIR[machine], IOCTL[machine]}
    for number in range(457):
        if number not in special:
            assert verdict(machine, number) == (DENY if number in denied else ALLOW), number


@pytest.mark.parametrize("machine", MACHINES)
def test_calls_with_arguments(machine: str) -> None:
    assert verdict(machine, CLONE[machine], 17) == ALLOW
    assert verdict(machine, CLONE[machine], 0x3D0F00) == ALLOW  # a thread
    for flag in (0x2000_0000, 0x1000_0000, 0x0002_0000, 0x4000_0000, 0x0800_0000, 0x0400_0000, 0x0200_0000):
        assert verdict(machine, CLONE[machine], flag | 17) == DENY
    assert verdict(machine, SOCKETPAIR[machine], 1, 1 | 0o2000000) == ALLOW
    for kind in (2, 3, 5):
        assert verdict(machine, SOCKETPAIR[machine], 1, kind) == DENY
    assert verdict(machine, IOCTL[machine], 0, 0x5401) == ALLOW
    assert verdict(machine, IOCTL[machine], 0, 0x5412) == DENY
    assert verdict(machine, IOCTL[machine], 0, 0x541C) == DENY
    assert verdict(machine, 435) == ABSENT


@pytest.mark.parametrize("machine", MACHINES)
def test_among_other_processes_more_is_denied_and_some_ignored(machine: str) -> None:
    column = MACHINES.index(machine)
    for calls, wanted in ((DENIED | OTHERS, DENY), (IGNORED, IGNORE)):
        for numbers in calls.values():
            assert numbers[column] < 0 or verdict(machine, numbers[column], shared=True) == wanted
    for number in ((302, 261)[column], (203, 122)[column]):  # prlimit64, sched_setaffinity
        assert verdict(machine, number, 0, shared=True) == ALLOW
        assert verdict(machine, number, 1234, shared=True) == DENY
        assert verdict(machine, number, 1234) == ALLOW
    assert verdict(machine, CLONE[machine], 17, shared=True) == ALLOW


@pytest.mark.parametrize("machine", MACHINES)
def test_unknown_numbers_and_other_architectures(machine: str) -> None:
    for number in (457, 600, 0x4000_0000, 0x4000_0000 + 41, 0xFFFF_FFFF):
        assert verdict(machine, number) == ABSENT
    assert verdict(machine, 1, arch=0x4000_0003) == KILL  # 32-bit x86


def test_no_other_machine() -> None:
    with pytest.raises(KeyError):
        program("riscv64")


@pytest.mark.parametrize(
    ("machine", "header"),
    [("x86_64", "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), ("aarch64", "/usr/include/asm-generic/unistd.h")],
)
def test_numbers_are_those_of_the_kernels_headers(machine: str, header: str) -> None:
    if not Path(header).exists():
        pytest.skip("the kernel's headers are not installed")
    known = dict(re.findall(r"#define __NR_(\w+)\s+(\d+)", Path(header).read_text()))
    for name, numbers in (DENIED | OTHERS | IGNORED).items():
        number = numbers[MACHINES.index(machine)]
        if name in known or number >= 0:
            assert known.get(name, str(number)) == str(number), name
