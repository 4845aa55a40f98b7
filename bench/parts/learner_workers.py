"""Candidates in processes of their own, run in turn: a peak of memory is then one candidate's and nobody else's."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import statistics
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

CANDIDATES = "bench.parts.learner_candidates"
HEAVY = [CANDIDATES, "peft", "deepspeed"]


class Candidate(Protocol):
    """Something to measure. What it needs is built and warmed up before its first `run`."""

    def run(self) -> object: ...


class Failed(Exception):
    """A candidate that cannot be built or run here, with the reason."""


@dataclass(frozen=True)
class Measured:
    """One run. Seconds of the process and of the clock; bytes resident at most while it ran, and when it was over."""

    cpu: float
    wall: float
    peak: int
    rise: int
    """Peak less what was resident when it began."""
    resident: int
    result: Any


class Worker:
    """A process that builds one candidate and runs it whenever it is told to.

    All come from one process that has imported the heavy libraries and computed nothing, so imports are paid for once.
    """

    def __init__(self, candidate: str, *arguments: object) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(HEAVY)
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, candidate, arguments), daemon=True)
        self._process.start()
        theirs.close()
        self._answer()

    def run(self) -> Measured:
        self._pipe.send("run")
        measured: Measured = self._answer()
        return measured

    def close(self) -> None:
        self._pipe.close()
        self._process.join()

    def _answer(self) -> Any:
        try:
            fault, answer = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise Failed(f"its process ended with exit code {self._process.exitcode}") from None
        if fault is not None:
            raise Failed(fault)
        return answer


def in_turn(workers: Mapping[str, Worker], *, rounds: int) -> dict[str, Measured]:
    """Every worker once per round, one at a time; medians of time, maxima of memory, the last result."""
    runs: dict[str, list[Measured]] = {name: [] for name in workers}
    for _ in range(rounds):
        for name, worker in workers.items():
            runs[name].append(worker.run())
    return {
        name: Measured(
            cpu=statistics.median(run.cpu for run in done),
            wall=statistics.median(run.wall for run in done),
            peak=max(run.peak for run in done),
            rise=max(run.rise for run in done),
            resident=done[-1].resident,
            result=done[-1].result,
        )
        for name, done in runs.items()
        if done
    }


def measure_all(candidates: Mapping[str, tuple[Any, ...]], *, rounds: int) -> dict[str, Measured]:
    """Build each (class of learner_candidates, argument, ...), run all in turn, end their processes."""
    workers: dict[str, Worker] = {}
    try:
        for name, (candidate, *arguments) in candidates.items():
            workers[name] = Worker(candidate, *arguments)
        return in_turn(workers, rounds=rounds)
    finally:
        for worker in workers.values():
            worker.close()


def _serve(pipe: Connection, name: str, arguments: tuple[object, ...]) -> None:
    try:
        candidate = getattr(import_module(CANDIDATES), name)(*arguments)
    except Exception as error:  # noqa: BLE001 - handed to whoever asked for it
        traceback.print_exc()
        pipe.send((f"{type(error).__name__}: {error}", None))
        return
    pipe.send((None, None))
    while True:
        try:
            pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((None, _measure(candidate)))
        except Exception as error:  # noqa: BLE001
            traceback.print_exc()
            pipe.send((f"{type(error).__name__}: {error}", None))


def _measure(candidate: Candidate) -> Measured:
    _release()
    Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark back to what is resident now
    before = _status("VmRSS")
    cpu, wall = time.process_time(), time.perf_counter()
    result = candidate.run()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    peak = _status("VmHWM")
    _release()
    return Measured(cpu, wall, peak, max(0, peak - before), _status("VmRSS"), result)


def _release() -> None:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")
