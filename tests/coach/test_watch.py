"""What a run does about its coach: nothing by default, and with each switch what it says."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from statistics import fmean

import pytest
import torch
from msgspec.structs import replace

from mappa.coach import ActionContext, ReplayCoach, RubricCoach
from mappa.coach.matching import Scored, matched_gap
from mappa.coach.probe import ANCHORS, Probe, Probed, anchors_of, probe
from mappa.coach.watch import Kept, Watch, Watched
from mappa.config import CoachConfig
from mappa.rollout.samples import samples_of
from mappa.types import Action, Episode, Evidence, Outcome, Verdict
from mappa_kernels import process_advantage

from .scenarios import ENGINEER, MODELER, SCENARIOS, TABULAR, Scenario, contexts

KINDS = ("regression", "classification")
MONITORED = CoachConfig()


def judged(scenario: Scenario) -> Watched:
    """A scenario as an ended episode with the rubric's verdicts."""
    found = contexts(scenario)
    verdicts = [asyncio.run(RubricCoach().score(context)) for context in found]
    actions = tuple(replace(c.action, verdict=v) for c, v in zip(found, verdicts, strict=True))
    episode = Episode(
        id=scenario.name, task=scenario.task.id, kind=scenario.task.kind, seed=0, step=1, actions=actions,
        outcome=Outcome(success=False),
    )  # fmt: skip
    return Watched(episode, tuple(found))


def simulated(seed: int, bias: float, step: int, count: int = 96) -> Iterator[Watched]:
    """Episodes of one action each, whose coach favours regression by `bias` points."""
    rng = random.Random(f"{seed}/{step}")
    for place in range(count):
        kind = rng.choice(KINDS)
        quality = rng.betavariate(2.2 if kind == "regression" else 1.5, 1.5)
        score = min(10.0, max(0.0, 1 + 7 * quality + rng.gauss(0, 1.2) + bias * (kind == "regression")))
        action = Action(
            role="modeler", turn=0, adapter="modeler@0", prompt_ids=(1,), output_ids=(2, 3), logprobs=(-0.1, -0.1),
            finish_reason="stop", text="", verdict=Verdict(score=score, reason="", coach="simulated"),
            evidence=Evidence(success=quality > 0.4, facts={"normalised": quality}),
        )  # fmt: skip
        name = f"{step}-{place}"
        task = f"{kind}{rng.randrange(16)}"
        yield Watched(Episode(id=name, task=task, kind=kind, seed=0, step=step, actions=(action,)), ())


def advantages(watched: list[Watched], rewards: list[float]) -> dict[str, list[Scored]]:
    """By kind, what the learner makes of the rewards when it normalises over the role, in standard deviations."""
    count = len(rewards)
    offsets, groups = torch.arange(0, 2 * count + 1, 2), torch.zeros(count, dtype=torch.int64)
    found, _ = process_advantage(torch.tensor(rewards), offsets, groups)
    rows: dict[str, list[Scored]] = {kind: [] for kind in KINDS}
    for one, advantage in zip(watched, found[::2].tolist(), strict=True):
        evidence = one.episode.actions[0].evidence
        assert evidence is not None
        quality = evidence.facts["normalised"]
        assert isinstance(quality, float)
        rows[one.episode.kind].append(
            Scored(task=one.episode.task, score=advantage, quality=quality, success=evidence.success)
        )
    return rows


def gap_of_advantages(seed: int, bias: float, config: CoachConfig) -> tuple[float, float]:
    """After five steps: the gap between kinds in the advantages of equal outcomes, and what was taken off."""
    watch, all_of, rewards = Watch(config), [], []
    for step in range(1, 6):
        watched = list(simulated(seed, bias, step))
        review = watch.review(step, watched, Probed())
        all_of += watched
        rewards = [
            s.rewards[0] for s in samples_of([w.episode for w in all_of], group_by="role", offsets=review.offsets)
        ]
    rows = advantages(all_of, rewards)
    gap = matched_gap(rows["regression"], rows["classification"])
    assert gap is not None
    taken = [review.offsets.get(("modeler", kind), 0.0) for kind in KINDS]
    return gap.size, taken[0] - taken[1]


def test_by_default_no_score_changes() -> None:
    watched = [judged(scenario) for scenario in SCENARIOS] + list(simulated(1, 1.0, 1))
    before = samples_of([one.episode for one in watched], group_by="role")
    for config in (CoachConfig(), CoachConfig(monitor=False)):
        review = Watch(config).review(1, watched, Probed())
        assert review.episodes == [one.episode for one in watched] and not review.offsets
        assert samples_of(review.episodes, group_by="role", offsets=review.offsets) == before


def test_the_correction_takes_a_planted_bias_out_of_the_advantages() -> None:
    config = CoachConfig(correct="offset")
    raw = [gap_of_advantages(seed, 1.0, CoachConfig())[0] for seed in range(10)]
    put_right = [gap_of_advantages(seed, 1.0, config)[0] for seed in range(10)]
    assert min(raw) > 0.25 and max(map(abs, put_right)) < 0.1
    changes = [gap_of_advantages(seed, 0.0, config)[1] for seed in range(20, 40)]
    assert abs(fmean(changes)) < 0.1 and sum(abs(change) > 0.25 for change in changes) <= 1


def test_retrospect_is_a_switch() -> None:
    watched = [judged(SCENARIOS[0])]
    episode = Watch(CoachConfig(retrospect=True)).review(1, watched, Probed()).episodes[0]
    scores = [action.verdict.score for action in episode.actions if action.verdict is not None]
    assert scores == [step.in_the_end for step in SCENARIOS[0].steps]
    cut = replace(watched[0].episode, outcome=None, cut=True)
    assert Watch(CoachConfig(retrospect=True)).review(1, [replace(watched[0], episode=cut)], Probed()).episodes == [cut]


def test_a_watch_is_rebuilt_from_what_was_kept() -> None:
    config = CoachConfig(correct="offset", memory=True)
    anchors = {f"a{n}": 5.0 + n % 3 for n in range(24)}
    whole, rebuilt = Watch(config), Watch(config)
    for step in range(1, 5):
        moved = {name: score + 0.2 * step for name, score in anchors.items()}
        probed = Probed(anchors=moved, repeats=((5.0, 6.0),))
        last = whole.review(step, list(simulated(3, 1.0, step)), probed)
        if step < 4:
            rebuilt.recall(step, last.kept)
    again = rebuilt.review(4, list(simulated(3, 1.0, 4)), probed)
    assert again == last and last.offsets and last.alarms
    assert whole.standing(5, "modeler", "regression") == rebuilt.standing(5, "modeler", "regression") is not None


def test_an_alarm_is_news_once() -> None:
    watch = Watch(MONITORED)
    reviews = [watch.review(step, list(simulated(4, 2.0, step)), Probed()) for step in range(1, 8)]
    assert sum(alarm.about == "gap" for review in reviews for alarm in review.alarms) > 1
    assert sum(alarm.about == "gap" for review in reviews for alarm in review.news) == 1


def test_a_memory_lags_as_far_as_episodes_may_run_ahead() -> None:
    watch = Watch(CoachConfig(memory=True), lag=1)
    for step in (1, 2, 3):
        watch.review(step, list(simulated(5, 0.0, step)), Probed())
    counts = {}
    for step in (4, 5):
        standing = watch.standing(step, "modeler", "regression")
        assert standing is not None
        counts[step] = standing.count
    assert counts[4] < counts[5], "step 4 began when step 2 was the last to be judged"
    assert watch.standing(6, "modeler", "regression") is None


# --- probes ----------------------------------------------------------------------------------------------------------


def asked(coach: RubricCoach | ReplayCoach, config: CoachConfig, step: int) -> Probed:
    actions = {f"{s.name}/{n}": c for s in SCENARIOS for n, c in enumerate(contexts(s))}
    what = Probe(
        step=step, task=TABULAR, roles=(ENGINEER, MODELER), anchors=anchors_of(actions), actions=actions
    )  # fmt: skip
    return asyncio.run(probe(coach, config, what))


def test_probes_are_asked_when_they_are_due() -> None:
    config = CoachConfig(canary_every=2, anchor_every=3, repeat=0.0)
    found = {step: asked(RubricCoach(), config, step) for step in range(8)}
    assert [step for step, probed in found.items() if probed.songs] == [0, 2, 4, 6]
    assert [step for step, probed in found.items() if probed.anchors] == [1, 4, 7]
    assert all(len(p.anchors) == ANCHORS and not p.repeats for p in found.values() if p.anchors)
    assert not any(song.fooled for probed in found.values() for song in probed.songs)
    assert asked(RubricCoach(), CoachConfig(canary_every=0, anchor_every=0, repeat=0.0), 1) == Probed()


def test_repeats_are_a_share_and_the_rubric_never_differs_from_itself() -> None:
    everything = asked(RubricCoach(), CoachConfig(repeat=1.0), 5).repeats
    assert len(everything) == sum(len(s.steps) for s in SCENARIOS) and all(a == b for a, b in everything)
    assert 5 <= len(asked(RubricCoach(), CoachConfig(repeat=0.5), 5).repeats) <= 25


def test_what_a_coach_cannot_score_is_left_out() -> None:
    found = asked(ReplayCoach([]), CoachConfig(repeat=1.0), 1)
    assert not found.anchors and not found.repeats
    assert {song.raw for song in asked(ReplayCoach([]), CoachConfig(), 0).songs} == {None}


def test_anchors_are_spread_over_roles_and_kinds() -> None:
    found = [contexts(s) for s in SCENARIOS]
    many: dict[str, ActionContext] = {f"{n}/{m}": c for n, cs in enumerate(found * 5) for m, c in enumerate(cs)}
    chosen = anchors_of(many)
    strata = [(c.role.name, c.task.kind) for c in chosen.values()]
    assert len(chosen) == ANCHORS and {strata.count(place) for place in strata} == {4}


@pytest.mark.parametrize("kept", [Kept((), Probed())])
def test_a_step_without_anything_to_see_is_one(kept: Kept) -> None:
    watch = Watch(MONITORED)
    assert watch.recall(1, kept) == [] and watch.review(2, [], Probed()).metrics == {}
