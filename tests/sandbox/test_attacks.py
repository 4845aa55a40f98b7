"""What model-written code may try, on every tier that claims to stop it."""

from __future__ import annotations

import ast
import asyncio
import errno
import hashlib
import os
import re
import resource
import secrets
import socket
import textwrap
import time
from pathlib import Path

import pytest

import mappa.sandbox.process
from mappa.config import SandboxConfig
from tests.sandbox.conftest import CONFIG, SECRET, TIERS, Lab, descendants, on_tiers

SYSTEM_CALLS = """
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)

def call(number, *arguments):
    ctypes.set_errno(0)
    result = libc.syscall(number, *arguments)
    return "succeeded" if result >= 0 else errno.errorcode[ctypes.get_errno()]
"""


def _result_of(lab: Lab, code: str, timeout: float = 20.0) -> object:
    """The literal that `code` prints."""
    return ast.literal_eval(lab.output(code, timeout=timeout))


# --- using up the machine ---------------------------------------------------------------------------------------------


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
    made = _result_of(any_lab, code)
    assert isinstance(made, int)
    assert 0 < made <= CONFIG.processes


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
    assert result.wall_seconds < 10


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
    made = _result_of(any_lab, code)
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
    result = any_lab.run(code, timeout=15)
    assert result.outcome == "memory"


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
    result = any_lab.run("print('begun')\nwhile True: pass", timeout=1.0)
    assert result.outcome == "timeout"
    assert result.stdout == "begun\n"
    assert 0.9 < result.wall_seconds < 3


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
            time.sleep(0.005)
    """
    result = any_lab.run(code)
    assert result.outcome == "disk-limit"
    assert sum(result.created.values()) < 3 * CONFIG.workspace_mb << 20


def test_disk_filled_by_empty_files(any_lab: Lab) -> None:
    result = any_lab.run("import time\nfor n in range(9999):\n    open(str(n), 'w').close(); time.sleep(0.001)")
    assert result.outcome == "disk-limit"
    assert len(result.created) < 3 * CONFIG.workspace_files


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


# --- reaching out -----------------------------------------------------------------------------------------------------


def test_no_sockets(any_lab: Lab) -> None:
    code = """
        import socket
        failed = []
        for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, socket.AF_NETLINK, socket.AF_PACKET, 40):
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
                try:
                    socket.socket(family, kind)
                except PermissionError:
                    failed.append(True)
        print(len(failed))
    """
    assert _result_of(any_lab, code) == 18


def test_no_sockets_in_a_subprocess_either(any_lab: Lab) -> None:
    code = """
        import subprocess, sys
        done = subprocess.run([sys.executable, "-c", "import socket; socket.socket()"], capture_output=True, text=True)
        print(done.returncode, "PermissionError" in done.stderr)
    """
    assert any_lab.output(code).split() == ["1", "True"]


@pytest.mark.parametrize("family", ["tcp", "udp", "path", "abstract"])
def test_nothing_reaches_a_listener_of_the_trainer(any_lab: Lab, tmp_path: Path, family: str) -> None:
    kind = socket.SOCK_DGRAM if family == "udp" else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET if family in ("tcp", "udp") else socket.AF_UNIX, kind) as listener:
        name = {"path": str(tmp_path / "socket"), "abstract": "\0" + SECRET}.get(family, ("127.0.0.1", 0))
        listener.bind(name)
        if kind == socket.SOCK_STREAM:
            listener.listen()
        listener.setblocking(False)
        attempt = f"import socket; s = socket.socket({int(listener.family)}, {int(kind)}); "
        attempt += f"s.connect({listener.getsockname()!r}); s.send(b'secret')"
        code = f"""
            import subprocess, sys
            attempt = {attempt!r}
            print(subprocess.run([sys.executable, "-c", attempt], capture_output=True, text=True).stderr[-300:])
            exec(attempt)
        """
        result = any_lab.run(code)
        assert result.stdout.strip().endswith("PermissionError: [Errno 1] Operation not permitted")
        assert result.exception == "PermissionError: [Errno 1] Operation not permitted"
        with pytest.raises(BlockingIOError):
            listener.recv(1) if kind == socket.SOCK_DGRAM else listener.accept()


def test_socket_pairs_are_streams_that_cannot_be_turned_elsewhere(any_lab: Lab) -> None:
    code = """
        import socket
        one, other = socket.socketpair()
        one.send(b"fine")
        assert other.recv(10) == b"fine"
        for attempt in (
            lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM),
            lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET),
            lambda: one.connect("\\0name"),
            lambda: one.bind("\\0name"),
            lambda: one.listen(),
        ):
            try:
                attempt()
            except PermissionError:
                continue
            raise AssertionError
    """
    assert any_lab.run(code).outcome == "ok"


def test_no_network_interface_but_loopback(any_lab: Lab) -> None:
    if any_lab.tier == "landlock":
        assert any_lab.run("open('/proc/net/dev')").outcome == "error"  # the host's network, out of sight
        return
    lines = any_lab.output("print(open('/proc/net/dev').read())").splitlines()[2:]
    assert all(line.strip().startswith("lo:") for line in lines if line.strip())


def test_files_of_the_host_are_not_there(any_lab: Lab, tmp_path: os.PathLike[str]) -> None:
    paths = ["/etc/shadow", "/root/.bashrc", "/home", "/var", "/mnt", "/etc/ssh", str(tmp_path), __file__]
    code = f"""
        import os
        found = []
        for path in {paths!r}:
            try:
                found += [path] if (os.listdir(path) if os.path.isdir(path) else open(path).read()) else []
            except OSError:
                pass
        print(found)
    """
    assert _result_of(any_lab, code) == []


def test_only_its_own_processes_in_proc(any_lab: Lab) -> None:
    code = """
        import os
        try:
            pids = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
        except PermissionError:
            pids = [0]
        readable = []
        paths = [f"/proc/{TRAINER}/{name}" for name in ("environ", "mem", "maps", "cmdline", "fd", "root/etc/passwd")]
        for path in (*paths, "/proc/1/root/etc/shadow", "/proc/1/cwd/../etc/shadow", "/proc/kcore", "/proc/kmsg"):
            try:
                if open(path, "rb").read(1):
                    readable.append(path)
            except OSError:
                pass
        print(max(pids) < 10, readable)
    """
    assert any_lab.output(f"TRAINER = {os.getpid()}\n" + textwrap.dedent(code)).strip() == "True []"


def test_other_workspaces_are_not_there(any_lab: Lab) -> None:
    with any_lab.workspace() as other:
        other.put("answer.txt", b"forty-two")
        code = """
            import os
            tops = {"/sandbox", "/workspaces", "/run", "/dev", "/etc", "/tmp", "/mnt", "/home", "/var"}
            tops |= {os.path.abspath("..")} - {"/"}
            print([top for top in tops for _, _, names in os.walk(top) if "answer.txt" in names])
        """
        assert _result_of(any_lab, code) == []


def _search_own_memory(secret: str) -> str:
    """Code that counts a secret in its own memory, without holding it: half of it and a digest of the whole."""
    half, digest = secret[: len(secret) // 2], hashlib.sha256(secret.encode()).hexdigest()
    return f"""
        import hashlib, re
        half = {half[::-1]!r}[::-1].encode()
        found = 0
        memory = open("/proc/self/mem", "rb", buffering=0)
        for line in open("/proc/self/maps"):
            begin, end = (int(part, 16) for part in line.split()[0].split("-"))
            if "r" not in line.split()[1] or "[v" in line:
                continue
            try:
                memory.seek(begin)
                block = memory.read(end - begin)
            except OSError:
                continue
            for match in re.finditer(half, block):
                whole = block[match.start() : match.start() + {len(secret)}]
                found += hashlib.sha256(whole).hexdigest() == {digest!r}
        print(found)
    """


def test_the_search_of_memory_finds_what_is_there(any_lab: Lab) -> None:
    parts = [SECRET[i : i + 4] for i in range(0, len(SECRET), 4)]
    code = f"planted = ''.join({parts!r})\n" + "\n".join(line[8:] for line in _search_own_memory(SECRET).splitlines())
    found = _result_of(any_lab, code)
    assert isinstance(found, int)
    assert found >= 1


def test_the_trainers_environment_is_nowhere(any_lab: Lab) -> None:
    assert os.environ["MAPPA_TEST_SECRET"] == SECRET
    assert "MAPPA_TEST_SECRET" not in any_lab.output(
        "import os; print(dict(os.environ), open('/proc/self/environ').read())"
    )
    assert _result_of(any_lab, _search_own_memory(SECRET)) == 0


@pytest.mark.parametrize("tier", on_tiers(*TIERS))
def test_the_environment_the_server_starts_with_is_nowhere(tier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a start-up script, or a later change of ours, had put something into it."""
    planted = secrets.token_hex(16)
    clean = mappa.sandbox.process.execution_environment()
    monkeypatch.setattr(mappa.sandbox.process, "execution_environment", lambda: {**clean, "MAPPA_PLANTED": planted})
    lab = Lab(SandboxConfig(tier=tier, preload=()))  # type: ignore[arg-type]
    try:
        assert (
            planted.encode()
            in b"".join(
                Path(f"/proc/{pid}/environ").read_bytes() for pid in descendants(os.getpid()) if tier != "landlock"
            )
            or tier == "landlock"
        )
        assert _result_of(lab, _search_own_memory(planted)) == 0
        assert "MAPPA_PLANTED" not in lab.output("import os; print(os.environ, open('/proc/self/environ').read())")
    finally:
        lab.close()


def test_nothing_of_an_earlier_execution_is_in_memory(any_lab: Lab) -> None:
    mark = hashlib.sha256(SECRET.encode()).hexdigest()
    with any_lab.workspace() as first:
        first.put(f"{mark}.txt", mark.encode())
        result = any_lab.run_in(
            first, f"print(open('{mark}.txt').read())\nopen('{mark}', 'w')\nraise ValueError('{mark}')"
        )
        assert result.exception == f"ValueError: {mark}"
    assert _result_of(any_lab, _search_own_memory(mark)) == 0


def test_writing_outside(any_lab: Lab) -> None:
    code = """
        import os, sys
        written = []
        for folder in ("/", "/usr", "/usr/lib", "/etc", "/run", "/dev", "/proc", "/proc/sys/kernel", "/root", "/sys",
                       "/workspaces", sys.prefix, sys.base_prefix, os.path.dirname(os.__file__)):
            try:
                open(f"{folder}/planted", "w").close()
                written.append(folder)
            except OSError:
                pass
        paths = ("/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/etc/passwd", sys.executable, os.__file__)
        for path in paths:
            try:
                open(path, "r+b").close()
                written.append(path)
            except OSError:
                pass
        print(written)
    """
    assert _result_of(any_lab, code) == []


def test_files_of_the_trainer_cannot_be_touched(any_lab: Lab, tmp_path: Path) -> None:
    """Not even those that this very user owns and all may write."""
    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_uid == os.geteuid() and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o011)  # so that nothing but the sandbox is in the way
    folder = tmp_path / "open"
    folder.mkdir()
    file = folder / "file"
    file.write_text("untouched")
    file.chmod(0o666)
    folder.chmod(0o777)
    before = file.stat()
    code = f"""
        import os
        path = {str(file)!r}
        for attempt in (
            lambda: open(path).read(), lambda: open(path, "w"), lambda: os.truncate(path, 0), lambda: os.chmod(path, 0),
            lambda: os.utime(path, (0, 0)), lambda: os.unlink(path), lambda: os.rename(path, "mine"),
            lambda: os.link(path, "mine"), lambda: os.setxattr(path, "user.x", b"1"),
            lambda: os.mkdir(path + ".d"), lambda: os.symlink("x", path + ".l"), lambda: os.mkfifo(path + ".f"),
            lambda: os.chown(path, os.getuid(), os.getgid()),
        ):
            try:
                attempt()
            except OSError:
                pass
    """
    assert any_lab.run(code).created == {}
    assert file.stat() == before
    assert file.read_text() == "untouched"
    assert os.listdir(folder) == ["file"]


# --- breaking out -----------------------------------------------------------------------------------------------------


def test_killing_everything_in_sight(any_lab: Lab) -> None:
    code = """
        import os, signal
        for pid in (os.getppid(), -1, 1, 2, 3):
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass
    """
    assert any_lab.run(code).outcome in ("ok", "killed")
    assert any_lab.output("print('alive')") == "alive\n"
    assert any_lab.sandbox.restarts == 0


def test_killing_and_throttling_siblings_and_the_trainer(any_lab: Lab) -> None:
    code = f"""
        import os, resource, signal
        reached = []
        for pid in ({os.getpid()}, {os.getppid()}, os.getppid(), *range(os.getpid() - 60, os.getpid() + 60)):
            if pid <= 1 or pid == os.getpid():
                continue
            for attempt in (
                lambda: os.kill(pid, signal.SIGKILL),
                lambda: signal.pidfd_send_signal(os.pidfd_open(pid), signal.SIGKILL),
                lambda: os.setpriority(os.PRIO_PROCESS, pid, 19),
                lambda: os.sched_setaffinity(pid, {{0}}),
                lambda: resource.prlimit(pid, resource.RLIMIT_CPU, (1, 1)),
            ):
                try:
                    attempt()
                    reached.append(pid)
                except OSError:
                    pass
        print(reached)
    """

    async def both() -> tuple[str, str]:
        one, other = await any_lab.sandbox.workspace(), await any_lab.sandbox.workspace()
        results = await asyncio.gather(
            one.run("import time; time.sleep(1.5); print('alive')"), other.run(textwrap.dedent(code))
        )
        one.close()
        other.close()
        return results[0].stdout, results[1].stdout

    assert any_lab.wait(both()) == ("alive\n", "[]\n")
    assert resource.getrlimit(resource.RLIMIT_CPU)[0] != 1


def test_daemons_do_not_survive(any_lab: Lab) -> None:
    code = """
        import os, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(600)
            os._exit(0)
        os.wait()
    """
    assert any_lab.run(code).outcome == "ok"  # the fixture looks for what is left


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("ptrace", "call(101, 0, 0, 0, 0)"),
        ("process_vm_readv", "call(310, os.getpid(), 0, 0, 0, 0, 0)"),
        ("unshare user", "call(272, 0x10000000)"),
        ("unshare mount", "call(272, 0x20000)"),
        ("clone user", "call(56, 0x10000000 | 17, 0, 0, 0, 0)"),
        ("setns", "call(308, os.open('/proc/self/ns/user', 0), 0)"),
        ("mount", "call(165, b'x', b'/tmp', b'tmpfs', 0, 0)"),
        ("umount", "call(166, b'/proc', 2)"),
        ("chroot", "call(161, b'/tmp')"),
        ("open_tree", "call(428, -100, b'/', 1)"),
        ("fsopen", "call(430, b'tmpfs', 0)"),
        ("bpf", "call(321, 0, 0, 0)"),
        ("io_uring_setup", "call(425, 1, 0)"),
        ("keyctl", "call(250, 0, -3, 0)"),
        ("userfaultfd", "call(323, 0)"),
        ("perf_event_open", "call(298, 0, 0, -1, -1, 0)"),
        ("open_by_handle_at", "call(304, -100, 0, 0)"),
        ("personality", "call(135, 0x0040000)"),
        ("setgroups", "call(116, 0, 0)"),
        ("sethostname", "call(170, b'x', 1)"),
        ("reboot", "call(169, 0, 0, 0, 0)"),
        ("mknod device", "call(133, b'device', 0o20666, 0x101)"),
        ("x32 getpid", "call(0x40000000 + 39)"),
        ("clone3", "call(435, 0, 0)"),
        ("clone3 user", "call(435, (ctypes.c_uint64 * 11)(0x10000000, 0, 0, 0, 17), 88)"),
        ("newer than the filter", "call(470, 0, 0)"),
    ],
)
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are those of x86-64")
def test_denied_system_calls(any_lab: Lab, name: str, call: str) -> None:
    told = any_lab.output(SYSTEM_CALLS + f"print({call})").strip()
    absent = ("clone3", "clone3 user", "x32 getpid", "newer than the filter")
    denied_by_landlock = any_lab.tier == "landlock" and name == "mknod device"
    assert told == ("ENOSYS" if name in absent else "EACCES" if denied_by_landlock else "EPERM")


def test_identity_of_an_execution(any_lab: Lab) -> None:
    code = """
        status = dict(line.split(":", 1) for line in open("/proc/self/status"))
        wanted = ("Uid", "CapEff", "CapPrm", "CapInh", "CapAmb", "NoNewPrivs", "Seccomp")
        print({key: status[key].split() for key in wanted})
    """
    status = _result_of(any_lab, code)
    assert isinstance(status, dict)
    assert "0" not in status["Uid"]
    assert all(int(status[name][0], 16) == 0 for name in ("CapEff", "CapPrm", "CapInh", "CapAmb"))
    assert status["NoNewPrivs"] == ["1"]
    assert status["Seccomp"] == ["2"]


@pytest.mark.skipif(os.geteuid() != 0, reason="nobody here is root")
@pytest.mark.skipif("fork-server" not in TIERS, reason="its server stays root")
def test_nothing_runs_as_root_of_the_host(lab: Lab) -> None:
    async def look() -> list[int]:
        workspace = await lab.sandbox.workspace()
        running = asyncio.ensure_future(workspace.run("import time; time.sleep(1)"))
        await asyncio.sleep(0.5)
        users = _users_of_servers_and_executions()
        await running
        workspace.close()
        return users

    users = lab.wait(look())
    assert len(users) >= 2
    assert 0 not in users


def _users_of_servers_and_executions() -> list[int]:
    below = [Path("/proc", str(pid)) for pid in descendants(os.getpid())]
    inside = [path for path in below if b"serve" in (path / "cmdline").read_bytes().split(b"\0")]
    return [int(re.findall(r"^Uid:\s+(\d+)", (path / "status").read_text(), re.M)[0]) for path in inside]


def test_set_uid_programs_gain_nothing(any_lab: Lab) -> None:
    code = """
        import subprocess
        done = subprocess.run(["/usr/bin/su", "-c", "id -u"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        print(done.returncode != 0 and "0" not in done.stdout)
    """
    assert any_lab.output(code) == "True\n"


# --- leaving traps and noise ------------------------------------------------------------------------------------------


def test_what_is_left_for_the_host_is_refused(any_lab: Lab) -> None:
    code = """
        import os
        os.mkfifo("pipe.csv")
        try:
            os.link("/usr/bin/env", "outside.csv")
            print("a hard link to a file of the host")
        except OSError:
            pass
        os.symlink("/etc/passwd", "link.csv")
        os.symlink("/etc", "folder")
        os.symlink("plain.csv", "inner.csv")
        open("plain.csv", "w").write("a,b")
        os.link("plain.csv", "second.csv")
        os.mkdir("real")
        open("real/file.csv", "w").write("x")
        os.mknod("socket.csv", 0o140666)
    """
    with any_lab.workspace() as workspace:
        result = any_lab.run_in(workspace, code)
        assert (result.outcome, result.stdout) == ("ok", ""), result.stderr
        assert result.created == {"plain.csv": 3, "real/file.csv": 1, "second.csv": 3}
        assert workspace.files() == result.created
        assert workspace.read("second.csv") == b"a,b"
        refused = [
            "pipe.csv",
            "link.csv",
            "inner.csv",
            "folder/passwd",
            "socket.csv",
            "../1",
            "/etc/passwd",
            "real",
            ".",
        ]
        for path in refused:
            with pytest.raises(OSError, match=r".") as caught:
                workspace.read(path)
            assert caught.value.errno != errno.ENOENT, path
        with pytest.raises(OSError, match="limit is 2"):
            workspace.read("plain.csv", limit=2)
        with pytest.raises(FileNotFoundError):
            workspace.read("absent.csv")
        with pytest.raises(OSError, match="folder"):
            workspace.put("folder/passwd", b"x")
        for path in ("pipe.csv", "link.csv", "inner.csv"):
            workspace.put(path, b"ours")
            assert workspace.read(path) == b"ours"
        assert workspace.read("plain.csv") == b"a,b"


def test_deleting_the_workspace(any_lab: Lab) -> None:
    with any_lab.workspace() as workspace:
        workspace.put("a/b.txt", b"1")
        any_lab.run_in(
            workspace, "import shutil, os; here = os.getcwd(); os.chdir('/'); shutil.rmtree(here, ignore_errors=True)"
        )
        assert workspace.files() == {}
        workspace.put("c.txt", b"2")
        assert any_lab.run_in(workspace, "print(open('c.txt').read())").stdout == "2\n"


def test_shutting_the_workspace(any_lab: Lab) -> None:
    with any_lab.workspace() as workspace:
        any_lab.run_in(
            workspace, "import os; open('a', 'w').write('1'); os.mkdir('d'); os.chmod('d', 0); os.chmod('.', 0)"
        )
        assert workspace.files() == {"a": 1}
        assert any_lab.run_in(workspace, "print(open('a').read())").stdout == "1\n"


def test_a_pickle_bomb_is_only_bytes(any_lab: Lab) -> None:
    code = """
        import os, pickle
        class Bomb:
            def __reduce__(self):
                return os.system, ("touch /tmp/exploded",)
        pickle.dump(Bomb(), open("model.pkl", "wb"))
    """
    with any_lab.workspace() as workspace:
        assert any_lab.run_in(workspace, code).outcome == "ok"
        assert workspace.read("model.pkl").startswith(b"\x80")
    assert not os.path.exists("/tmp/exploded")


def test_a_zip_bomb_meets_the_disk_limit(any_lab: Lab) -> None:
    code = """
        import zipfile
        with zipfile.ZipFile("bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("zeros", bytes(80 << 20))
        zipfile.ZipFile("bomb.zip").extractall()
    """
    assert any_lab.run(code).outcome == "disk-limit"


def test_reading_stdin_meets_its_end(any_lab: Lab) -> None:
    assert any_lab.run("input()").exception == "EOFError: EOF when reading a line"


def test_output_that_is_no_utf8(any_lab: Lab) -> None:
    result = any_lab.run("import sys; sys.stdout.buffer.write(bytes(range(256)) + 'ж'.encode())")
    assert result.outcome == "ok"
    assert result.stdout_bytes == 258
    assert result.stdout.endswith("�ж")


def test_closing_what_it_was_given(any_lab: Lab) -> None:
    result = any_lab.run("import os; os.closerange(0, 100); raise ValueError")
    assert result.outcome == "error"
    assert result.exit_code == 1


@pytest.mark.parametrize(
    ("code", "outcome", "exit_code"),
    [
        ("import ctypes; ctypes.string_at(0)", "killed", -11),
        ("import os; os._exit(7)", "error", 7),
        ("import os; os._exit(0)", "ok", 0),
        ("import sys; sys.exit()", "ok", 0),
        ("import sys; sys.exit(3)", "error", 3),
        ("import sys; sys.exit('no')", "error", 1),
        ("raise SystemExit(True)", "error", 1),
        ("raise KeyboardInterrupt", "error", 1),
    ],
)
def test_ways_to_end(any_lab: Lab, code: str, outcome: str, exit_code: int) -> None:
    result = any_lab.run(code)
    assert (result.outcome, result.exit_code) == (outcome, exit_code)


def test_abort(any_lab: Lab) -> None:
    result = any_lab.run("import os; os.abort()")
    assert result.outcome == "killed"


def test_a_traceback_of_a_megabyte(any_lab: Lab) -> None:
    result = any_lab.run("raise ValueError('begin' + 'x' * 1_000_000 + 'end')")
    assert result.outcome == "error"
    assert result.stderr_bytes > 1_000_000
    assert len(result.stderr) < (CONFIG.output_kb << 10) + 100
    assert result.stderr.startswith("Traceback")
    assert result.stderr.endswith("end\n")
    assert result.exception is not None
    assert result.exception.startswith("ValueError: begin")
    assert len(result.exception) <= 2000


def test_forged_reports_change_texts_only(any_lab: Lab) -> None:
    code = """
        import os
        os.write(3, b'{"exception": "Forged: yes", "line": 7, "kind": null, "outcome": "ok"}')
        os._exit(1)
    """
    result = any_lab.run(code)
    assert (result.outcome, result.exception, result.exception_line) == ("error", "Forged: yes", 7)
    result = any_lab.run("import os; os.write(3, b'\\xff{' * 50000); os._exit(1)", timeout=5)
    assert (result.outcome, result.exception) == ("error", None)
