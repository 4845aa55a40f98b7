"""The other coaches, and the journal as the place where replies are kept."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from bench.parts.coach_server import VERDICT, Server
from mappa.coach import EnsembleCoach, ReplayCoach, RubricCoach, load_coach
from mappa.coach.canary import sing
from mappa.coach.context import ActionContext
from mappa.coach.store import Purchase, Spending
from mappa.config import ChatConfig, CoachConfig
from mappa.errors import CoachError, ConfigError
from mappa.journal import Journal
from mappa.rollout.purchases import JournalStore
from mappa.types import Episode, Missing, Verdict

from .scenarios import MODELER, SCENARIOS, TABULAR, contexts

CONTEXT = contexts(SCENARIOS[9])[1]


class Fixed:
    """Gives one score, or none."""

    def __init__(self, score: float | None, missing: Missing | None = None) -> None:
        self.name = f"fixed {score}"
        self.stopped = "its budget is spent" if missing == "budget" else None
        self.closed = False
        self._verdict = Verdict(score=score, reason=f"because {score}", coach=self.name, missing=missing)

    async def score(self, context: ActionContext) -> Verdict:
        return self._verdict

    async def close(self) -> None:
        self.closed = True


def together(*members: Fixed, quorum: float = 0.5) -> Verdict:
    return asyncio.run(EnsembleCoach(members, quorum=quorum).score(CONTEXT))


# --- ensemble --------------------------------------------------------------------------------------------------------


def test_members_that_agree_give_their_mean() -> None:
    found = together(Fixed(8), Fixed(7), Fixed(1))
    assert found.score == 7.5 and found.reason == "because 7", "the one nearest the median speaks for all"
    assert found.evidence["agreement"] == pytest.approx(2 / 3) and found.evidence["spread"] == 7


def test_too_few_that_agree_give_nothing() -> None:
    found = together(Fixed(9), Fixed(5), Fixed(1), quorum=0.5)
    assert (found.score, found.missing) == (None, "disagreement") and "1, 5, 9" in found.reason


def test_missing_members_are_left_out_and_all_missing_is_missing() -> None:
    found = together(Fixed(8), Fixed(None, "deadline"))
    assert found.score == 8 and found.evidence["agreement"] == 0.5
    found = together(Fixed(None, "deadline"), Fixed(None, "malformed"))
    assert (found.score, found.missing) == (None, "deadline")


@pytest.mark.parametrize("quorum", [0.34, 1.0])
def test_a_quorum_is_of_all_members_and_a_silent_one_does_not_agree(quorum: float) -> None:
    found = together(Fixed(9), Fixed(None, "unavailable"), Fixed(None, "deadline"), quorum=quorum)
    assert (found.score, found.missing) == (None, "unavailable")
    assert found.reason == "2 of 3 members gave no score; one of them: because None"
    found = together(Fixed(9), Fixed(1), Fixed(None, "deadline"), quorum=quorum)
    assert (found.score, found.missing) == (None, "disagreement") and "1, 9" in found.reason


def test_an_ensemble_of_the_rubric_alone_is_none() -> None:
    with pytest.raises(ConfigError, match=r"name them in \[coach.member.NAME\]"):
        load_coach(CoachConfig(kind="ensemble"))


def test_a_spent_budget_stops_them_all() -> None:
    members = (Fixed(8), Fixed(None, "budget"))
    assert together(*members).missing == "budget"
    ensemble = EnsembleCoach(members)
    assert ensemble.stopped == "its budget is spent"
    asyncio.run(ensemble.close())
    assert all(member.closed for member in members)
    with pytest.raises(CoachError, match="no members"):
        EnsembleCoach(())


def test_one_member_that_can_be_fooled_shows_in_the_canaries() -> None:
    songs = asyncio.run(sing(EnsembleCoach((Fixed(1), Fixed(1), Fixed(9))), TABULAR, MODELER, "1"))
    assert all(song.score == 1 and song.raw == 9 and song.fooled for song in songs)


def test_an_ensemble_from_the_config(server: Server) -> None:
    config = CoachConfig(kind="ensemble", member={"small": ChatConfig(url=server.url, model="m", hedge=0.0)})

    async def work() -> Verdict:
        coach = load_coach(config)
        try:
            return await coach.score(CONTEXT)
        finally:
            await coach.close()

    server.script(content=VERDICT.replace("8}", "9}"))
    assert asyncio.run(work()).score == 9.5, "the rubric's 10 and the model's 9"


# --- replay ----------------------------------------------------------------------------------------------------------


def test_a_replay_gives_the_verdict_of_exactly_that_action() -> None:
    scored = replace(CONTEXT.action, verdict=Verdict(score=7.0, reason="then", coach="then@1"))
    episode = Episode(id="1", task=CONTEXT.task.id, kind="regression", seed=0, step=1, actions=(scored,))
    coach = ReplayCoach([episode])
    assert asyncio.run(coach.score(CONTEXT)) == scored.verdict
    for other in (
        replace(CONTEXT, action=replace(CONTEXT.action, output_ids=(3,))),
        replace(CONTEXT, task=replace(CONTEXT.task, id="another")),
    ):
        found = asyncio.run(coach.score(other))
        assert (found.score, found.missing) == (None, "not-recorded")


def test_a_replay_needs_a_journal() -> None:
    with pytest.raises(ConfigError, match="needs coach.replay"):
        load_coach(CoachConfig(kind="replay"))


# --- the journal as a store ------------------------------------------------------------------------------------------


def test_what_is_bought_is_found_by_the_next_process_and_counts(tmp_path: Path) -> None:
    bought = Purchase(text=VERDICT, tokens_in=800, tokens_out=60, dollars=0.002, finish_reason="stop", model="m")

    async def buy(journal: Journal) -> None:
        store = JournalStore(journal)
        assert await store.find("a") is None and store.spent() == Spending()
        await store.keep("a", bought)
        assert await store.find("a") == bought

    async def go_on(journal: Journal) -> None:
        store = JournalStore(journal)
        assert await store.find("a") == bought and await store.find("b") is None
        assert store.spent() == Spending(860, 0.002)

    for work in (buy, go_on):
        with Journal(tmp_path / "journal.sqlite") as journal:
            asyncio.run(work(journal))


def in_processes_of_their_own(config: CoachConfig, folder: Path, readings: str) -> list[Verdict]:
    """A verdict for each of these one-letter readings, every one from a journal and a coach that are opened anew."""

    async def work(journal: Journal, reading: str) -> Verdict:
        coach = load_coach(config, store=JournalStore(journal))
        try:
            return await coach.score(replace(CONTEXT, reading=reading))
        finally:
            await coach.close()

    found = []
    for reading in readings:
        with Journal(folder / "journal.sqlite") as journal:
            found.append(asyncio.run(work(journal, reading)))
    return found


def test_a_budget_counts_what_earlier_processes_spent(tmp_path: Path, server: Server) -> None:
    config = CoachConfig(kind="llm", budget_tokens=4500, chat=ChatConfig(url=server.url, model="m", hedge=0.0))
    server.script(tokens=2000)

    found = in_processes_of_their_own(config, tmp_path, "121")
    assert [v.missing for v in found] == [None, "budget", None], "the third is kept, and costs nothing"


def test_a_budget_counts_what_earlier_processes_paid_for_no_reply(tmp_path: Path, server: Server) -> None:
    """A model that thinks until its limit gives no text, and is billed."""
    chat = ChatConfig(url=server.url, model="m", hedge=0.0, max_tokens=700)
    config = CoachConfig(kind="llm", budget_tokens=4500, chat=chat)
    silent = {"choices": [{"message": {"content": None}, "finish_reason": "length"}]}
    server.script(body=json.dumps({**silent, "usage": {"prompt_tokens": 1300, "completion_tokens": 700}}))

    found = in_processes_of_their_own(config, tmp_path, "123")
    assert [v.missing for v in found] == ["refused", "refused", "budget"]
    with Journal(tmp_path / "journal.sqlite") as journal:
        assert JournalStore(journal).spent() == Spending(4000)


def test_a_rubric_that_is_not_there_is_named() -> None:
    with pytest.raises(CoachError, match="no rubric at own.toml"):
        RubricCoach(("own.toml",))
