"""What model-written code may use up of the machine, on every tier that claims to stop it."""

from __future__ import annotations

import asyncio
import os
import textwrap
import time

import pytest

from tests.sandbox.conftest import CONFIG, TIERS, Lab


def test_fork_bomb_meets_a_limit(any_lab: Lab) -> None:
    code = """
        import os, time
        made = 0
        try:
            while made < 1000:
                if os.fork() == 0:
                    time.sleep(60)
                    os._exit(0)
                made += 1
        except BlockingIOError:
            pass
        print(made)
    """
    made = any_lab.literal(code)
    assert isinstance(made, int)
    assert 0 < made <= CONFIG.processes


@pytest.mark.skipif(TIERS == ["landlock"] and os.geteuid() != 0, reason="executions share our user, and its count")
def test_what_one_execution_has_running_is_not_counted_to_another(any_lab: Lab) -> None:
    hoards = """
        import os, time
        try:
            while True:
                if os.fork() == 0:
                    time.sleep(60)
        except BlockingIOError:
            time.sleep(4)
    """
    modest = """
        import os, time
        for _ in range(20):
            if os.fork() == 0:
                os._exit(0)
            os.wait()
            time.sleep(0.1)
    """

    async def both() -> list[str]:
        spaces = [await any_lab.sandbox.workspace() for _ in range(2)]
        results = await asyncio.gather(
            *(space.run(textwrap.dedent(code)) for space, code in zip(spaces, (hoards, modest), strict=True))
        )
        for space in spaces:
            space.close()
        return [result.outcome for result in results]

    assert any_lab.wait(both()) == ["ok", "ok"]


def test_fork_bomb_that_never_stops_is_ended(any_lab: Lab) -> None:
    code = """
        import os
        while True:
            try:
                os.fork()
            except OSError:
                pass
    """
    result = any_lab.run(code, timeout=1.0)
    assert result.outcome == "timeout"
    assert result.wall_seconds < 30


def test_threads_count_as_processes(any_lab: Lab) -> None:
    code = """
        import threading, time
        made = 0
        try:
            while made < 1000:
                threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
                made += 1
        except (RuntimeError, MemoryError):
            pass
        print(made)
    """
    made = any_lab.literal(code)
    assert isinstance(made, int)
    assert 0 < made <= CONFIG.processes


def test_one_process_with_too_much_memory(any_lab: Lab) -> None:
    result = any_lab.run("block = bytearray(4 << 30)")
    assert result.outcome == "memory"
    assert result.exception == "MemoryError"
    assert result.exception_line == 1


def test_many_processes_with_too_much_memory_together(any_lab: Lab) -> None:
    code = f"""
        import os, time
        for _ in range(16):
            if os.fork() == 0:
                block = b"x" * {CONFIG.memory_mb // 8 << 20}
                time.sleep(60)
        time.sleep(60)
    """
    assert any_lab.run(code).outcome == "memory"


@pytest.mark.parametrize(
    "code",
    [
        "import os; os.memfd_create('hoard')",
        "import ctypes; assert ctypes.CDLL(None).shmget(0, 1 << 28, 0o1600) >= 0, 'refused'",
        "import ctypes; assert ctypes.CDLL(None).msgget(0, 0o1600) >= 0, 'refused'",
    ],
)
def test_memory_that_no_process_holds(any_lab: Lab, code: str) -> None:
    assert any_lab.run(code).exception in (
        "PermissionError: [Errno 1] Operation not permitted",
        "AssertionError: refused",
    )


def test_executions_are_the_first_to_go_when_memory_runs_out(any_lab: Lab) -> None:
    assert any_lab.output("print(open('/proc/self/oom_score_adj').read())").strip() == "1000"


def test_many_processes_that_share_their_memory_are_let_be(any_lab: Lab) -> None:
    code = """
        import os, time
        block = bytearray(os.urandom(1 << 20) * 200)
        for _ in range(20):
            if os.fork() == 0:
                time.sleep(60)
        time.sleep(1)
    """
    assert any_lab.run(code).outcome == "ok"


def test_infinite_loop(any_lab: Lab) -> None:
    result = any_lab.run("print('begun')\nwhile True: pass", timeout=4.0)  # on some tiers an interpreter starts in it
    assert result.outcome == "timeout"
    assert result.stdout == "begun\n"
    assert 3.9 < result.wall_seconds < 20


def test_infinite_loop_that_ignores_all_signals(any_lab: Lab) -> None:
    code = """
        import signal
        for number in range(1, 65):
            try:
                signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError):
                pass
        while True:
            try:
                while True: pass
            except BaseException:
                pass
    """
    assert any_lab.run(code, timeout=1.0).outcome == "timeout"


def test_flood_of_the_report(any_lab: Lab) -> None:
    assert any_lab.run("import os\nwhile True: os.write(3, b'x' * 65536)").outcome == "output-limit"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_flood_of_output(any_lab: Lab, stream: str) -> None:
    begin = time.monotonic()
    result = any_lab.run(f"import os\nwhile True: os.write({1 if stream == 'stdout' else 2}, b'x' * 65536)")
    assert result.outcome == "output-limit"
    assert getattr(result, f"{stream}_bytes") > CONFIG.output_limit_mb << 20
    assert len(getattr(result, stream)) < (CONFIG.output_kb << 10) + 100
    assert time.monotonic() - begin < 10


def test_disk_filled_by_one_file(any_lab: Lab) -> None:
    result = any_lab.run("with open('big', 'wb') as file:\n    while True: file.write(bytes(1 << 20))")
    assert result.outcome == "disk-limit"
    assert result.created["big"] <= CONFIG.file_mb << 20


def test_disk_filled_by_many_files(any_lab: Lab) -> None:
    code = """
        import time
        for number in range(1000):
            with open(str(number), "wb") as file:
                file.write(bytes(1 << 20))
            time.sleep(0.02)  # where the folder's size is bound by looking, that takes a moment
    """
    result = any_lab.run(code)
    assert result.outcome == "disk-limit"
    assert sum(result.created.values()) < 3 * CONFIG.workspace_mb << 20


def test_disk_filled_by_empty_files(any_lab: Lab) -> None:
    result = any_lab.run("import time\nfor n in range(9999):\n    open(str(n), 'w').close(); time.sleep(0.005)")
    assert result.outcome == "disk-limit"
    assert len(result.created) < 3 * CONFIG.workspace_files


def test_folders_in_folders_without_end(any_lab: Lab) -> None:
    restarts = any_lab.sandbox.restarts
    assert any_lab.run("import os\nwhile True:\n    os.mkdir('d'); os.chdir('d')").outcome == "disk-limit"
    assert any_lab.run("print('goes on')").outcome == "ok"
    assert any_lab.sandbox.restarts == restarts


@pytest.mark.parametrize("folder", ["/tmp", "/dev/shm"])
def test_temporary_folders_are_bounded(any_lab: Lab, folder: str) -> None:
    code = f"""
        for number in range(1000):
            with open(f"{folder}/{{number}}", "wb") as file:
                file.write(bytes(1 << 20))
    """
    # On Landlock these are the host's and cannot be written; its own folder for temporary files is next.
    assert any_lab.run(code).outcome == ("error" if any_lab.tier == "landlock" else "disk-limit")


def test_the_users_own_temporary_folder_is_bounded(any_lab: Lab) -> None:
    code = """
        import tempfile, time
        for number in range(1000):
            with tempfile.NamedTemporaryFile(delete=False) as file:
                file.write(bytes(1 << 20))
            time.sleep(0.005)
    """
    assert any_lab.run(code).outcome == "disk-limit"
