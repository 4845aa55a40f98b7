"""Runs model-written code where it can reach nothing: the only place in mappa that does."""

from mappa.sandbox.sandbox import Sandbox
from mappa.sandbox.workspace import SandboxWorkspace

__all__ = ["Sandbox", "SandboxWorkspace"]
