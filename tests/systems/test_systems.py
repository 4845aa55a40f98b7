"""Systems: how they are found and refused, and what the data-science team asks of its roles."""

from __future__ import annotations

import random
import re
import sys
from pathlib import Path

import pytest

from mappa.errors import TeamError
from mappa.systems import chat, load_system, python_block
from mappa.systems.datascience import DataScienceTeam


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mappa.systems.datascience", "not of the form"),
        ("no.such.module:Team", "cannot be imported"),
        ("mappa.systems.datascience:NoTeam", "has no 'NoTeam'"),
        ("tests.teams:NoRoles", "has no roles"),
        ("tests.teams:TwiceTeam", "names the role 'data_engineer' twice"),
    ],
)
def test_a_system_that_cannot_be_used_is_refused(name: str, message: str) -> None:
    with pytest.raises(TeamError, match=message):
        load_system(name)


MINE = """
from mappa.systems import Role, system

@system(Role(name="one", prompt=""))
async def team(stage): ...
"""


def test_a_module_in_the_current_folder_is_found_however_mappa_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_own_team.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [name for name in sys.path if name])
    assert [role.name for role in load_system("my_own_team:team").roles] == ["one"]


def test_a_file_may_have_the_name_of_a_module(tmp_path: Path) -> None:
    (tmp_path / "random.py").write_text(MINE)
    load_system(f"{tmp_path}/random.py:team")
    assert sys.modules["random"] is random


def test_the_data_science_team_hands_on_what_the_next_needs() -> None:
    team = load_system("mappa.systems.datascience:DataScienceTeam")
    made: set[str] = set()
    for role in team.roles:
        assert set(role.needs) <= made
        made |= set(role.produces)
    assert "submission.csv" in made


def test_worked_examples_stop_generation_where_they_end() -> None:
    for role in DataScienceTeam.roles:
        assert role.stop is not None
        for _, answer in role.examples:
            found = re.search(role.stop, answer)
            assert found is not None and found.end() == len(answer)
            assert python_block(answer)


def test_examples_are_past_turns() -> None:
    role = DataScienceTeam.roles[0]
    messages = chat(role, "Target: y (regression).")
    assert [m.role for m in messages] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert messages[-1].content == "Target: y (regression)."


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("```python\nx = 1\n```", "x = 1\n"),
        ("Here:\n```py\nx = 1\n```\nand\n```python\ny\n```", "x = 1\n"),
        ("```\nx = 1", "x = 1"),
        ("```python\n\n```", None),
        ("x = 1", None),
        ("", None),
    ],
)
def test_the_first_block_counts_closed_or_not(text: str, code: str | None) -> None:
    assert python_block(text) == code
