"""How well this machine can isolate: the best way that starts, and why not a better one."""

from __future__ import annotations

import errno
import os
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from msgspec import Struct

from mappa.config import SandboxConfig
from mappa.errors import SandboxError
from mappa.sandbox.process import ServerProcess, ServerRefused

Tier = Literal["fork-server", "bubblewrap", "landlock", "unsafe"]

_MODES: dict[Tier, str] = {
    "fork-server": "guard",
    "bubblewrap": "bubblewrap",
    "landlock": "landlock",
    "unsafe": "unsafe",
}
_MEANING: dict[Tier, str] = {
    "fork-server": "a preloaded interpreter forks each execution into namespaces of its own",
    "bubblewrap": "each execution starts bubblewrap and a new interpreter: as isolated, but slow",
    "landlock": "a preloaded interpreter forks each execution into a Landlock domain: isolated, but limits are coarser",
    "unsafe": "NO ISOLATION: model-written code can do whatever you can",
}

_START_CONTAINER = (
    "start the container with: docker run --security-opt seccomp=unconfined --security-opt apparmor=unconfined "
    "--security-opt systempaths=unconfined"
)


class UnsafeSandboxWarning(UserWarning):
    """Model-written code runs with the trainer's own rights."""


class TierReport(Struct, frozen=True, kw_only=True):
    """How executions are isolated on this machine.

    >>> TierReport(tier="bubblewrap", reasons=("fork-server: new namespaces: Operation not permitted. ...",))
    """

    tier: Tier | None
    """None: not at all; nothing will run."""
    reasons: tuple[str, ...] = ()
    """Why each better tier is not available."""
    remedy: str = ""
    """What to do about it."""
    attacks: dict[str, bool] = {}
    """What was tried from inside, and whether it was stopped. Filled by `probe`."""

    @property
    def proven(self) -> bool:
        return bool(self.attacks) and all(self.attacks.values())

    def describe(self) -> str:
        """A few lines for people."""
        lines = [f"sandbox: {self.tier}: {_MEANING[self.tier]}" if self.tier else "sandbox: none: nothing will run"]
        lines += [f"  {reason}" for reason in self.reasons]
        lines += [f"  {self.remedy}"] if self.remedy else []
        held = [name for name, stopped in self.attacks.items() if stopped]
        lines += [f"  stopped: {', '.join(held)}"] if held else []
        lines += [f"  NOT STOPPED: {name}" for name, stopped in self.attacks.items() if not stopped]
        return "\n".join(lines)


async def start_server(config: SandboxConfig, patience: float) -> tuple[ServerProcess, TierReport]:
    """Start a server on the best tier that works. Raises SandboxError where none does."""
    if config.unsafe:
        warnings.warn("sandbox.unsafe: " + _MEANING["unsafe"], UnsafeSandboxWarning, stacklevel=2)
        return await ServerProcess.start(config, _MODES["unsafe"], patience), TierReport(tier="unsafe")
    reasons: list[str] = []
    tiers: Sequence[Tier] = ("fork-server", "bubblewrap", "landlock") if config.tier == "auto" else (config.tier,)
    for tier in tiers:
        try:
            server = await ServerProcess.start(config, _MODES[tier], patience)
        except ServerRefused as refusal:
            if refusal.stage == "preload":
                raise SandboxError(f"sandbox.preload: {refusal}; install it here or name other modules") from None
            reasons.append(f"{tier}: {refusal}{_cause(tier, refusal.number)}")
        else:
            return server, TierReport(tier=tier, reasons=tuple(reasons), remedy=_remedy() if reasons else "")
    report = TierReport(tier=None, reasons=tuple(reasons), remedy=_remedy())
    raise NoTier(report)


class NoTier(SandboxError):
    """No way to isolate works on this machine."""

    def __init__(self, report: TierReport) -> None:
        super().__init__("model-written code cannot be isolated here:\n" + report.describe())
        self.report = report

    def __reduce__(self) -> tuple[type[NoTier], tuple[TierReport]]:
        return NoTier, (self.report,)


def _cause(tier: Tier, number: int | None) -> str:
    """The usual reason for a refusal, where a setting of this machine gives it away."""
    if tier != "fork-server" or number not in (errno.EPERM, errno.EACCES, errno.ENOSPC, errno.EUSERS):
        return ""
    if _setting("user/max_user_namespaces") == "0":
        return " (user namespaces are switched off: sysctl user.max_user_namespaces=0)"
    if _setting("kernel/unprivileged_userns_clone") == "0":
        return " (only root may make user namespaces: sysctl kernel.unprivileged_userns_clone=0)"
    if _setting("kernel/apparmor_restrict_unprivileged_userns") == "1":
        return " (AppArmor keeps user namespaces from programs without a profile)"
    if masked := _masked_proc():
        return f" (parts of /proc are masked, as Docker does: {', '.join(masked)}; the kernel allows no new /proc then)"
    if _in_container():
        return " (this container forbids namespaces)"
    return ""


def _remedy() -> str:
    """One command."""
    if _masked_proc():
        return _START_CONTAINER
    if shutil.which("bwrap") is None:
        return f"run: {'' if os.geteuid() == 0 else 'sudo '}apt-get install bubblewrap"
    if _in_container():
        return _START_CONTAINER
    return "run: sudo sysctl user.max_user_namespaces=65536 kernel.apparmor_restrict_unprivileged_userns=0"


def _setting(name: str) -> str | None:
    path = Path("/proc/sys") / name
    return path.read_text().strip() if path.exists() else None


def _masked_proc() -> list[str]:
    """What is mounted over parts of /proc; what the kernel itself mounts there masks nothing."""
    places = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    return sorted(place for place in places - {"/proc/sys/fs/binfmt_misc"} if place.startswith("/proc/"))


def _in_container() -> bool:
    return any(Path(path).exists() for path in ("/.dockerenv", "/run/.containerenv"))
