"""A coach's memory: its own scoring record for a role and kind, and the role's recurring faults.

It is taken from what the monitor has seen up to the last step and stays the same within a step, so that the same
action gets the same prompt whenever it is asked, in a resumed run too.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct, field

from mappa.coach.prompt import Section

FAULTS_SHOWN = 5


class Standing(Struct, frozen=True, kw_only=True):
    """How one role's actions on tasks of one kind were scored lately.

    >>> Standing(count=120, mean=6.1, spread=2.0, gaps={"classification": -0.8}, faults={"text columns left": 14})
    """

    count: int
    mean: float
    spread: float
    gaps: Mapping[str, float] = field(default_factory=dict)
    """Points above (below) actions of equal outcome on tasks of another kind."""
    drift: float | None = None
    """Points by which it now scores the same frozen actions higher than at first."""
    faults: Mapping[str, int] = field(default_factory=dict)


class Record(Struct, frozen=True):
    """Standings by (role, kind). Empty: a coach without a memory."""

    standings: Mapping[tuple[str, str], Standing] = field(default_factory=dict)

    def shown(self, role: str, kind: str) -> tuple[str, list[Section]]:
        """What a prompt says of it: numbers, for the host's channel; faults, which quote agents, as material."""
        standing = self.standings.get((role, kind))
        if standing is None:
            return "", []
        lines = [
            f"Your own record for this role on tasks of this kind: {standing.count} actions, mean {standing.mean:.1f}, "
            f"spread {standing.spread:.1f}."
        ]
        lines += [
            f"On actions of equal outcome you scored this kind {gap:+.1f} points against {other}; equal outcomes get "
            "equal scores."
            for other, gap in sorted(standing.gaps.items())
        ]
        if standing.drift is not None:
            lines.append(
                f"You now score the same fixed actions {standing.drift:+.1f} points against your first reading."
            )
        common = sorted(standing.faults.items(), key=lambda item: (-item[1], item[0]))[:FAULTS_SHOWN]
        listed = "\n".join(f"{count} times: {fault}" for fault, count in common)
        faults = [Section("Faults of this role that the checks found often", listed, 0)] if listed else []
        return "\n".join(lines) + "\n", faults
