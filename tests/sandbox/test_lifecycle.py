"""Servers that die, trainers that die, cancellation, many at once: nothing is lost silently, nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest

from mappa.config import SandboxConfig
from mappa.errors import SandboxError
from mappa.sandbox import Sandbox
from tests.sandbox.conftest import TIERS, Lab, begun, descendants, eventually, on_tiers

BARE = SandboxConfig(preload=(), workspace_mb=16, parallel=2)


def _servers(root: int) -> list[int]:
    """Servers below `root`, and their executions, which have their command line."""
    found = []
    for pid in descendants(root):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if {b"serve", b"bubblewrap", b"landlock-server"} & set(words):
                found.append(pid)
    return found


async def _kill_the_server_at_work(before: set[int]) -> None:
    """Kill the first server that is not among `before` and has an execution, and put it there."""
    async with asyncio.timeout(30):
        while True:
            await asyncio.sleep(0.1)
            # The server is the one with most below it: where it forks, what it forked has its command line.
            for server in sorted(_servers(os.getpid()), key=lambda pid: -len(descendants(pid))):
                if server not in before and descendants(server):
                    before |= {server, *descendants(server)}
                    os.kill(server, signal.SIGKILL)
                    return


@pytest.mark.parametrize("tier", on_tiers(*TIERS))
def test_server_killed_once_the_execution_is_tried_again(tier: str) -> None:
    async def main() -> None:
        seen = set(_servers(os.getpid()))
        async with Sandbox.open(msgspec.structs.replace(BARE, tier=tier)) as sandbox:
            workspace = await sandbox.workspace()
            workspace.put("given/in.txt", b"kept")

            async def kill() -> None:
                await begun(workspace)
                await _kill_the_server_at_work(seen)

            killer = asyncio.create_task(kill())
            # The first attempt stays until it is killed, however long that takes; the second one goes on.
            result = await workspace.run(
                "import os, time\n"
                "if not os.path.exists('begun'): open('begun', 'w').close(); time.sleep(50)\n"
                "print(open('given/in.txt').read())",
                timeout=60.0,
            )
            await killer
            assert (result.outcome, result.stdout) == ("ok", "kept\n")
            assert sandbox.restarts == 1
            assert workspace.files() == {"begun": 0, "given/in.txt": 4}

    asyncio.run(main())


def test_server_killed_twice_is_a_sandbox_failure() -> None:
    async def main() -> None:
        seen = set(_servers(os.getpid()))
        async with Sandbox.open(BARE) as sandbox:
            workspace = await sandbox.workspace()
            running = asyncio.create_task(workspace.run("import time; time.sleep(30)", timeout=40))
            for _ in range(2):
                await _kill_the_server_at_work(seen)
            result = await running
            assert result.outcome == "sandbox-failure"
            assert result.exit_code is None
            assert "the server died" in result.stderr
            assert (await workspace.run("print(1)")).outcome == "ok"

    asyncio.run(main())


@pytest.mark.parametrize("tier", on_tiers(*TIERS))
def test_trainer_killed_takes_everything_along(tier: str) -> None:
    program = """if True:
        import asyncio, sys
        from mappa.config import SandboxConfig
        from mappa.sandbox import Sandbox
        async def main():
            async with Sandbox.open(SandboxConfig(preload=(), tier=sys.argv[1])) as sandbox:
                workspace = await sandbox.workspace()
                code = "import os; os.fork(); os.fork() or os.setsid(); os.execlp('sleep', 'sleep', '90')"
                await workspace.run(code, timeout=80)
        asyncio.run(main())
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen([sys.executable, "-c", program, tier], env=environment) as trainer:
        assert eventually(lambda: len(_asleep(trainer.pid)) == 4, 60)  # the processes of the execution
        below = descendants(trainer.pid)
        assert len(below) >= 5  # and the server, with what is around it
        trainer.kill()
    assert eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in below))


def _asleep(root: int) -> list[int]:
    found = []
    for pid in descendants(root):
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes() == b"sleep\x0090\x00":
                found.append(pid)
    return found


def test_cancelled_executions_end(lab: Lab) -> None:
    before = descendants(os.getpid())

    async def main() -> None:
        workspace = await lab.sandbox.workspace()
        running = asyncio.create_task(workspace.run("while True: pass"))
        await asyncio.sleep(0.2)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert (await workspace.run("print(2)")).stdout == "2\n"
        workspace.close()

    lab.wait(main())
    assert eventually(lambda: descendants(os.getpid()) <= before)


def test_closing_a_workspace_ends_what_runs_in_it(lab: Lab) -> None:
    async def main() -> None:
        workspace = await lab.sandbox.workspace()
        running = asyncio.create_task(workspace.run("while True: pass"))
        await asyncio.sleep(0.3)
        workspace.close()
        workspace.close()
        begin = time.monotonic()
        result = await running
        assert result.outcome == "killed"
        assert time.monotonic() - begin < 20  # not when its time is up
        with pytest.raises(SandboxError, match="closed"):
            await workspace.run("pass")
        with pytest.raises(SandboxError, match="closed"):
            workspace.files()

    lab.wait(main())


def test_nothing_is_left_when_the_sandbox_is_closed() -> None:
    before, threads, files = descendants(os.getpid()), threading.active_count(), len(os.listdir("/proc/self/fd"))

    async def main() -> None:
        async with Sandbox.open(BARE) as sandbox:
            workspaces = [await sandbox.workspace() for _ in range(3)]
            assert (await workspaces[0].run("print(1)")).outcome == "ok"
        with pytest.raises(SandboxError, match="closed"):
            await sandbox.workspace()
        with pytest.raises(SandboxError, match="closed"):
            await workspaces[1].run("print(1)")

    asyncio.run(main())
    assert eventually(lambda: descendants(os.getpid()) <= before)
    assert len(os.listdir("/proc/self/fd")) <= files
    assert threading.active_count() == threads


@pytest.mark.parametrize("timeout", [math.inf, -math.inf, math.nan, 1e12])
def test_a_timeout_without_end_is_refused(lab: Lab, timeout: float) -> None:
    restarts = lab.sandbox.restarts
    with pytest.raises(SandboxError, match="a week"):
        lab.run("print(1)", timeout=timeout)
    assert lab.run("print(1)", timeout=-1.0).outcome == "timeout"
    assert lab.sandbox.restarts == restarts


def test_executions_in_one_workspace_take_turns(lab: Lab) -> None:
    async def main() -> None:
        workspace = await lab.sandbox.workspace()
        code = "import os, time\nos.mkdir('busy')\ntime.sleep(0.1)\nos.rmdir('busy')"
        results = await asyncio.gather(*(workspace.run(code) for _ in range(4)))
        assert {result.outcome for result in results} == {"ok"}
        workspace.close()

    lab.wait(main())


def test_two_hundred_at_once_leave_the_loop_free(lab: Lab) -> None:
    lags: list[float] = []

    async def watch() -> None:
        while True:
            begin = time.perf_counter()
            await asyncio.sleep(0.005)
            lags.append(time.perf_counter() - begin - 0.005)

    async def one(number: int) -> str:
        workspace = await lab.sandbox.workspace()
        workspace.put("in.csv", b"a,b\n1,2\n")
        result = await workspace.run(f"print(open('in.csv').read()[0], {number})")
        workspace.close()
        return result.stdout

    async def main() -> list[str]:
        watcher = asyncio.create_task(watch())
        found = await asyncio.gather(*(one(number) for number in range(200)))
        watcher.cancel()
        return found

    threads, begin = threading.active_count(), time.perf_counter()
    assert lab.wait(main()) == [f"a {number}\n" for number in range(200)]
    assert threading.active_count() <= threads + 1
    lags.sort()
    # A loop that waited for executions would lag for much of the time; where the machine is busy, all of it stretches.
    assert lags[len(lags) * 95 // 100] < max(0.05, (time.perf_counter() - begin) / 20)


def test_neither_descriptors_nor_mounts_grow(lab: Lab) -> None:
    async def one(code: str) -> None:
        workspace = await lab.sandbox.workspace()
        await workspace.run(code)
        workspace.close()

    async def many(count: int) -> None:
        await asyncio.gather(*(one("print('x')" if number % 3 else "1/0") for number in range(count)))

    def held() -> tuple[int, int, int]:
        (server, *_) = [pid for pid in _servers(os.getpid()) if _is_preloaded(pid)]
        mounts = len(Path(f"/proc/{server}/mounts").read_text().splitlines())
        return len(os.listdir("/proc/self/fd")), len(os.listdir(f"/proc/{server}/fd")), mounts

    lab.wait(many(10))
    time.sleep(0.3)  # closing a workspace asks for it and does not wait
    before = held()
    lab.wait(many(150))
    assert eventually(lambda: all(now <= then for now, then in zip(held(), before, strict=True))), (held(), before)


def _is_preloaded(pid: int) -> bool:
    return "pandas" in Path(f"/proc/{pid}/maps").read_text()


def test_a_fresh_server_takes_over_after_so_many_executions() -> None:
    async def main() -> None:
        others = set(_servers(os.getpid()))
        async with Sandbox.open(msgspec.structs.replace(BARE, recycle_after=3)) as sandbox:
            (first,) = set(_servers(os.getpid())) - others
            kept = await sandbox.workspace()
            assert (await kept.run("open('kept.txt', 'w').write('1')")).created == {"kept.txt": 1}
            async with asyncio.timeout(100):
                while not sandbox.recycled:
                    workspace = await sandbox.workspace()
                    assert (await workspace.run("print(1)")).stdout == "1\n"
                    workspace.close()
            assert first in _servers(os.getpid())  # it holds a workspace
            assert (await kept.run("print(open('kept.txt').read())")).stdout == "1\n"
            kept.close()
            assert await asyncio.to_thread(eventually, lambda: first not in _servers(os.getpid()))
            assert sandbox.restarts == 0
        assert set(_servers(os.getpid())) == others

    asyncio.run(main())


def test_a_server_killed_while_it_starts_is_started_again() -> None:
    others = set(_servers(os.getpid()))

    async def kill_the_first() -> int:
        while True:
            for pid in set(_servers(os.getpid())) - others:
                os.kill(pid, signal.SIGKILL)
                return pid
            await asyncio.sleep(0.01)

    async def main() -> None:
        killing = asyncio.create_task(kill_the_first())
        async with Sandbox.open(SandboxConfig(preload=("pandas",), tier="fork-server")) as sandbox:
            workspace = await sandbox.workspace()
            assert (await workspace.run("print(1)")).outcome == "ok"
            assert await killing not in _servers(os.getpid())

    asyncio.run(main())


def test_an_impossible_preload_is_told() -> None:
    async def main() -> None:
        async with Sandbox.open(SandboxConfig(preload=("numpy", "no_such_module"))):
            pass

    with pytest.raises(SandboxError, match=r"sandbox\.preload: No module named 'no_such_module'"):
        asyncio.run(main())


def test_a_server_that_hangs_is_replaced() -> None:
    async def main() -> None:
        others = set(_servers(os.getpid()))
        async with Sandbox.open(BARE, patience=2.0) as sandbox:
            workspace = await sandbox.workspace()
            (server,) = set(_servers(os.getpid())) - others
            os.kill(server, signal.SIGSTOP)
            result = await workspace.run("print('after')", timeout=3.0)
            assert (result.outcome, result.stdout) == ("ok", "after\n")
            assert sandbox.restarts == 1
            with contextlib.suppress(ProcessLookupError):
                os.kill(server, signal.SIGCONT)

    asyncio.run(main())


def test_importing_the_sandbox_is_light() -> None:
    code = "import sys, mappa.sandbox; print([name for name in ('pandas', 'numpy', 'torch') if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert told.stdout == "[]\n"


def test_what_the_trainer_hands_down_does_not_matter() -> None:
    program = """if True:
        import asyncio, os, resource, signal, sys
        from mappa.config import SandboxConfig
        from mappa.sandbox import Sandbox
        os.umask(0o077)
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGCHLD, signal.SIGTERM})
        async def main():
            async with Sandbox.open(SandboxConfig(preload=())) as sandbox:
                workspace = await sandbox.workspace()
                workspace.put("folder/in.txt", b"1")
                code = "import pwd, os; print(open('folder/in.txt').read(), pwd.getpwuid(os.getuid()).pw_name)"
                print((await workspace.run(code)).stdout, end="")
        asyncio.run(main())
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment)
    assert told.stdout == "1 agent\n", told.stderr


def test_cpu_time_of_several_cores_is_not_taken_for_a_timeout(lab: Lab) -> None:
    allowed = int(lab.output("import resource; print(resource.getrlimit(resource.RLIMIT_CPU)[0])", timeout=30))
    assert allowed > 30 * len(os.sched_getaffinity(0))
