"""A coach's memory: its own scoring record for a role and kind, and the role's recurring faults.

It is taken from what the monitor has seen up to an earlier step and stays the same within a step, so that the same
action gets the same prompt whenever it is asked, in a resumed run too.
"""

from __future__ import annotations

from mappa.coach.context import Standing
from mappa.coach.prompt import Section

FAULTS_SHOWN = 5


def remembered(standing: Standing | None) -> tuple[str, list[Section]]:
    """Numbers, for the host's channel; faults, which quote agents, as material. Nothing for a coach without memory."""
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
        lines.append(f"You now score the same fixed actions {standing.drift:+.1f} points against your first reading.")
    common = sorted(standing.faults.items(), key=lambda item: (-item[1], item[0]))[:FAULTS_SHOWN]
    listed = "\n".join(f"{count} times: {fault}" for fault, count in common)
    faults = [Section("Faults of this role that the checks found often", listed, 0)] if listed else []
    return "\n".join(lines) + "\n", faults
