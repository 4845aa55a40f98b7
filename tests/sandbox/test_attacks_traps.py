"""What model-written code may leave behind or shut, print and report, on every tier."""

from __future__ import annotations

import errno
import os

import pytest

from tests.sandbox.conftest import CONFIG, Lab


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
