"""Running a trusted program of probes/ over foreign files, in a fresh workspace of the sandbox."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import msgspec
from msgspec import Struct

from mappa.errors import SandboxError
from mappa.types import Workspace

OpenWorkspace = Callable[[], Awaitable[Workspace]]

REPORT_LIMIT = 64 << 10
FAULT_LENGTH = 240


class Report(Struct, frozen=True, forbid_unknown_fields=True):
    """What a probe found; written where foreign objects were loaded, so checked like any input."""

    facts: dict[str, bool]
    fault: str | None
    score: float | None = None
    scores: dict[str, float] = {}
    """What else was worked out of the same predictions."""


class Finding(Struct, frozen=True):
    report: Report
    predictions: bytes | None = None


async def probe(
    program: str,
    request: Mapping[str, object],
    files: Mapping[str, bytes],
    open_workspace: OpenWorkspace,
    *,
    predictions_limit: int = 0,
) -> Finding:
    """Run a probe over `files` in a workspace of its own, and fetch its predictions.csv of at most that many bytes; 0
    where it writes none. Raises SandboxError if it could not be run at all."""
    workspace = await open_workspace()
    try:
        try:
            for name, data in {**files, "request.json": msgspec.json.encode(request)}.items():
                workspace.put(name, data)
        except OSError as error:
            return Finding(Report(facts={}, fault=f"{_subject(files)} could not be opened: {error.strerror}"))
        result = await workspace.run(_program(program))
        if result.outcome == "sandbox-failure":
            subject = ", ".join(files) or "an answer"
            raise SandboxError(f"the sandbox failed while it looked at {subject}: {result.stderr[:FAULT_LENGTH]}")
        report = _read_report(workspace, result.outcome, files)
        predictions = collect(workspace, ("predictions.csv",), predictions_limit)[0] if predictions_limit else {}
        return Finding(report, predictions.get("predictions.csv"))
    finally:
        workspace.close()


def _read_report(workspace: Workspace, how_it_ended: str, files: Mapping[str, bytes]) -> Report:
    """The probe's report; one that says so where an object that it loaded kept it from writing one."""
    data, fault = collect(workspace, ("report.json",), REPORT_LIMIT)
    if data:
        try:
            return msgspec.json.decode(data["report.json"], type=Report)
        except msgspec.DecodeError as error:
            fault = str(error)
    return Report(facts={}, fault=f"{_subject(files)} could not be opened: {how_it_ended}, {fault}")


def _subject(files: Mapping[str, bytes]) -> str:
    return next(iter(files), "the answer")


def collect(workspace: Workspace, names: Sequence[str], limit: int) -> tuple[dict[str, bytes], str | None]:
    """Those of `names` that are there and small enough, as bytes, and what is wrong with the first that is not."""
    sizes = workspace.files()
    found: dict[str, bytes] = {}
    fault = None
    for name in names:
        if name not in sizes:
            fault = fault or f"{name} missing"
        elif sizes[name] > limit:
            fault = fault or f"{name} has {sizes[name] >> 20} MiB, at most {limit >> 20} are read"
        else:
            try:
                found[name] = workspace.read(name, limit)
            except OSError as error:
                fault = fault or f"{name} cannot be read: {error.strerror}"
    return found, fault


def short(text: str | None) -> str | None:
    """A fault in a few words, whatever a foreign object made of it."""
    return text if text is None or len(text) <= FAULT_LENGTH else text[:FAULT_LENGTH] + "..."


@cache
def _program(name: str) -> str:
    return (Path(__file__).parent / "probes" / f"{name}.py").read_text()
