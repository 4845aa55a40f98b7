"""Runs model-written code where it can reach nothing: the only place in mappa that does."""

from mappa.sandbox.probe import probe
from mappa.sandbox.sandbox import Sandbox
from mappa.sandbox.tiers import NoTier, TierReport, UnsafeSandboxWarning
from mappa.sandbox.workspace import SandboxWorkspace

__all__ = ["NoTier", "Sandbox", "SandboxWorkspace", "TierReport", "UnsafeSandboxWarning", "probe"]
