"""One step's numbers from its episodes and what the learner reported."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean

from mappa.coach.watch import Review
from mappa.learn.report import LearnReport, RoleReport
from mappa.observe.metrics import RoleMetrics, RolloutMetrics, Seconds, StepMetrics
from mappa.types import Action, Episode


def step_metrics(
    episodes: Sequence[Episode],
    report: LearnReport,
    seconds: Seconds,
    tokens_generated: int,
    rollout: RolloutMetrics | None = None,
    review: Review | None = None,
) -> StepMetrics:
    """What a step came to. Lost episodes are counted and left out of every mean."""
    kept = [episode for episode in episodes if episode.error is None]
    to_base = any(sample.kl is not None for sample in report.samples)  # not where beta is 0: nobody looked at the base
    return StepMetrics(
        step=report.step,
        episodes=len(episodes),
        lost=len(episodes) - len(kept),
        success=_mean(episode.outcome is not None and episode.outcome.success for episode in kept),
        roles={
            role: _role(
                [action for episode in kept for action in episode.actions if _adapter(action) == role],
                learned,
                to_base=to_base,
            )
            for role, learned in report.roles.items()
        },
        tokens_generated=tokens_generated,
        tokens_trained=report.tokens_trained,
        tokens_computed=report.tokens_computed,
        tokens_unshared=report.tokens_unshared,
        seconds=seconds,
        rollout=rollout,
        coach={**review.metrics, "rewrites": len(review.rewrites)} if review is not None else {},
        alarms=[alarm.text for alarm in review.alarms] if review is not None else [],
        learning=report.seconds,
        peak_memory_gb=report.peak_memory_gb,
    )


def _role(actions: Sequence[Action], learned: RoleReport, *, to_base: bool) -> RoleMetrics:
    scores = [action.verdict.score for action in actions if action.verdict is not None]
    return RoleMetrics(
        actions=len(actions),
        score=_mean(score for score in scores if score is not None),
        missing_scores=len(actions) - sum(score is not None for score in scores),
        success=_mean(action.evidence is not None and action.evidence.success for action in actions),
        distinct=len({action.output_ids for action in actions}) / len(actions) if actions else None,
        tokens=_mean(len(action.output_ids) for action in actions),
        truncated=_mean(action.finish_reason == "length" for action in actions),
        entropy=learned.entropy,
        logprob=_mean(value for action in actions for value in action.logprobs),
        kl=learned.kl if to_base else None,
        clip_fraction=learned.clip_fraction,
        ratio=learned.ratio,
        advantage_std=learned.advantage_std,
        loss=learned.loss if learned.tokens else None,
        grad_norm=learned.grad_norm if learned.tokens else None,
        lr=learned.lr,
    )


def _adapter(action: Action) -> str:
    """Roles that share an adapter are one to the learner."""
    return action.adapter.rpartition("@")[0]


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return fmean(found) if found else None
