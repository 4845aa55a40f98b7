"""How fast a run was, and where its time went."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct, field

from mappa.observe.metrics import Seconds, StepMetrics


class Speed(Struct, frozen=True, kw_only=True):
    """Over all steps of a run, evaluation left out.

    >>> Speed(generated_per_second=131.0, trained_per_second=221.0, shares={"generate": 0.63, "learn": 0.31})
    """

    generated_per_second: float = 0.0
    """Sampled tokens over the seconds spent on generating."""
    trained_per_second: float = 0.0
    """Action tokens in the loss over the seconds spent on learning."""
    computed_per_second: float = 0.0
    """Tokens forward and backward, contexts included and shared prefixes once, over the seconds spent on learning."""
    shares: dict[str, float] = field(default_factory=dict)
    """Phase -> share of all steps' wall time."""


def speed_of(steps: Sequence[StepMetrics]) -> Speed:
    """Sum up the steps of a run; no steps, no speed."""
    seconds = {name: sum(getattr(step.seconds, name) for step in steps) for name in Seconds.__struct_fields__}
    total = sum(seconds.values())
    return Speed(
        generated_per_second=_rate(sum(step.tokens_generated for step in steps), seconds["generate"]),
        trained_per_second=_rate(sum(step.tokens_trained for step in steps), seconds["learn"]),
        computed_per_second=_rate(sum(step.tokens_computed for step in steps), seconds["learn"]),
        shares={name: spent / total for name, spent in seconds.items()} if total else {},
    )


def speed_text(speed: Speed) -> str:
    """Two lines for the end of a run."""
    shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in speed.shares.items())
    return (
        f"generation {speed.generated_per_second:.0f} tok/s; learning {speed.trained_per_second:.0f} action tok/s, "
        f"{speed.computed_per_second:.0f} tok/s with their contexts\nshare of a step: {shares or 'no step was taken'}"
    )


def _rate(tokens: int, seconds: float) -> float:
    return tokens / seconds if seconds else 0.0
