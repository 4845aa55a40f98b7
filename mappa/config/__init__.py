"""One strict configuration: msgspec structs read from TOML, with dotted overrides from the command line.

    config = load_config("configs/quickstart.toml", ["learn.lr=2e-4", "seed=1"])

An unknown key, a wrong type or a value out of range is a ConfigError with the path to the key.
"""

from mappa.config.coach import ChatConfig, CoachConfig
from mappa.config.describing import describe
from mappa.config.episodes import EvaluateConfig, RolloutConfig, SandboxConfig, TasksConfig
from mappa.config.learn import GroupBy, LearnConfig, RewardKind, RoleLearnConfig, role_setting
from mappa.config.machine import available_cores, cache_home
from mappa.config.run import MAY_CHANGE, Config, LogConfig, config_from, differences, load_config, override
from mappa.config.sampler import OutsideConfig, SamplerConfig, SGLangConfig
from mappa.config.serve import ServeConfig, serve_config

__all__ = [
    "MAY_CHANGE",
    "ChatConfig",
    "CoachConfig",
    "Config",
    "EvaluateConfig",
    "GroupBy",
    "LearnConfig",
    "LogConfig",
    "OutsideConfig",
    "RewardKind",
    "RoleLearnConfig",
    "RolloutConfig",
    "SGLangConfig",
    "SamplerConfig",
    "SandboxConfig",
    "ServeConfig",
    "TasksConfig",
    "available_cores",
    "cache_home",
    "config_from",
    "describe",
    "differences",
    "load_config",
    "override",
    "role_setting",
    "serve_config",
]
