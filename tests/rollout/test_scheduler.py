"""The rollout loop in virtual time: what overlaps, what is bounded, what is cut, what is found again."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from msgspec.structs import replace

from bench.parts.rollout_simulation import Text
from mappa.errors import JournalError, ServerError
from mappa.journal import Journal, read_episodes, read_spans
from mappa.rollout.samples import samples_of, staleness
from mappa.rollout.scheduler import Scheduler
from mappa.systems import Stage
from mappa.types import Episode, Message
from tests.rollout.parts import ROLES, World, batch, play, requests, scheduler, services


async def _run(world: World, journal: Journal, folder: Path, count: int, **settings: float) -> list[Episode] | None:
    loop = scheduler(services(world, journal))
    loop.begin(batch(journal, folder, count, **settings))  # type: ignore[arg-type]
    return await loop.finish("1")


def test_the_coach_works_while_the_next_turn_generates_and_episodes_overlap(tmp_path: Path) -> None:
    async def story(journal: Journal) -> None:
        world = World()
        episodes = await _run(world, journal, tmp_path, 20)
        # Four actions of 5 s and 2 s, and 3 s for the last verdict: everything else lies within.
        assert asyncio.get_running_loop().time() == pytest.approx(4 * 7 + 3)
        assert world.most == 20
        assert episodes is not None and [e.id for e in episodes] == [f"1-{index}" for index in range(20)]
        for episode in episodes:
            assert [(a.role, a.turn) for a in episode.actions] == [(r.name, t) for t in range(2) for r in ROLES]
            assert all(action.verdict is not None for action in episode.actions)

    play(tmp_path, story)
    kinds = [span.kind for span in read_spans(tmp_path / "journal.sqlite")]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == dict.fromkeys(("queue", "generate", "tool", "coach"), 80)


def test_tokens_in_flight_are_bounded_and_a_request_larger_than_the_bound_goes_alone(tmp_path: Path) -> None:
    async def story(journal: Journal) -> None:
        for tokens, most in ((3 * 1124, 3), (3 * 1124 - 1, 2), (1, 1)):  # 1,024 of a prompt and 100 to write
            world = World()
            parts = services(world, journal, tokens=tokens)
            loop = scheduler(parts)
            loop.begin(batch(journal, tmp_path, 5, step=most))
            episodes = await loop.finish(str(most))
            assert world.most == most and parts.budget.used == 0
            assert episodes is not None and len(samples_of(episodes, group_by="role")) == 20

    play(tmp_path, story)


def test_the_step_that_the_learner_waits_for_goes_first(tmp_path: Path) -> None:
    """One place for all: step 1 comes last and is served before step 3."""

    async def story(journal: Journal) -> list[str]:
        world = World(tool=lambda code: 0.0)
        loop = scheduler(services(world, journal, tokens=1124))
        for step in (2, 3, 1):
            loop.begin(batch(journal, tmp_path, 1, step=step))
            await asyncio.sleep(0.1)
        for step in (1, 2, 3):
            await loop.finish(str(step))
        return [request.split("/")[0] for request in world.order]

    order = play(tmp_path, story)
    assert order[0] == "2-0" and order[8:] == ["3-0"] * 4 and "1-0" in order[1:3]


@pytest.mark.parametrize(("longest_first", "expected"), [(True, "ACBCBCACBABA"), (False, "ABCABCABCABC")])
def test_longest_remaining_work_goes_first(tmp_path: Path, longest_first: bool, expected: str) -> None:
    """One place for three; C is known to take three times as long as A and B."""

    async def story(journal: Journal) -> str:
        world = World(tool=lambda code: 0.0)
        parts = services(world, journal, tokens=1124, longest_first=longest_first)
        for task, seconds in (("1-0", 20.0), ("1-1", 20.0), ("1-2", 60.0)):
            for _ in range(20):
                parts.work.learn(task, 4, seconds)
        loop = scheduler(parts)
        loop.begin(batch(journal, tmp_path, 3))
        await loop.finish("1")
        return "".join("ABC"[int(request[2])] for request in world.order)

    assert play(tmp_path, story) == expected


def test_no_action_is_staler_than_its_batch_allows(tmp_path: Path) -> None:
    """Three steps begun at once with staleness 1: the third waits for version 1, and crosses a publish within."""

    async def story(journal: Journal) -> None:
        parts = services(World(), journal)
        loop = scheduler(parts)
        for step in (1, 2, 3):
            loop.begin(batch(journal, tmp_path, 4, step=step, oldest=step - 1 - 1))
        first = await loop.finish("1")
        parts.published.set(1, {role.name: f"{role.name}@1" for role in ROLES})
        second = await loop.finish("2")
        await asyncio.sleep(10)  # the third step is under way
        parts.published.set(2, {role.name: f"{role.name}@2" for role in ROLES})
        third = await loop.finish("3")
        assert first is not None and second is not None and third is not None
        seen = [{staleness(e, action) for e in step for action in e.actions} for step in (first, second, third)]
        assert seen == [{0}, {1}, {0, 1}]
        assert {action.adapter for action in third[0].actions} == {"writer@1", "critic@1", "writer@2", "critic@2"}

    play(tmp_path, story)


def test_a_straggler_is_cut_and_what_it_had_scored_is_learned_from(tmp_path: Path) -> None:
    async def story(journal: Journal) -> list[Episode] | None:
        world = World(generate=lambda id: 1000.0 if id == "1-1/critic/1" else 5.0)
        return await _run(world, journal, tmp_path, 3, deadline=100)

    episodes = play(tmp_path, story)
    assert [(e.cut, e.error, e.outcome is None) for e in episodes] == [
        (False, None, False), (True, None, True), (False, None, False)
    ]  # fmt: skip
    assert len(samples_of(episodes, group_by="role")) == 4 + 3 + 4
    kept = list(read_episodes(tmp_path / "journal.sqlite"))
    assert samples_of(kept, group_by="role") == samples_of(episodes, group_by="role")


def test_an_action_that_was_not_scored_before_the_cut_is_left_out(tmp_path: Path) -> None:
    async def story(journal: Journal) -> list[Episode] | None:
        return await _run(World(coach=lambda episode: 11.0), journal, tmp_path, 1, deadline=20)

    (episode,) = play(tmp_path, story)
    assert episode.cut and len(episode.actions) == 3  # the first was scored at 18 s
    assert [sample.source for sample in samples_of([episode], group_by="role")] == ["1-0/writer/0"]


def test_an_episode_that_fails_is_lost_with_its_reason_and_the_others_are_not(tmp_path: Path) -> None:
    async def story(journal: Journal) -> list[Episode] | None:
        world = World()
        world.broken.add("1-0/critic/0")
        return await _run(world, journal, tmp_path, 2)

    lost, kept = play(tmp_path, story)
    assert lost.error == "SamplerError: no answer for 1-0/critic/0" and kept.error is None
    assert {sample.source[:3] for sample in samples_of([lost, kept], group_by="role")} == {"1-1"}


def test_when_no_server_is_left_the_run_stops_and_no_episode_is_lost(tmp_path: Path) -> None:
    world = World()

    async def first(journal: Journal) -> None:
        world.gone = True
        await _run(world, journal, tmp_path, 3)

    async def second(journal: Journal) -> list[Episode] | None:
        world.gone = False
        return await _run(world, journal, tmp_path, 3)

    with pytest.raises(ServerError, match="lost for good"):
        play(tmp_path, first)
    assert [episode.error for episode in play(tmp_path, second)] == [None] * 3


def test_a_drained_batch_begins_nothing_more_and_goes_on_later(tmp_path: Path) -> None:
    world = World(generate=lambda id: 2.0 + len(id) % 3 + random.Random(id).random() * 5)

    async def first(journal: Journal) -> None:
        loop = scheduler(services(world, journal, tokens=3 * 1124))
        loop.begin(batch(journal, tmp_path, 6))
        await asyncio.sleep(20)
        loop.drain()
        under_way = len(world.order)
        assert await loop.finish("1") is None
        assert len(world.order) == under_way and sum(world.generated.values()) == under_way

    async def second(journal: Journal) -> list[Episode] | None:
        return await _run(world, journal, tmp_path, 6)

    play(tmp_path, first)
    assert 0 < sum(world.generated.values()) < 24
    episodes = play(tmp_path, second)
    assert len(episodes) == 6
    assert world.generated == dict.fromkeys(requests(1, 6), 1) == world.scored


def test_what_a_stopped_coach_left_unscored_is_scored_when_the_run_goes_on(tmp_path: Path) -> None:
    """Nothing is lost, and nothing is generated or run a second time."""

    async def story(journal: Journal) -> None:
        world = World()
        loop = scheduler(services(world, journal))
        loop.begin(batch(journal, tmp_path, 3))
        await asyncio.sleep(12)  # the first turns are scored
        world.stopped = "its budget is spent"
        assert await loop.finish("1") is None
        scored = dict(world.scored)
        world.stopped = None
        episodes = await _run(world, journal, tmp_path, 3)
        assert episodes is not None and all(a.verdict is not None for e in episodes for a in e.actions)
        assert 0 < len(scored) < 12 and set(world.scored.values()) == set(world.generated.values()) == {1}

    play(tmp_path, story)
    assert [episode.error for episode in read_episodes(tmp_path / "journal.sqlite")] == [None] * 3


@pytest.mark.parametrize("seed", range(6))
def test_stopped_anywhere_and_run_again_nothing_is_bought_twice(tmp_path: Path, seed: int) -> None:
    """The loop is torn down at random moments. What was journaled is not asked for again; code is run again only for
    episodes that still need a workspace; the samples are those of a run that was never stopped."""
    draw = random.Random(seed)

    async def whole(journal: Journal) -> list[Episode] | None:
        return await _run(World(), journal, tmp_path / "whole", 5)

    world = World()

    async def part(journal: Journal, seconds: float) -> list[Episode] | None:
        parts = services(world, journal)
        loop = scheduler(parts)
        loop.begin(batch(journal, tmp_path, 5))
        waiting = asyncio.create_task(loop.finish("1"))
        done, _ = await asyncio.wait([waiting], timeout=seconds)
        if done:
            return waiting.result()
        waiting.cancel()
        await loop.close()
        return None

    expected = play(tmp_path / "whole", whole)
    episodes, stops = None, 0
    while episodes is None:
        seconds = draw.uniform(1, 20) if stops < 5 else 1e6
        episodes = play(tmp_path, lambda journal, seconds=seconds: part(journal, seconds))  # type: ignore[misc]
        stops += 1
    assert stops > 1
    assert samples_of(episodes, group_by="role") == samples_of(expected, group_by="role")
    assert list(read_episodes(tmp_path / "journal.sqlite")) == episodes
    assert world.generated == dict.fromkeys(requests(1, 5), 1)
    assert set(world.scored.values()) == {1}


def test_a_workspace_that_was_lost_is_filled_by_the_journaled_code_and_differences_are_counted(tmp_path: Path) -> None:
    world = World()

    async def first(journal: Journal) -> None:
        loop = scheduler(services(world, journal))
        loop.begin(batch(journal, tmp_path, 1))
        await asyncio.sleep(17.0)  # two actions are done, the third is being generated
        await loop.close()

    async def second(journal: Journal) -> tuple[Episode, object]:
        loop = scheduler(services(world, journal))
        loop.begin(batch(journal, tmp_path, 1))
        episodes = await loop.finish("1")
        assert episodes is not None
        return episodes[0], loop.count

    play(tmp_path, first)
    episode, count = play(tmp_path, second)
    ran = episode.actions[-1].execution.stdout.split(" | ")
    assert ran == [f"1-0 {role.name} {turn}" for turn in range(2) for role in ROLES]  # as if never interrupted
    assert (count.recalled, count.replayed, count.differed) == (2, 2, 0)
    assert world.executed["1-0 writer 0"] == 2 and world.executed["1-0 writer 1"] == 1


def test_another_system_does_not_go_on_with_the_journal_of_the_first(tmp_path: Path) -> None:
    async def first(journal: Journal) -> None:
        loop = scheduler(services(World(), journal))
        loop.begin(batch(journal, tmp_path, 1))
        await asyncio.sleep(17.0)
        await loop.close()

    class Reversed:
        roles = ROLES[::-1]

        async def run(self, stage: object) -> None:
            for role in self.roles:
                await stage.act(role, [])  # type: ignore[attr-defined]

    async def second(journal: Journal) -> None:
        loop = Scheduler(Reversed(), services(World(), journal))
        loop.begin(batch(journal, tmp_path, 1))
        await loop.finish("1")

    play(tmp_path, first)
    with pytest.raises(JournalError, match=r"episode 1-0 cannot go on: .* --fresh"):
        play(tmp_path, second)


def test_parallel_branches_of_one_role_are_found_again_in_whatever_order_they_come(tmp_path: Path) -> None:
    """Two chains of the same role; their first actions are asked different things and end in any order."""

    class Branches:
        roles = ROLES[:1]

        async def run(self, stage: Stage) -> None:
            async with asyncio.TaskGroup() as group:
                for branch in ("a", "b"):
                    group.create_task(self._chain(stage, branch))

        async def _chain(self, stage: Stage, branch: str) -> None:
            for turn in range(2):
                await stage.act(self.roles[0], [Message("user", f"{branch}{turn}")], code=lambda text: branch)

    class Exact(Text):
        def prompt_ids(self, messages: list[Message]) -> tuple[int, ...]:
            return tuple(messages[0].content.encode())

    def loop(journal: Journal, world: World) -> Scheduler:
        return Scheduler(Branches(), replace(services(world, journal), base=Exact()))

    async def first(journal: Journal) -> None:
        parts = loop(journal, World(generate=lambda id: 20.0 if id.endswith("/0") else 5.0))  # b is ahead of a
        parts.begin(batch(journal, tmp_path, 1))
        await asyncio.sleep(18.0)
        await parts.close()

    async def second(journal: Journal) -> list[Episode]:
        parts = loop(journal, again)
        parts.begin(batch(journal, tmp_path, 1))
        return await parts.finish("1") or []

    again = World()
    play(tmp_path, first)
    (episode,) = play(tmp_path, second)
    assert episode.error is None and len(episode.actions) == 4
    assert sorted(bytes(action.prompt_ids) for action in episode.actions) == [b"a0", b"a1", b"b0", b"b1"]
    assert again.generated.total() == 2, "both of b were in the journal"
    assert sorted(action.turn for action in episode.actions) == [0, 1, 2, 3]


def test_a_stop_in_parallel_roles_is_no_failure_of_the_episode(tmp_path: Path) -> None:
    class Together:
        roles = ROLES

        async def run(self, stage: Stage) -> None:
            for _ in range(2):
                async with asyncio.TaskGroup() as group:
                    for role in self.roles:
                        group.create_task(stage.act(role, []))

    async def stopped(journal: Journal) -> None:
        loop = Scheduler(Together(), services(World(), journal))
        loop.begin(batch(journal, tmp_path, 1))
        await asyncio.sleep(3.0)
        loop.drain()
        assert await loop.finish("1") is None

    async def resumed(journal: Journal) -> list[Episode]:
        loop = Scheduler(Together(), services(World(), journal))
        loop.begin(batch(journal, tmp_path, 1))
        return await loop.finish("1") or []

    play(tmp_path, stopped)
    (episode,) = play(tmp_path, resumed)
    assert episode.error is None and len(episode.actions) == 4
