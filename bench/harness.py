"""What every bench shares: interleaved timing, memory peaks, the machine's record, a table and a JSON file.

    timings = interleave({"ours": f, "naive": g}, repeats=7)
    rows = [compare("forward, 512 tokens", timings["ours"].cpu, timings["naive"].cpu, "naive", "ms CPU", ">= 1.7")]
    finish("kernels", rows, arguments.json)

Candidates are timed in turn, round after round, so that a slow minute of the machine falls on all of them alike.
Process CPU time is the figure to compare where the machine is shared; medians, because the tail is other people's work.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import gc
import importlib.metadata
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Timing:
    """Medians of one candidate, seconds; `rounds` holds the CPU seconds of every round."""

    cpu: float
    wall: float
    rounds: tuple[float, ...]
    peak: int | None = None
    """Bytes, where memory was asked for."""


@dataclass(frozen=True)
class Row:
    """One comparison. `met` is None where there is no goal or no measurement; `note` then says why."""

    what: str
    ours: float | None
    peer: float | None
    peer_name: str
    unit: str
    ratio: float | None
    goal: str
    met: bool | None
    note: str = ""


def interleave(
    candidates: Mapping[str, Callable[[], object]],
    *,
    repeats: int,
    warmup: int = 1,
    patience: float = math.inf,
    memory: bool = False,
) -> dict[str, Timing]:
    """Run every candidate once per round, in turn; medians over `repeats` rounds after `warmup` unmeasured ones.

    A candidate that takes more than `patience` CPU seconds is measured once. With `memory` the first measured round
    records each one's peak as well.
    """
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in candidates}
    peaks: dict[str, int] = {}
    for round_ in range(-warmup, repeats):
        for name, run in candidates.items():
            measured = rounds[name]
            if measured and measured[0][0] > patience:
                continue
            clocked = functools.partial(_clocked, run, measured if round_ >= 0 else [])
            if memory and round_ == 0:
                peaks[name] = peak_memory(clocked)
            else:
                clocked()
    return {name: _timing(measured, peaks.get(name)) for name, measured in rounds.items()}


def _clocked(run: Callable[[], object], into: list[tuple[float, float]]) -> None:
    """Run, and add (CPU seconds, seconds) to `into`."""
    cpu_start, wall_start = time.process_time(), time.perf_counter()
    run()
    into.append((time.process_time() - cpu_start, time.perf_counter() - wall_start))


def _timing(measured: Sequence[tuple[float, float]], peak: int | None) -> Timing:
    cpu, wall = zip(*measured, strict=True)
    return Timing(statistics.median(cpu), statistics.median(wall), cpu, peak)


def peak_memory(run: Callable[[], object]) -> int:
    """Bytes by which this process's resident memory rises at most while `run` runs, results included. Linux only."""
    gc.collect()
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, 128 * 1024)  # a freed block goes back at once: what is resident is what is alive
    libc.malloc_trim(0)  # else freed pages that were kept would hide what `run` takes
    Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark back to what is resident now
    before = _status("VmRSS")
    try:
        run()
        return max(0, _status("VmHWM") - before)
    finally:
        libc.mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)  # where glibc arrives by itself once large blocks were freed


def compare(
    what: str,
    ours: float | None,
    peer: float | None,
    peer_name: str,
    unit: str,
    goal: str = "",
    *,
    more_is_better: bool = False,
    note: str = "",
) -> Row:
    """A row. `goal` is ">= 1.7" (at least so many times better than the peer) or "<= 0.01" (at most this share of it).

    So `ratio` is ours / peer under a "<=" goal, and how many times better ours is otherwise.
    """
    if ours is None or peer is None:
        return Row(what, ours, peer, peer_name, unit, None, goal, None, note)
    sign, _, bound = goal.partition(" ")
    share = ours / peer if peer else float("inf")
    times = share if more_is_better or sign == "<=" else (peer / ours if ours else float("inf"))
    if not goal:
        return Row(what, ours, peer, peer_name, unit, times, goal, None, note)
    if sign not in (">=", "<="):
        raise ValueError(f"goal: expected '>= number' or '<= number', got {goal!r}")
    met = times >= float(bound) if sign == ">=" else times <= float(bound)
    return Row(what, ours, peer, peer_name, unit, times, goal, met, note)


def unmeasured(what: str, peer_name: str, why: str, goal: str = "") -> Row:
    """A row that could not be measured here, with the reason."""
    return Row(what, None, None, peer_name, "", None, goal, None, why)


def environment(packages: Sequence[str] = ("torch",)) -> dict[str, Any]:
    """The machine and the versions a measurement belongs to."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "cpu_flags": sorted(_CPU_FEATURES & _cpu_flags()),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_before": os.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in packages},
        "omp_threads": os.environ.get("OMP_NUM_THREADS", ""),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", ""),
    }


def parser(description: str) -> argparse.ArgumentParser:
    """The options every bench has: --quick and --json."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--quick", action="store_true", help="small shapes and few rounds: that it runs, not how fast")
    made.add_argument("--json", type=Path, metavar="PATH", help="write the rows and the machine's record here")
    return made


def without_spinning(module: str) -> None:
    """Start `module` again with OpenMP threads that sleep while they wait; returns where they do already.

    A thread that spins, because another one is held up by somebody else's work, burns CPU time that no candidate needs.
    OpenMP reads the setting when torch is imported.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.execv(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]])


def print_table(rows: Sequence[Row]) -> None:
    """The rows as aligned text."""
    header = ("what", "ours", "peer", "unit", "ratio", "goal", "met", "against")
    met = {True: "yes", False: "NO", None: "-"}
    lines = [header]
    for row in rows:
        figures = (_figure(row.ours), _figure(row.peer), row.unit, _figure(row.ratio), row.goal, met[row.met])
        lines.append((row.what, *figures, f"{row.peer_name}  {row.note}".rstrip()))
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def finish(
    bench: str,
    rows: Sequence[Row],
    path: Path | None,
    env: dict[str, Any] | None = None,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Print the rows and, where a path is given, write {"bench", "env", "rows"} and what `more` has."""
    print_table(rows)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {"bench": bench, "env": env or environment(), "rows": [asdict(row) for row in rows], **(more or {})}
        path.write_text(json.dumps(record, indent=1) + "\n")
        print(f"written to {path}")


_M_MMAP_THRESHOLD = -3  # from malloc.h
_CPU_FEATURES = {"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_tile", "asimd", "sve"}


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def _cpu_lines(key: str) -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(key):
            return line.partition(":")[2].strip()
    return ""


def _cpu_name() -> str:
    return _cpu_lines("model name") or platform.machine()


def _cpu_flags() -> set[str]:
    return set((_cpu_lines("flags") or _cpu_lines("Features")).split())


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
