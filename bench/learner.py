"""The learner against the usual ways: time of a step, what sharing saves, memory, TRL, the head, many roles.

python -m bench.learner [--quick] [--json PATH] [--dry-run]

Every candidate lives in a process of its own and they take turns; seconds are that process's CPU time unless a row says
wall. Memory is what is resident: the peak of a whole process, or its rise during a step. --quick runs all of it on a
tiny random model. --dry-run prints what a node would need to train larger bases, and measures nothing.
"""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace

from bench.harness import Row, compare, environment, finish, parser, unmeasured
from bench.parts.learner_batches import (
    FULL,
    QUICK,
    Sizes,
    action_tokens,
    crowd,
    first_of_each,
    group_batch,
    star,
    team_batch,
    unshared,
)
from bench.parts.learner_workers import Failed, Measured, measure_all

PACKAGES = ("torch", "transformers", "peft", "deepspeed", "trl")
MB, GB = 1e6, 1e9
USUAL = "PEFT, a document at a time"


@dataclass(frozen=True)
class Setting:
    """What is measured on: a model's folder, its vocabulary, the batches' sizes; goals count on the full sizes only."""

    model: str
    vocabulary: int
    sizes: Sizes
    rounds: int
    full: bool

    def goal(self, text: str) -> str:
        return text if self.full else ""


def main() -> None:
    options = parser("the learner against the usual ways")
    options.add_argument("--dry-run", action="store_true", help="print the memory arithmetic, measure nothing")
    options.add_argument("--only", choices=SECTIONS, help="measure one part alone")
    arguments = options.parse_args()
    if arguments.dry_run:
        print(importlib.import_module("mappa.learn.memory_table").memory_table())
        return
    env = environment(PACKAGES)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        setting = _setting(folder, quick=arguments.quick)
        for name, section in SECTIONS.items():
            if arguments.only in (None, name):
                rows += section(setting)
                print(f"{name}: done", flush=True)
    finish("learner", rows, arguments.json, env)


def team_rows(setting: Setting) -> list[Row]:
    """A quickstart-like batch against the usual way, and what the head takes of both."""
    model = (setting.model, "float32")
    samples = team_batch(setting.sizes, setting.vocabulary)
    some = first_of_each(samples, setting.sizes.some[0])
    step = measure_all({"ours": ("Ours", *model, samples), "usual": ("UsualWay", *model, some)}, rounds=1)
    head = measure_all(
        {
            "ours": ("OurHead", *model, samples),
            "eager": ("EagerHead", *model, some, False),
            "scored": ("EagerHead", *model, some, True),
        },
        rounds=1,
    )
    ours, usual = step["ours"], step["usual"]
    what = f"3 roles x {setting.sizes.episodes} episodes, fp32"
    share, theirs = 100 * head["ours"].cpu / ours.cpu, 100 * head["eager"].cpu / usual.cpu
    every = "eager, every token"
    return [
        _rate(what, ours, usual, USUAL, setting.goal(">= 3.5"), f"{_sharing(ours)}; {_parts(ours)}"),
        compare(f"{what}: memory of a step", ours.rise / MB, usual.rise / MB, USUAL, "MB"),
        compare("lm_head + loss, share of the step", share, theirs, every, "%", setting.goal(">= 2")),
        _rate("lm_head + loss", head["ours"], head["eager"], every),
        _rate("lm_head + loss", head["ours"], head["scored"], "eager, scored rows"),
    ]


def sharing_rows(setting: Setting) -> list[Row]:
    """One prefix and its suffixes, computed once or with every suffix."""
    sizes = setting.sizes
    what = f"prefix {sizes.prefix} x {sizes.suffixes} suffixes of {sizes.suffix}"
    rows = _sharing_rows(setting, f"{what}, fp32", "float32", setting.goal(">= 3.5"))
    if {"avx512_bf16", "amx_bf16"} & set(environment()["cpu_flags"]):
        rows += _sharing_rows(setting, f"{what}, bf16", "bfloat16", setting.goal(">= 2.2"))
    else:
        rows.append(unmeasured(f"{what}, bf16", "unshared", "this processor does not multiply bf16", ">= 2.2"))
    return rows


def _sharing_rows(setting: Setting, what: str, dtype: str, goal: str) -> list[Row]:
    samples = star(setting.sizes, setting.vocabulary)
    alone = unshared(samples)[: setting.sizes.some[1]]
    measured = measure_all(
        {"ours": ("Ours", setting.model, dtype, samples), "unshared": ("Ours", setting.model, dtype, alone)},
        rounds=setting.rounds,
    )
    ours, peer = measured["ours"], measured["unshared"]
    return [
        _rate(what, ours, peer, "the same, unshared", goal, _sharing(ours)),
        compare(f"{what}: memory of a step", ours.rise / MB, peer.rise / MB, "unshared", "MB", setting.goal("<= 1")),
    ]


def logits_rows(setting: Setting) -> list[Row]:
    """That no operation of a step returns anything like [tokens, vocabulary]; on a tiny model with a large one."""
    with tempfile.TemporaryDirectory() as folder:
        measure_all({"model": ("TinyModel", folder, 32768)}, rounds=0)
        samples = star(replace(QUICK, suffix=48), 260)
        measured = measure_all({"ours": ("LargestTensor", folder, "float32", samples)}, rounds=1)["ours"]
    facts = measured.result
    what = f"largest tensor with a dimension of the vocabulary, {action_tokens(samples)} tokens"
    note = "it is the head itself, [vocabulary, width]" if facts["largest"] == facts["head"] else ""
    largest, logits = facts["largest"] / 1e6, facts["logits"] / 1e6
    return [compare(what, largest, logits, "[tokens, vocabulary]", "M elements", "<= 0.25", note=note)]


def trl_rows(setting: Setting) -> list[Row]:
    """The same completions through TRL's GRPOTrainer, one prompt's at a time: as it comes, and as it is faster."""
    sizes = setting.sizes
    samples = group_batch(sizes, setting.vocabulary)
    model = (setting.model, "float32")
    some = samples[: sizes.completions]
    one_prompt = max(sum(len(s.logprobs) for s in samples if s.group == one.group) for one in samples) + sizes.prompt
    goal = setting.goal(">= 3.5")
    ours: dict[str, tuple[object, ...]] = {
        "ours": ("Ours", *model, samples, one_prompt),
        "recomputing": ("Ours", *model, samples, one_prompt, True),
    }
    what = f"{len(samples)} completions of ~{sizes.completion} on {sizes.prompts} prompts of {sizes.prompt}"
    peers = ["TRL, as it comes"]
    try:
        measured = dict(measure_all({**ours, peers[0]: ("Trl", *model, some, True)}, rounds=1))
        if setting.full:  # by itself: all of them together do not fit into 24 GB
            peers.append("TRL, activations kept")
            measured |= measure_all({peers[1]: ("Trl", *model, some, False)}, rounds=1)
    except Failed as reason:
        return [unmeasured(what, "TRL", str(reason), goal)]
    # TRL recomputes activations as it comes. Like is compared with like, and ours at its fastest with both.
    pairs = [("recomputing", peers[0]), *(("ours", name) for name in peers)]
    rows: list[Row] = []
    for mine, name in pairs:
        us, peer = measured[mine], measured[name]
        title = what if mine == "ours" else f"{what}, activations computed again"
        rows += [
            _rate(title, us, peer, name, goal, _sharing(us)),
            _rate(title, us, peer, name, goal, wall=True),
            compare(f"{title}: peak of the process", us.peak / GB, peer.peak / GB, name, "GB", setting.goal("<= 0.5")),
            compare(f"{title}: memory of the step", us.rise / GB, peer.rise / GB, name, "GB"),
        ]
    return rows


def crowd_rows(setting: Setting) -> list[Row]:
    """Many roles against one with the same tokens, and what a role adds to the process."""
    batches = {name: crowd(setting.sizes, setting.vocabulary, as_one=name == "one") for name in ("many", "one")}
    measured = measure_all(
        {name: ("Ours", setting.model, "float32", samples) for name, samples in batches.items()},
        rounds=setting.rounds if setting.full else 3,
    )
    many, one = measured["many"], measured["one"]
    roles = setting.sizes.many_roles[0]
    added = (many.resident - one.resident) / (roles - 1) / MB
    needed = one.result["parameters_per_role"] * 16 / MB  # in fp32: weight, gradient and two moments
    what, against = f"{roles} roles, {many.result['computed']} tokens", "1 role, same tokens"
    return [
        compare(f"{what}: a step", many.cpu, one.cpu, against, "s CPU", setting.goal("<= 1.1")),
        compare(f"{what}: a step, wall", many.wall, one.wall, against, "s", setting.goal("<= 1.1")),
        compare("what a role adds", added, needed, "weights, gradients, moments", "MB", setting.goal("<= 1.1")),
    ]


SECTIONS: dict[str, Callable[[Setting], list[Row]]] = {
    "team": team_rows,
    "sharing": sharing_rows,
    "logits": logits_rows,
    "trl": trl_rows,
    "crowd": crowd_rows,
}


def _setting(folder: str, *, quick: bool) -> Setting:
    if quick:
        measure_all({"model": ("TinyModel", folder, 260)}, rounds=0)
        return Setting(folder, 260, QUICK, rounds=1, full=False)
    from mappa.config import cache_home
    from mappa.model.smollm2 import smollm2_folder

    return Setting(str(smollm2_folder(cache_home())), 49152, FULL, rounds=1, full=True)


def _rate(
    what: str, ours: Measured, peer: Measured, name: str, goal: str = "", note: str = "", *, wall: bool = False
) -> Row:
    """Trained tokens per second, each of its own batch."""

    def rate(measured: Measured) -> float:
        return float(measured.result["trained"]) / (measured.wall if wall else measured.cpu)

    unit = "tok/s wall" if wall else "tok/s CPU"
    return compare(what, rate(ours), rate(peer), name, unit, goal, more_is_better=True, note=note)


def _sharing(ours: Measured) -> str:
    return f"{ours.result['computed']} of {ours.result['unshared']} tokens computed"


def _parts(ours: Measured) -> str:
    """Where the learner's own clock saw the time go."""
    seconds: dict[str, float] = ours.result["seconds"]
    shares = {name: round(100 * value / sum(seconds.values())) for name, value in seconds.items()}
    return ", ".join(f"{name} {share} %" for name, share in shares.items())


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # what is measured; and DeepSpeed says less
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # a thread that spins for another's sake does no work
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # the libraries warn of each other in every worker
    main()
