"""The journal: everything comes back as it went in, and a journal that cannot be trusted is refused."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from mappa.errors import JournalError
from mappa.journal import Journal, read_episodes
from mappa.types import Action, Episode, Evidence, ExecutionResult, Outcome, Verdict

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


def fill(journal: Journal, id: str, step: int) -> Episode:
    begun = episode(id, step)
    journal.begin_episode(begun, "train")
    journal.add_action(id, 0, ACTION)
    assert ACTION.verdict is not None
    journal.add_verdict(id, 0, ACTION.verdict)
    ended = Episode(
        id=id,
        task="Boston",
        kind="regression",
        seed=7,
        step=step,
        actions=(ACTION,),
        outcome=Outcome(success=True, metrics={"score": 0.5}),
    )
    journal.end_episode(ended)
    return ended


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    path = tmp_path / "run" / "journal.sqlite"
    with Journal(path) as journal:
        ended = [fill(journal, f"1-Boston-{i}", 1) for i in range(3)]
    assert list(read_episodes(path)) == ended
    assert list(read_episodes(path, "base")) == []


def test_a_flush_is_on_disk_while_the_journal_is_open(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    with Journal(path) as journal:
        ended = fill(journal, "1-Boston-0", 1)
        journal.flush()
        assert list(read_episodes(path)) == [ended]


def test_steps_that_will_be_done_again_are_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    with Journal(path) as journal:
        kept = fill(journal, "1-Boston-0", 1)
        fill(journal, "2-Boston-0", 2)
        journal.forget_after(1)
    assert list(read_episodes(path)) == [kept]


def test_a_journal_of_another_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    Journal(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("update meta set value='99' where key='schema'")
    connection.close()
    with pytest.raises(JournalError, match="schema 99"):
        Journal(path)


def test_a_file_that_is_no_journal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    path.write_bytes(b"not a database, not at all" * 100)
    with pytest.raises(JournalError, match="cannot be opened as a journal"):
        Journal(path)
    with pytest.raises(JournalError, match="no journal at"):
        list(read_episodes(tmp_path / "missing.sqlite"))
