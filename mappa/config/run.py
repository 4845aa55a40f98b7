"""One training run: its sections together, and what does not go together."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Struct

from mappa.config.coach import CoachConfig
from mappa.config.described import LARGEST_SEED, doc
from mappa.config.episodes import EvaluateConfig, RolloutConfig, SandboxConfig, TasksConfig
from mappa.config.learn import LearnConfig
from mappa.config.reading import apply, checked
from mappa.config.sampler import OutsideConfig, SamplerConfig
from mappa.errors import ConfigError

LONGEST_NAME = 200
"""Bytes: a file system takes 255, and the name of a lock is a little longer."""


class LogConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who else gets a step's numbers; TensorBoard files are always written."""

    wandb: Annotated[
        Literal["off", "online", "offline"],
        doc("'offline': files in the run's folder, for `wandb sync`; needs pip install wandb"),
    ] = "off"
    trackio: Annotated[bool, doc("also log to trackio, on this machine; needs pip install trackio")] = False
    project: Annotated[str, doc("the project's name there", min_length=1)] = "mappa"


class Config(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One training run."""

    name: Annotated[str, doc("name of the run's folder under `runs`", min_length=1)]
    model: Annotated[
        str, doc("base model: a local folder, a hub name, or 'smollm2-135m-instruct' (from a package, no hub needed)")
    ] = "smollm2-135m-instruct"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"],
        doc("of the frozen base; auto: bfloat16 where the machine multiplies it natively, else float32"),
    ] = "auto"
    system: Annotated[str, doc("the team: 'module:name'")] = "mappa.systems.datascience:DataScienceTeam"
    adapters: Annotated[
        Literal["per-role", "shared"],
        doc("'per-role': as the system's roles say, each its own unless they name one; 'shared': one for all of them"),
    ] = "per-role"
    runs: Annotated[str, doc("folder that holds the run folders")] = "runs"
    seed: Annotated[int, doc("everything random derives from it", ge=0, le=LARGEST_SEED)] = 0
    steps: Annotated[int, doc("updates", ge=1)] = 10
    save_every: Annotated[int, doc("steps between checkpoints", ge=1)] = 1
    keep: Annotated[int, doc("checkpoints kept", ge=1)] = 2
    threads: Annotated[int, doc("CPU threads of one rank; 0 = cores divided by ranks", ge=0)] = 0
    tasks: Annotated[TasksConfig, doc("where the tasks come from")] = TasksConfig()
    sandbox: Annotated[SandboxConfig, doc("where model-written code runs")] = SandboxConfig()
    coach: Annotated[CoachConfig, doc("who scores actions")] = CoachConfig()
    sampler: Annotated[SamplerConfig, doc("who generates")] = SamplerConfig()
    outside: Annotated[
        dict[str, OutsideConfig], doc("models that play roles from outside, such as [outside.teacher] url = ...")
    ] = msgspec.field(default_factory=dict)
    rollout: Annotated[RolloutConfig, doc("the episodes of one step")] = RolloutConfig()
    learn: Annotated[LearnConfig, doc("the update")] = LearnConfig()
    evaluate: Annotated[EvaluateConfig, doc("measurement on held-out tasks")] = EvaluateConfig()
    log: Annotated[LogConfig, doc("where a step's numbers go besides TensorBoard")] = LogConfig()


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read TOML at `path`, apply `section.key=value` overrides, check everything. Raises ConfigError."""
    path = Path(path)
    try:
        raw = tomllib.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"no config file at {path}; configs/ holds the ones that come with mappa") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    except ValueError as error:  # no TOML, no UTF-8, no path
        raise ConfigError(f"{path} is not a TOML file: {error}") from None
    for override in overrides:
        apply(raw, override)
    return config_from(raw, where=str(path))


def config_from(raw: dict[str, Any], *, where: str = "config") -> Config:
    """Check plain data against `Config`. Raises ConfigError that names the wrong key and the nearest right one."""
    config = checked(raw, Config, where=where)
    _refuse_name(config.name, where)
    _refuse_own(config, where)
    _refuse_together(config, where)
    return config


def override(config: Config, overrides: Sequence[str]) -> Config:
    """`config` with `section.key=value` overrides. Raises ConfigError."""
    raw = msgspec.to_builtins(config)
    for text in overrides:
        apply(raw, text)
    return config_from(raw)


def _refuse_name(name: str, where: str) -> None:
    """Raises ConfigError for a name that leads to another place than a folder of its own under `runs`."""
    if name.startswith(".") or "/" in name or not name.isprintable() or len(name.encode()) > LONGEST_NAME:
        raise ConfigError(
            f"{where}: name={name!r} cannot name a folder of its own; use at most {LONGEST_NAME} printable bytes, "
            "without a slash and with no dot at the beginning; runs=FOLDER says where run folders lie"
        )


def _refuse_own(config: Config, where: str) -> None:
    """Raises ConfigError for what the learner has a key for when it is embedded elsewhere and a run says at its top."""
    learn = config.learn
    given = {
        "model": learn.model not in ("", config.model),
        "dtype": learn.dtype not in ("auto", config.dtype),
        "seed": learn.seed not in (0, config.seed),
    }
    for key, other in given.items():
        if other:
            raise ConfigError(
                f"{where}: learn.{key}={getattr(learn, key)!r} is for a learner that is embedded elsewhere; a run's is "
                f"{key}={getattr(config, key)!r}, set that and leave learn.{key} out"
            )
    if learn.roles:
        raise ConfigError(
            f"{where}: learn.roles={list(learn.roles)} is for a learner that is embedded elsewhere; a run's roles are "
            "those of its system, set system and adapters and leave learn.roles out"
        )


def _refuse_together(config: Config, where: str) -> None:
    """Raises ConfigError for values that are right by themselves and do not go together."""
    if config.learn.shard_base:
        raise ConfigError(
            f"{where}: learn.shard_base divides the base that sampler.kind='local' generates with; leave it out here. "
            "It is for learners whose samples come from elsewhere"
        )
    if not config.coach.monitor and (config.coach.correct != "off" or config.coach.memory):
        raise ConfigError(
            f"{where}: coach.correct and coach.memory live on what coach.monitor has seen; leave it on, or both off"
        )
    if config.coach.kind == "ensemble" and not config.coach.member:
        raise ConfigError(
            f"{where}: coach.kind='ensemble' has the rubric for its only member; name endpoints in "
            "[coach.member.NAME], or set coach.kind='rubric'"
        )
    if config.coach.rewrite_below and config.coach.kind not in ("llm", "ensemble"):
        raise ConfigError(
            f"{where}: coach.rewrite_below needs a coach that writes; coach.kind is {config.coach.kind!r}, set it to "
            "'llm' or 'ensemble'"
        )
    if config.sampler.kind == "local" and config.rollout.max_staleness > 0:
        raise ConfigError(
            f"{where}: rollout.max_staleness={config.rollout.max_staleness} lets episodes run while the learner "
            "learns, and sampler.kind='local' generates with the learner's own layers; set it to 0"
        )


MAY_CHANGE = ("coach.budget_tokens", "coach.budget_dollars")
"""What a run may go on with another value of: how far it gets, not what it does, depends on it."""


def differences(old: Config, new: Config) -> list[str]:
    """One line per value that differs and must not: `learn.lr: 0.0005 -> 0.0002`."""
    before, after = dict(_flatten(old)), dict(_flatten(new))
    keys = [key for key in before if key not in MAY_CHANGE and before[key] != after[key]]
    return [f"{key}: {before[key]} -> {after[key]}" for key in keys]


def _flatten(config: Struct, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name in config.__struct_fields__:
        value = getattr(config, name)
        if isinstance(value, Struct):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
