"""Advantages as each algorithm's paper has them, by hand; and that episodes of different length bias no baseline."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from mappa.config import LearnConfig
from mappa.errors import LearnError
from mappa.learn import Learner
from mappa.learn.batch import advantages_of
from mappa.learn.samples import check_samples
from mappa.types import Sample

SCORES = (1.0, 0.0, 0.5, 0.5)
TOKENS = (1, 3, 2, 2)


def sample(score: float, tokens: int, group: str = "g", role: str = "r") -> Sample:
    return Sample(
        role=role, tokens=tuple(range(1, tokens + 2)), spans=((1, tokens + 1),), logprobs=(-1.0,) * tokens,
        rewards=(score,), group=group,
    )  # fmt: skip


def firsts(samples: Sequence[Sample], kl: float = 0.0, **settings: object) -> list[float]:
    """The advantage of each action's first token."""
    config = LearnConfig(**{"roles": ("r",), "beta": 0.0, **settings})  # type: ignore[arg-type]
    distances = [torch.full((s.spans[0][1] - s.spans[0][0],), kl) for s in samples]
    return [float(values[0]) for values in advantages_of(samples, distances, config)]


BATCH = [sample(score, tokens) for score, tokens in zip(SCORES, TOKENS, strict=True)]


def test_reinforce_plus_plus_normalises_over_tokens() -> None:
    mean = (1 * 1 + 0 * 3 + 0.5 * 4) / 8
    std = math.sqrt((1 * (1 - mean) ** 2 + 3 * mean**2 + 4 * (0.5 - mean) ** 2) / 8)
    assert firsts(BATCH) == pytest.approx([(score - mean) / std for score in SCORES], abs=1e-6)


def test_whole_numbers_are_advantages_and_logprobs_like_any(tiny_model: Path) -> None:
    whole = [replace(one, rewards=(), advantages=(1,), logprobs=(-1,) * len(one.logprobs)) for one in BATCH]
    floats = [replace(one, rewards=(), advantages=(1.0,)) for one in BATCH]
    found = [advantages_of(batch, [torch.empty(0)] * 4, LearnConfig(roles=("r",))) for batch in (whole, floats)]
    assert all(torch.equal(one, other) and one.dtype == torch.float32 for one, other in zip(*found, strict=True))
    learners = [Learner(LearnConfig(model=str(tiny_model), dtype="float32", roles=("r",), rank=4)) for _ in found]
    reports = [learner.step(batch) for learner, batch in zip(learners, (whole, floats), strict=True)]
    assert reports[0].roles == reports[1].roles


def test_rewards_beside_advantages_are_one_per_span_or_none() -> None:
    two = replace(BATCH[1], spans=((1, 2), (2, 4)), rewards=(0.5,), advantages=(1.0, 0.0), source="s")
    with pytest.raises(LearnError, match="sample s: 1 rewards for 2 spans; its advantages replace them, give none"):
        check_samples([two], ("r",), 100)
    check_samples([replace(two, rewards=()), replace(two, rewards=(0.5, 0.5))], ("r",), 100)


def test_its_kl_is_in_the_return_of_every_token_before_it() -> None:
    assert firsts(BATCH, kl=0.3, beta=0.1, whiten=False) == pytest.approx(
        [score - 0.1 * 0.3 * tokens for score, tokens in zip(SCORES, TOKENS, strict=True)], abs=1e-6
    )


def test_equal_scores_leave_the_kl_at_its_own_size() -> None:
    """As where no episode of an outcome-only step succeeded: whitened, beta times noise would be a full step."""
    equal = [sample(0.7, tokens) for tokens in TOKENS]
    distances = [torch.full((tokens,), 0.02 * place) for place, tokens in enumerate(TOKENS)]
    found = torch.cat(advantages_of(equal, distances, LearnConfig(roles=("r",), beta=0.1)))
    returns = torch.tensor([-0.1 * 0.02 * p * (n - t) for p, n in enumerate(TOKENS) for t in range(n)])
    assert torch.allclose(found, returns - returns.mean(), atol=1e-6)


def test_grpo_counts_actions_not_tokens() -> None:
    std = math.sqrt((0.25 + 0.25) / 4)
    assert firsts(BATCH, advantage="grpo") == pytest.approx([(s - 0.5) / std for s in SCORES], abs=1e-6)


def test_rloo_leaves_the_action_itself_out_of_its_baseline() -> None:
    others = [sum(SCORES[:i] + SCORES[i + 1 :]) / 3 for i in range(4)]
    expected = [score - other for score, other in zip(SCORES, others, strict=True)]
    assert firsts(BATCH, advantage="rloo") == pytest.approx(expected, abs=1e-6)
    with_kl = firsts(BATCH, kl=0.3, beta=0.1, advantage="rloo")
    assert with_kl == pytest.approx([a - 0.03 * t for a, t in zip(expected, TOKENS, strict=True)], abs=1e-6)


@pytest.mark.parametrize("advantage", ["grpo", "rloo"])
def test_there_is_nothing_to_learn_without_a_comparison(advantage: str) -> None:
    alone, equal = [sample(0.7, 2)], [sample(0.7, tokens) for tokens in TOKENS]
    for batch in (alone, equal):
        assert firsts(batch, advantage=advantage) == pytest.approx([0.0] * len(batch), abs=1e-6)


@pytest.mark.parametrize("advantage", ["reinforce++", "grpo", "rloo"])
def test_groups_and_unscored_actions_stay_apart(advantage: str) -> None:
    other = [sample(0.2, 2, "h"), sample(0.9, 1, "h"), sample(math.nan, 4, "g")]
    found = firsts([*BATCH, *other], advantage=advantage)
    assert found[:4] == pytest.approx(firsts(BATCH, advantage=advantage), abs=1e-6)
    assert found[4] < 0 < found[5] and found[6] == 0


def on_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = {name: firsts(BATCH[rank::2], advantage=name) for name in ("reinforce++", "grpo", "rloo")}
    Path(f"{folder}/{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def test_actions_are_compared_with_those_of_all_ranks(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(on_rank, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        for name, found in json.loads((tmp_path / f"{rank}.json").read_text()).items():
            assert found == firsts(BATCH, advantage=name)[rank::2], name


# --- variable length -------------------------------------------------------------------------------------------------

episodes = st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=4), min_size=1, max_size=8)


@given(episodes, st.sampled_from(["reinforce++", "grpo", "rloo"]))
def test_a_turn_is_compared_with_the_episodes_that_reached_it(turns: list[list[float]], advantage: str) -> None:
    """Episodes that stopped before a turn are no zeros in its baseline: without them it has the same advantages."""
    samples = [sample(s, 1 + len(own), f"r/{turn}") for own in turns for turn, s in enumerate(own)]
    found = dict(zip(map(id, samples), firsts(samples, advantage=advantage), strict=True))
    for turn in range(4):
        reached = [one for one in samples if one.group == f"r/{turn}"]
        if reached:
            alone = firsts(reached, advantage=advantage)
            assert [found[id(one)] for one in reached] == alone
            if advantage != "reinforce++":
                assert sum(alone) == pytest.approx(0, abs=1e-4)


def test_the_expected_gradient_of_every_turn_is_the_true_one() -> None:
    """Exactly, over every batch of three episodes: a first action goes on or stops, a second one is right or wrong.

    Per turn, an action that reached it contributes the true gradient of its own score, however many did; a turn that
    only one episode reached contributes nothing.
    """
    go, right = 0.6, 0.3  # probabilities; the gradient of log p in its logit is 1 - p, or -p
    outcomes = {"stop": 1 - go, "right": go * right, "wrong": go * (1 - right)}
    first_score = {"stop": 0.2, "right": 0.9, "wrong": 0.9}
    expected = {"r/0": 0.0, "r/1": 0.0}
    reached = 0.0
    for batch in itertools.product(outcomes, repeat=3):
        chance = math.prod(outcomes[one] for one in batch)
        samples, slopes = [], []
        for one in batch:
            samples.append(sample(first_score[one], 1 + (one == "stop"), "r/0"))
            slopes.append(-go if one == "stop" else 1 - go)
            if one != "stop":
                samples.append(sample(float(one == "right"), 2 + (one == "wrong"), "r/1"))
                slopes.append(1 - right if one == "right" else -right)
        for made, slope, advantage in zip(samples, slopes, firsts(samples, advantage="rloo"), strict=True):
            expected[made.group] += chance * slope * advantage
        second = sum(one != "stop" for one in batch)
        reached += chance * (second if second > 1 else 0)
    assert expected["r/0"] == pytest.approx(3 * (0.9 - 0.2) * go * (1 - go), abs=1e-6)
    assert expected["r/1"] == pytest.approx(reached * right * (1 - right), abs=1e-6)
