"""Executions in the sandbox: how long one takes, how many a second, what isolation costs, what many at once do.

    python -m bench.sandbox [--quick] [--json PATH]

An execution is `pass` in an interpreter that has the config's preload list imported: forked from the server, with and
without isolation, against one started for each execution, bare, inside bubblewrap or inside nsjail, which has to import
the list. CPU is that of all processes taken together: server, execution, and what they leave to be reaped.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from bench.harness import Row, compare, environment, finish, parser, unmeasured
from mappa.config import SandboxConfig, available_cores
from mappa.sandbox import Sandbox, SandboxWorkspace

CONFIG = SandboxConfig()
IMPORTS = "\n".join(f"import {name}" for name in CONFIG.preload)
TICK = os.sysconf("SC_CLK_TCK")

Execute = Callable[[], Awaitable[None]]


@dataclass
class Candidate:
    """One way to execute, and what its rounds took, seconds per execution."""

    name: str
    execute: Execute
    cpu: Callable[[], float]
    per_round: int
    cpu_seconds: list[float] = field(default_factory=list)
    wall_seconds: list[float] = field(default_factory=list)
    """Of single executions."""

    async def measure(self) -> None:
        cpu = self.cpu()
        for _ in range(self.per_round):
            begin = time.perf_counter()
            await self.execute()
            self.wall_seconds.append(time.perf_counter() - begin)
        self.cpu_seconds.append((self.cpu() - cpu) / self.per_round)

    @property
    def wall(self) -> float:
        return statistics.median(self.wall_seconds)

    @property
    def cpu_median(self) -> float:
        return statistics.median(self.cpu_seconds)


async def main() -> None:
    arguments = parser(__doc__ or "").parse_args()
    quick: bool = arguments.quick
    rows: list[Row] = []
    async with contextlib.AsyncExitStack() as stack:
        ours = await stack.enter_async_context(_server(CONFIG, "ours", 10 if quick else 40))
        candidates = [ours]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that there is no isolation: that is the point of it
            unsafe = msgspec.structs.replace(CONFIG, unsafe=True)
            candidates.append(await stack.enter_async_context(_server(unsafe, "bare fork", ours.per_round)))
        candidates.append(Candidate("subprocess", _spawning([]), _children_cpu, 1 if quick else 3))
        if shutil.which("bwrap"):
            wrapped = msgspec.structs.replace(CONFIG, tier="bubblewrap")
            candidates.append(await stack.enter_async_context(_server(wrapped, "bubblewrap", 1 if quick else 3)))
        if nsjail := shutil.which("nsjail", path=f"{sys.prefix}/bin:{os.environ['PATH']}"):
            candidates.append(Candidate("nsjail", _spawning(_nsjail(nsjail)), _children_cpu, 1 if quick else 3))
        for _ in range(3 if quick else 7):
            for candidate in candidates:
                await candidate.measure()
        rows += _one_at_a_time({candidate.name: candidate for candidate in candidates})
    rows += await _many(200 if quick else 2000)
    finish("sandbox", rows, arguments.json, environment(("numpy", "pandas", "scikit-learn")))


def _one_at_a_time(found: dict[str, Candidate]) -> list[Row]:
    ours, bare = found["ours"], found["bare fork"]
    rows = [
        compare("one execution, wall", ours.wall * 1e3, 25.0, "the limit", "ms", "<= 1"),
        compare("one execution, CPU", ours.cpu_median * 1e3, 20.0, "the limit", "ms CPU", "<= 1"),
        compare("one execution, CPU", ours.cpu_median * 1e3, bare.cpu_median * 1e3, bare.name, "ms CPU", "<= 1.3"),
    ]
    for name in ("subprocess", "bubblewrap", "nsjail"):
        goal = ">= 30" if name == "subprocess" else ""
        if name in found:
            rows.append(
                compare(
                    "executions a second, one after the other",
                    1 / ours.wall,
                    1 / found[name].wall,
                    f"{name} per execution",
                    "1/s",
                    goal,
                    more_is_better=True,
                )
            )
        else:
            rows.append(unmeasured("executions a second", f"{name} per execution", f"{name} is not installed"))
    return rows


async def _many(count: int) -> list[Row]:
    """200 requested at once, again and again: throughput, pauses of the event loop, growth."""
    async with Sandbox.open(CONFIG) as sandbox:

        async def one() -> None:
            workspace = await sandbox.workspace()
            workspace.put("in.csv", b"a,b\n1,2\n")
            await _run(workspace, "print(open('in.csv').read())")
            workspace.close()

        await asyncio.gather(*(one() for _ in range(20)))
        pauses: list[float] = []
        watcher = asyncio.create_task(_watch(pauses))
        before, begin = _held(), time.perf_counter()
        for _ in range(count // 200):
            await asyncio.gather(*(one() for _ in range(200)))
        seconds = time.perf_counter() - begin
        after = _held()
        watcher.cancel()
    descriptors, memory = after[0] - before[0], (after[1] - before[1]) / 2**20
    cores, what = available_cores(), f"{count} executions, 200 at once"
    return [
        compare(f"{what}, {cores} cores", count / seconds, 40.0, "the limit", "1/s", ">= 1", more_is_better=True),
        compare(f"{what}: longest pause of the event loop", max(pauses) * 1e3, 50.0, "the limit", "ms", "<= 1"),
        Row(f"{what}: descriptors gained", descriptors, 0, "none", "", None, "none", descriptors <= 0),
        compare(f"{what}: memory gained, trainer and server", max(0.0, memory), 8.0, "the limit", "MiB", "<= 1"),
    ]


@contextlib.asynccontextmanager
async def _server(config: SandboxConfig, name: str, per_round: int) -> AsyncIterator[Candidate]:
    before = set(_children(os.getpid()))
    async with Sandbox.open(config) as sandbox:
        (server,) = set(_children(os.getpid())) - before
        workspace = await sandbox.workspace()

        async def execute() -> None:
            await _run(workspace, IMPORTS if config.tier == "bubblewrap" else "pass")

        yield Candidate(name, execute, lambda: _tree_cpu(server), per_round)


async def _run(workspace: SandboxWorkspace, code: str) -> None:
    result = await workspace.run(code)
    if result.outcome != "ok":
        raise RuntimeError(f"{result.outcome}: {result.stderr}")


def _spawning(wrapper: list[str]) -> Execute:
    def spawn() -> None:
        command = [*wrapper, sys.executable, "-I", "-c", IMPORTS]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, env={"OPENBLAS_NUM_THREADS": "1"})

    return lambda: asyncio.to_thread(spawn)


def _nsjail(program: str) -> list[str]:
    """The same isolation as far as its options go: namespaces, read-only system, private /tmp, limits."""
    words = [program, "-Mo", "--really_quiet", "--rlimit_as", "4096", "--rlimit_nofile", "512", "--rlimit_fsize", "64"]
    words += ["--keep_env", "--tmpfsmount", "/tmp", "--tmpfsmount", "/dev/shm", "--user", "65534", "--group", "65534"]
    shown = {"/usr", "/lib", "/lib64", "/bin", sys.prefix, sys.base_prefix}
    for path in sorted(path for path in shown if os.path.exists(path)):
        words += ["--bindmount_ro", path]
    return [*words, "--"]


async def _watch(pauses: list[float]) -> None:
    while True:
        begin = time.perf_counter()
        await asyncio.sleep(0.002)
        pauses.append(time.perf_counter() - begin - 0.002)


def _held() -> tuple[int, int]:
    """Descriptors and resident bytes of this process and of all below it."""
    pids = [os.getpid(), *_descendants(os.getpid())]
    descriptors = sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids)
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
    return descriptors, pages * resource.getpagesize()


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _tree_cpu(root: int) -> float:
    """Of a process, its descendants, and all that they have reaped."""
    total = 0
    for pid in (root, *_descendants(root)):
        total += sum(map(int, _stat(pid)[11:15]))
    return total / TICK


def _descendants(root: int) -> list[int]:
    found = _children(root)
    for pid in found:
        found += _children(pid)
    return found


def _children(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                if int(_stat(int(entry.name))[1]) == parent:
                    found.append(int(entry.name))
    return found


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


if __name__ == "__main__":
    asyncio.run(main())
