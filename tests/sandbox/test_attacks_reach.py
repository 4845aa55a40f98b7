"""What model-written code may reach: network, files, processes and secrets of others, on every tier."""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
import textwrap
from pathlib import Path

import pytest

import mappa.sandbox.process
from mappa.config import SandboxConfig
from tests.sandbox.conftest import SECRET, TIERS, Lab, descendants, on_tiers


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
    assert any_lab.literal(code) == 18


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
    assert any_lab.literal(code) == []


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
        assert any_lab.literal(code) == []


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
    found = any_lab.literal(code)
    assert isinstance(found, int)
    assert found >= 1


def test_the_trainers_environment_is_nowhere(any_lab: Lab) -> None:
    assert os.environ["MAPPA_TEST_SECRET"] == SECRET
    assert "MAPPA_TEST_SECRET" not in any_lab.output(
        "import os; print(dict(os.environ), open('/proc/self/environ').read())"
    )
    assert any_lab.literal(_search_own_memory(SECRET)) == 0


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
        assert lab.literal(_search_own_memory(planted)) == 0
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
    assert any_lab.literal(_search_own_memory(mark)) == 0


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
    assert any_lab.literal(code) == []


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
