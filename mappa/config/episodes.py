"""[tasks], [sandbox], [rollout], [evaluate]: what is worked on, where its code runs, and how much of it."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Struct

from mappa.config.described import LARGEST_SEED, doc


class TasksConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the tasks come from."""

    source: Annotated[
        str,
        doc(
            "'quickstart' or 'tabular' (real tables from a package), a folder that holds train/ and heldout/ task "
            "folders, or dsbench:FOLDER, mlebench:FOLDER, jsonl:FILE, datasets:NAME?split=..., gym:GENERATOR?size=..."
        ),
    ] = "quickstart"
    heldout: Annotated[str, doc("a source of its own for the held-out tasks; empty: the source's held-out part")] = ""
    heldout_tasks: Annotated[int, doc("tasks set aside for measuring where the source has no held-out part", ge=1)] = 8
    train_tasks: Annotated[int, doc("training tasks drawn from the source, kinds in proportion; 0 = all", ge=0)] = 0
    seed: Annotated[int, doc("decides what is set aside and drawn; the run's seed does not", ge=0, le=LARGEST_SEED)] = 0


class SandboxConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where model-written code runs, and how much it may use."""

    timeout: Annotated[float, doc("seconds of wall time one execution may take", gt=0)] = 20.0
    memory_mb: Annotated[
        int, doc("address space of each process and resident memory of all processes of one execution, MiB", ge=256)
    ] = 4096
    file_mb: Annotated[int, doc("largest file that may be written, MiB", ge=1)] = 64
    workspace_mb: Annotated[int, doc("all files of one workspace together, MiB; /tmp and /dev/shm likewise", ge=1)] = (
        256
    )
    workspace_files: Annotated[int, doc("files and folders one workspace may hold", ge=16)] = 4096
    processes: Annotated[int, doc("processes and threads one execution may have", ge=1)] = 64
    cgroup: Annotated[
        str,
        doc(
            "a cgroup v2 folder delegated to the trainer's user, with the controllers memory and pids and no process "
            "in it: the kernel then bounds an execution's processes together. Empty: their resident memory is watched"
        ),
    ] = ""
    output_kb: Annotated[int, doc("stdout and stderr kept of one execution, KiB each", ge=1)] = 16
    output_limit_mb: Annotated[int, doc("stdout and stderr together at which an execution is ended, MiB", ge=1)] = 16
    parallel: Annotated[int, doc("executions at the same time; 0 = one per core", ge=0)] = 0
    recycle_after: Annotated[
        int, doc("executions after which a fresh server takes over, without a pause; 0 = never", ge=0)
    ] = 5000
    preload: Annotated[
        tuple[str, ...], doc("modules imported once, before any execution, so that importing them later is free")
    ] = ("numpy", "pandas", "sklearn.ensemble", "sklearn.linear_model", "sklearn.model_selection", "sklearn.pipeline")
    tier: Annotated[
        Literal["auto", "fork-server", "bubblewrap", "landlock"],
        doc("how executions are isolated; auto: as well as this machine can"),
    ] = "auto"
    unsafe: Annotated[
        bool,
        doc("run model-written code WITHOUT isolation; recorded in the run. Only for code you would run yourself"),
    ] = False


class RolloutConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The episodes of one step."""

    episodes: Annotated[int, doc("episodes per step", ge=1)] = 18
    samples_per_task: Annotated[int, doc("episodes of one task within a step", ge=1)] = 1
    repair_upstream: Annotated[
        bool,
        doc("when a role fails, let the next one work from reference artefacts, so that it is judged on its own merit"),
    ] = True
    deadline: Annotated[
        float,
        doc(
            "seconds from an episode's first generation to its end; then it is cut, and what it finished and scored is "
            "still learned from. A system that has asked for no generation by then is ended",
            gt=0,
        ),
    ] = 600.0
    patience: Annotated[
        float,
        doc("seconds a system may compute without awaiting anything, and hold up all others; then it is ended", gt=0),
    ] = 30.0
    tokens_in_flight: Annotated[
        int, doc("tokens being generated at once: prompts, and what may be written behind them", ge=1)
    ] = 262_144
    order: Annotated[
        Literal["longest-first", "first-come"],
        doc(
            "who generates first where that bound holds episodes back: who has most work before it, or who asked first"
        ),
    ] = "longest-first"
    max_staleness: Annotated[
        int,
        doc(
            "published versions an action's sampler may be behind the learner; 0: each step's episodes wait for its "
            "update. Above 0, the next steps' episodes run while the learner learns",
            ge=0,
        ),
    ] = 0
    max_actions: Annotated[
        int, doc("actions an episode may have before it is counted as lost: a system that never ends is ended", ge=1)
    ] = 64


class EvaluateConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the team is measured on the held-out tasks, before and after."""

    samples: Annotated[int, doc("sampled episodes per task", ge=0)] = 8
    greedy: Annotated[bool, doc("also one greedy episode per task")] = True
    temperature: Annotated[float, doc("temperature of the sampled episodes", gt=0)] = 0.6
    every: Annotated[int, doc("steps between further measurements on the way; 0 = none", ge=0)] = 0
