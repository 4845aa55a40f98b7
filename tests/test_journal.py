"""The journal: everything comes back as it went in, and a journal that cannot be trusted is refused."""

from __future__ import annotations

import os
import signal
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from mappa.cli import main
from mappa.config import Config
from mappa.errors import JournalError
from mappa.journal import (
    Journal,
    Observation,
    read_action,
    read_calls,
    read_config,
    read_episodes,
    read_reviews,
    read_spans,
)
from mappa.journal.codec import pack_ids, pack_logprobs, unpack_ids, unpack_logprobs
from mappa.types import Action, Episode, Evidence, ExecutionResult, Outcome, Verdict

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}

ACTION = Action(
    role="modeler",
    turn=0,
    adapter="modeler@3",
    prompt_ids=(1, 2, 3),
    output_ids=(4, 5),
    logprobs=(-0.5, -0.25),
    finish_reason="stop",
    text="```python\n1\n```",
    execution=ExecutionResult(outcome="ok", exit_code=0, created={"model.pkl": 10}),
    evidence=Evidence(success=True, facts={"model.pkl": True, "score": 0.5}),
    verdict=Verdict(score=8.0, reason="fine", coach="rubric@1"),
)


def episode(id: str, step: int) -> Episode:
    return Episode(id=id, task="Boston", kind="regression", seed=7, step=step)


OBSERVATION = Observation(
    code="1\n", execution=ACTION.execution, evidence=ACTION.evidence, files={"model.pkl": 10, "train.csv": 99}
)


def fill(journal: Journal, id: str, step: int) -> Episode:
    begun = episode(id, step)
    journal.begin_episode(begun, "train")
    journal.add_action(id, 0, ACTION)
    journal.add_result(id, 0, OBSERVATION)
    assert ACTION.verdict is not None
    journal.add_verdict(id, 0, ACTION.verdict)
    ended = replace(begun, actions=(ACTION,), outcome=Outcome(success=True, metrics={"score": 0.5}))
    journal.end_episode(ended)
    return ended


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    path = tmp_path / "run" / "journal.sqlite"
    with Journal(path) as journal:
        ended = [fill(journal, f"1-Boston-{i}", 1) for i in range(3)]
    assert list(read_episodes(path)) == ended
    assert list(read_episodes(path, step=1)) == ended
    assert list(read_episodes(path, "base")) == [] == list(read_episodes(path, step=2))


@pytest.mark.parametrize("largest", [65_535, 65_536, 151_935])
def test_ids_and_logprobs_are_kept_bit_for_bit(largest: int) -> None:
    ids = (0, 7, largest)
    assert unpack_ids(pack_ids(ids)) == ids
    singles = tuple(struct.unpack("f", struct.pack("f", value))[0] for value in (-0.1, -3e-7, -17.25))
    assert unpack_logprobs(pack_logprobs(singles)) == singles
    assert len(pack_logprobs(singles)) == 1 + 4 * 3
    doubles = (-0.1, -3e-7, -17.25)
    assert unpack_logprobs(pack_logprobs(doubles)) == doubles


def test_what_was_awaited_outlives_the_process(tmp_path: Path) -> None:
    """A process is killed the moment it has been told that its action is written."""
    path = tmp_path / "journal.sqlite"
    code = (
        "import asyncio, os, signal, sys\nfrom pathlib import Path\n"
        "from mappa.journal import Journal\nfrom tests.test_journal import ACTION, episode\n"
        "async def main():\n"
        "    journal = Journal(Path(sys.argv[1]))\n"
        "    journal.begin_episode(episode('1-Boston-0', 1), 'train')\n"
        "    journal.add_action('1-Boston-0', 0, ACTION)\n"
        "    await journal.written()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, env=ENVIRONMENT, check=False)
    assert done.returncode == -signal.SIGKILL
    assert list(read_episodes(path)) == []
    with Journal(path) as journal:
        (record,) = journal.recall("train", 1).values()
    assert record.state == "running"
    assert record.entries[0].action == replace(ACTION, execution=None, evidence=None, verdict=None)
    assert record.entries[0].observation is None


def test_nothing_is_written_twice(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    fill(journal, "1-Boston-0", 1)
    journal.flush()
    journal.add_action("1-Boston-0", 0, ACTION)
    with pytest.raises(JournalError, match=r"UNIQUE constraint failed: actions.episode"):
        journal.flush()
    with pytest.raises(JournalError):
        journal.close()


@pytest.mark.parametrize("name", ["a#b", "a?mode=rwc", "a%41b", "a b", "ü"])
def test_a_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name / "journal.sqlite"
    path.parent.mkdir()
    with Journal(path) as journal:
        ended = fill(journal, "1/Boston/0", 1)
    assert list(read_episodes(path)) == [ended]
    assert [found.name for found in tmp_path.iterdir()] == [name]  # reading makes no file beside it


def test_a_full_disk_is_a_typed_error_for_whoever_waits(tmp_path: Path) -> None:
    """The limit on the size of a file stands for a full disk: the same write fails."""
    code = (
        "import asyncio, resource, sys\nfrom pathlib import Path\nfrom mappa.errors import JournalError\n"
        "from mappa.journal import Journal\nfrom tests.test_journal import ACTION\n"
        "async def main():\n"
        "    journal = Journal(Path(sys.argv[1]))\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "    for index in range(10_000):\n"
        "        journal.add_action('1-Boston-0', index, ACTION)\n"
        "        await journal.written()\n"
        "try:\n    asyncio.run(main())\nexcept JournalError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "journal.sqlite")],
        cwd=ROOT,
        env=ENVIRONMENT,
        check=False,
        capture_output=True,
        text=True,
    )
    assert "cannot be written" in done.stdout and "free disk space" in done.stdout, done


def test_a_journal_of_another_config_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    Journal(path, Config(name="a", seed=1)).close()
    Journal(path, Config(name="a", seed=1)).close()
    assert read_config(path) == Config(name="a", seed=1)
    with pytest.raises(JournalError, match=r"seed: 1 -> 2\n.*--fresh"):
        Journal(path, Config(name="a", seed=2))


def test_a_journal_of_another_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    Journal(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("update meta set value='99' where key='schema'")
    connection.close()
    with pytest.raises(JournalError, match="schema 99"):
        Journal(path)


def damage(path: Path, tables: str) -> None:
    """Overwrite the first pages of some tables: the header, and what says whose journal it is, stay as they were."""
    connection = sqlite3.connect(path)
    (size,) = connection.execute("pragma page_size").fetchone()
    pages = connection.execute(f"select rootpage from sqlite_master where tbl_name in ({tables})").fetchall()
    connection.close()
    with path.open("r+b") as file:
        for (page,) in pages:
            file.seek((page - 1) * size)
            file.write(b"\xa5" * size)


@pytest.mark.parametrize(
    ("tables", "read"),
    [
        ("'episodes'", lambda path: list(read_episodes(path))),
        ("'actions'", lambda path: list(read_episodes(path))),
        ("'actions'", lambda path: read_action(path, "1-Boston-0", 0)),
        ("'spans'", read_spans),
        ("'calls'", read_calls),
        ("'reviews'", read_reviews),
    ],
)
def test_damage_behind_the_header_is_a_typed_error(tmp_path: Path, tables: str, read: Callable[[Path], object]) -> None:
    path = tmp_path / "journal.sqlite"
    with Journal(path) as journal:
        fill(journal, "1-Boston-0", 1)
    read(path)
    damage(path, tables)
    with pytest.raises(JournalError, match=r"cannot be read as a journal: .*; if it is damaged, move it away and run"):
        read(path)


def test_damage_is_a_typed_error_where_a_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    with Journal(path) as journal:
        fill(journal, "1-Boston-0", 1)
    damage(path, "'actions'")
    with Journal(path) as journal, pytest.raises(JournalError, match="cannot be read as a journal"):
        journal.recall("train", 1)


@pytest.mark.parametrize(("table", "column"), [("actions", "output"), ("actions", "logprobs"), ("verdicts", "data")])
def test_a_damaged_record_names_its_episode(tmp_path: Path, table: str, column: str) -> None:
    path = tmp_path / "journal.sqlite"
    with Journal(path) as journal:
        fill(journal, "1-Boston-0", 1)
    for damaged in (b"", b"\xc1\x00\x00"):
        with sqlite3.connect(path) as connection:
            connection.execute(f"update {table} set {column}=?", (damaged,))
        connection.close()
        with pytest.raises(JournalError, match="record of episode 1-Boston-0 is damaged"):
            list(read_episodes(path))


@pytest.mark.parametrize("command", [("trace", "-o"), ("report", "-o"), ("replay", "--out"), ("top", "--once")])
def test_a_command_says_in_one_line_that_a_journal_is_damaged(
    tmp_path: Path, command: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "journal.sqlite"
    with Journal(path, Config(name="a")) as journal:
        fill(journal, "1-Boston-0", 1)
    damage(path, "'episodes', 'spans', 'calls'")
    name, option = command
    out = [str(tmp_path / "out")] if option != "--once" else []
    assert main([name, str(tmp_path), option, *out]) == 2
    told = capsys.readouterr().err
    assert told.startswith("mappa: ") and "cannot be read as a journal" in told and len(told.splitlines()) == 1


@pytest.mark.parametrize("command", ["trace", "report"])
def test_a_command_says_where_it_cannot_write(tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with Journal(tmp_path / "journal.sqlite", Config(name="a")) as journal:
        fill(journal, "1-Boston-0", 1)
    out = tmp_path / "journal.sqlite" / "x"
    assert main([command, str(tmp_path), "-o", str(out)]) == 2
    assert f"mappa: {out} cannot be written: " in (told := capsys.readouterr().err) and "with -o" in told


def test_a_file_that_is_no_journal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    path.write_bytes(b"not a database, not at all" * 100)
    with pytest.raises(JournalError, match="cannot be opened as a journal"):
        Journal(path)
    with pytest.raises(JournalError, match="no journal at"):
        list(read_episodes(tmp_path / "missing.sqlite"))
