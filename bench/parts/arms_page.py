"""docs/results.md and its picture, out of what bench/arms.py measured."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from bench.parts.arms_numbers import curve, measured
from bench.parts.arms_runs import Done
from mappa.observe.summary import replace_file

WORDS = {
    "process": "a score for every action (rubric coach)",
    "credit": "the same, credit reassigned in retrospect",
    "outcome": "whether the episode succeeded, for all its actions",
    "team": "the mean score of the episode, for all its actions",
    "shuffled": "another action's score (control)",
    "shared": "a score for every action, one adapter for all roles",
}
_COLOURS = {
    "process": "#0072B2", "credit": "#009E73", "outcome": "#D55E00", "team": "#CC79A7", "shuffled": "#888888",
    "shared": "#E69F00",
}  # fmt: skip

HEAD = """# Results

Written by `make results` out of finished runs; every number is in [results.json](../bench/results/results.json).

SmolLM2-135M-Instruct on {cores} CPU cores ({cpu}), the quickstart's three roles writing and running real code on
real tables. All arms have the same tasks, rollouts and updates, and differ in what an action is rewarded with. Success
is what the task's own grader calls so, on 10 tables that training never saw: a valid submission better than the
trivial one, every role working on what the ones before it left. Intervals are 95 %, over tasks, the seeds' episodes of
a task together.

"""
NOTES = Path(__file__).with_name("arms_notes.md")
"""What the numbers do not say by themselves."""
PAPER = """
## The paper's table, and what it takes

As published (arXiv 2601.23228): full weights per agent, Qwen3-4B or R1-Distill-Qwen-1.5B, 6 held-out tasks of DSBench
four times each. Beside it the same measures of the first arm above, means over its seeds: another model, other tasks,
adapters for weights, so what can be compared is the direction. Fair: a run that failed counts as 0.5 accuracy, 0 F1,
50 % RMSE.

| | paper, before | after | here, before | after |
|---|---|---|---|---|
"""
PUBLISHED = (
    ("success, %", "50.0", "66.7", "success"),
    ("accuracy, fair", "0.583", "0.719", "accuracy, fair"),
    ("F1, fair", "0.126", "0.174", "f1, fair"),
    ("RMSE of range, fair, %", "24.9", "14.6", "rmse_of_range, fair"),
    ("AIME, R1-Distill-1.5B", "24.2", "29.2", ""),
    ("AIME, Qwen3-4B", "49.2", "66.7", ""),
    ("AMC, R1-Distill-1.5B", "60.9", "78.1", ""),
    ("AMC, Qwen3-4B", "78.1", "85.9", ""),
)
"""What, the paper's two figures, and the name of the same measure here."""
TAKES = """
Configs for these runs on GPUs have not been run: [dsbench-qwen3-4b-8gpu](../configs/dsbench-qwen3-4b-8gpu.toml),
[mathchat-qwen3-4b-8gpu](../configs/mathchat-qwen3-4b-8gpu.toml),
[mathchat-r1-distill-1.5b-2gpu](../configs/mathchat-r1-distill-1.5b-2gpu.toml). What each needs in memory, tokens and
dollars: `python -m mappa.train CONFIG --dry-run --ranks 8`.
"""


def write_page(path: Path, result: dict[str, Any], arms: dict[str, list[Done]]) -> None:
    """The page at `path`, and a .png of the curves beside it where any run is done."""
    parts = [HEAD.format(**result["env"])]
    if result["arms"]:
        replace_file(path.with_suffix(".png"), _picture(arms))
        parts += [*_table(result["arms"], result["halfway"]), f"\n![Success over rollouts]({path.stem}.png)\n"]
        parts += ["\n## By seed\n\n", *_seeds(arms), "\n## By task\n\n", *_tasks(arms)]
        if result["rows"]:
            parts += ["\n## Against the goals\n\n", *_goals(result["rows"])]
    else:
        parts.append("No run is done yet.\n")
    if result["forgetting"]:
        parts += ["\n## A second system on the same base\n\n", *_forgetting(result["forgetting"])]
    notes = NOTES.read_text() if result["arms"] else ""
    replace_file(path, "".join([*parts, notes, PAPER, *_published(arms.get("process", [])), TAKES]).encode())


def _table(arms: dict[str, Any], halfway: float | None) -> Iterator[str]:
    never = "never" if halfway is not None else "-"
    yield "| an action is rewarded with | seeds | held-out success, base | trained | gain, paired | against the first "
    yield "| rollouts to halfway | training, min | CPU min |\n|---|---|---|---|---|---|---|---|---|\n"
    for name, arm in arms.items():
        cells = [
            WORDS[name],
            str(len(arm["seeds"])),
            _share(arm["curve"][0]["success"]),
            _share(arm["curve"][-1]["success"]),
            _points(arm["gain"]),
            _points(arm.get("against process")),
            never if arm["rollouts to halfway"] is None else f"{arm['rollouts to halfway']:.0f}",
            f"{arm['training minutes']:.0f}",
            f"{arm['cpu minutes']:.0f}",
        ]
        yield f"| {' | '.join(cells)} |\n"
    where = f", {100 * halfway:.0f} %" if halfway is not None else ""
    yield f"""
Gain and difference are in points, paired by task; the difference is to the first arm's runs of the same seeds.
Halfway: between the base and what a score for every action came to{where}. Times are means over the seeds.
CPU minutes include the held-out measurements; training minutes are wall time, and other work may have shared the
machine.
"""


def _seeds(arms: dict[str, list[Done]]) -> Iterator[str]:
    """What each run came to by itself; the base has the seed's own draws."""
    shown = {name: {run.seed: run for run in runs} for name, runs in arms.items() if runs}
    yield f"| held-out success, % | base | {' | '.join(shown)} |\n|---|{'---|' * (len(shown) + 1)}\n"
    for seed in sorted({seed for runs in shown.values() for seed in runs}):
        runs = [by_seed.get(seed) for by_seed in shown.values()]
        base = next(run.base.success for run in runs if run is not None)
        cells = [f"{100 * base:.0f}", *("-" if run is None else f"{100 * run.trained.success:.0f}" for run in runs)]
        yield f"| seed {seed} | {' | '.join(cells)} |\n"


def _tasks(arms: dict[str, list[Done]]) -> Iterator[str]:
    """One line per held-out task, hardest first: what share of its episodes succeed after training."""
    shown = {name: runs for name, runs in arms.items() if runs}
    first = next(iter(shown.values()))
    columns = {"base": [run.base for run in first]} | {name: [run.trained for run in shown[name]] for name in shown}
    shares = {
        task: [fmean(result.tasks[task] for result in results) for results in columns.values()]
        for task in first[0].base.tasks
    }
    yield f"| held-out success, % | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}\n"
    for task, found in sorted(shares.items(), key=lambda item: (sum(item[1]), item[0])):
        yield f"| {task} | {' | '.join(f'{100 * share:.0f}' for share in found)} |\n"


def _goals(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    for row in rows:
        ours, peer = ("never" if value is None else f"{value:.3g}" for value in (row["ours"], row["peer"]))
        met = "met" if row["met"] else "not met"
        yield f"- {row['what']}: {ours} against {peer} ({row['peer_name']}); goal {row['goal']}: {met}. {row['note']}\n"


def _forgetting(found: dict[str, Any]) -> Iterator[str]:
    yield "The first team's held-out success before and after a second system (one more role) was trained from its\n"
    yield "adapters. With an adapter per role the newcomer gets its own; a single adapter is trained on.\n\n"
    yield "| adapters | seed | before | after | adapters bitwise the same | newcomer's success, before and after |\n"
    yield "|---|---|---|---|---|---|\n"
    for arm, seeds in found.items():
        for seed, one in seeds.items():
            kind = "one per role" if arm == "process" else "one for all"
            same = "yes" if one["bitwise the same"] else "no"
            newcomer = ", ".join(_share(one["newcomer"][end]) for end in (0, -1))
            yield f"| {kind} | {seed} | {_share(one['before'])} | {_share(one['after'])} | {same} | {newcomer} |\n"


def _published(runs: Sequence[Done]) -> Iterator[str]:
    for what, before, after, name in PUBLISHED:
        found = measured(runs, name)
        unit, digits = (100, 1) if what.endswith("%") else (1, 3)
        ours = ["-", "-"] if found is None else [f"{unit * value:.{digits}f}" for value in found]
        yield f"| {' | '.join([what, before, after, *ours])} |\n"


def _picture(arms: dict[str, list[Done]]) -> bytes:
    figure = Figure(figsize=(9, 4), layout="constrained")
    held_out, training = figure.subplots(1, 2, sharey=True)
    for name, runs in arms.items():
        if runs:
            colour = _COLOURS[name]
            at, shares = zip(*curve(runs), strict=True)
            mean, low, high = zip(*shares, strict=True)
            held_out.plot(at, mean, "o-", ms=3.5, color=colour, label=name)
            held_out.fill_between(at, low, high, color=colour, alpha=0.10, lw=0)
            training.plot(*zip(*_training(runs), strict=True), "o-", ms=3.5, color=colour)
    for panel, title in ((held_out, "held-out tasks"), (training, "training episodes of each step")):
        panel.set_title(title, loc="left", fontsize=10)
        panel.set_xlabel("training episodes")
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", alpha=0.25)
    held_out.set_ylabel("success")
    held_out.set_ylim(0, 1)
    held_out.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
    figure.legend(loc="outside lower center", ncols=len(arms), frameon=False, fontsize=9)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=130)
    return picture.getvalue()


def _training(runs: Sequence[Done]) -> Iterator[tuple[float, float]]:
    """Rollouts before each step, and the share of its episodes that succeeded, over the seeds."""
    for step, successes in enumerate(zip(*(run.training for run in runs), strict=True)):
        known = [success for success in successes if success is not None]
        yield step * runs[0].curve[-1][0] / len(runs[0].training), fmean(known) if known else math.nan


def _points(found: dict[str, Any] | None) -> str:
    if found is None:
        return "-"
    low, high = found["interval"]
    return f"{100 * found['mean']:+.0f} [{100 * low:+.0f}, {100 * high:+.0f}], p = {found['p']:.2g}"


def _share(found: Sequence[float]) -> str:
    mean, low, high = found
    return f"{100 * mean:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"
