"""From a system's name to a checked system."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import re
import sys
from pathlib import Path
from types import ModuleType

from mappa.config import Config
from mappa.errors import TeamError
from mappa.systems.shared import SharedAdapter
from mappa.systems.stage import System
from mappa.types import Role


def team_of(config: Config) -> System:
    """The run's system, with adapters as its config has them. Raises TeamError."""
    found = load_system(config.system)
    return SharedAdapter(found) if config.adapters == "shared" else found


def load_system(name: str) -> System:
    """Import the system at 'module:name' or 'path/to/file.py:name'. Raises TeamError with what is wrong with it."""
    module_name, separator, attribute = name.rpartition(":")
    if not separator:
        raise TeamError(f"system {name!r} is not of the form 'module:name'")
    module = _import(name, module_name)
    try:
        found = getattr(module, attribute)
    except AttributeError:
        raise TeamError(f"system {name!r}: module {module_name} has no {attribute!r}") from None
    try:
        system: System = found() if isinstance(found, type) else found
        roles, run = getattr(system, "roles", None), getattr(system, "run", None)
    except Exception as error:  # a user's constructor may raise anything
        raise TeamError(f"system {name!r} cannot be made: {type(error).__name__}: {error}") from error
    if not (isinstance(roles, tuple) and all(isinstance(role, Role) for role in roles)) or not callable(run):
        raise TeamError(
            f"{name!r} is not a system: it needs `roles` (a tuple of Role) and an async `run(stage)`, or @system(...)"
        )
    _check_roles(name, roles)
    if inspect.isroutine(run) and not inspect.iscoroutinefunction(run):
        raise TeamError(f"system {name!r}: what it runs is no async function: write `async def`")
    return system


def adapters_of(system: System) -> tuple[str, ...]:
    """The adapters its roles act with, each once, in the order of the roles."""
    return tuple(dict.fromkeys(role.plays for role in system.roles if role.plays))


def frozen_adapters(system: System) -> frozenset[str]:
    """Those of them that are never changed."""
    return frozenset(role.plays for role in system.roles if role.plays and role.frozen)


def _import(name: str, module: str) -> ModuleType:
    try:
        if module.endswith(".py"):
            return _import_file(Path(module).expanduser().resolve())
        if os.getcwd() not in sys.path and "" not in sys.path:  # as under `mappa`, which is no `python -m`
            sys.path.append(os.getcwd())
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:  # whatever a user's file raises while it is imported
        kind = "" if isinstance(error, ImportError) else f"{type(error).__name__}: "
        raise TeamError(f"system {name!r} cannot be imported: {kind}{error}") from error


def _import_file(path: Path) -> ModuleType:
    """Under a name that no import statement can mean: a file may be called random.py."""
    spec = importlib.util.spec_from_file_location(f"system:{path.stem}", path)
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made  # dataclasses and pickle look there
    try:
        spec.loader.exec_module(made)
    except BaseException:
        del sys.modules[spec.name]
        raise
    return made


def _check_roles(name: str, roles: tuple[Role, ...]) -> None:
    if not roles:
        raise TeamError(f"system {name!r} has no roles; a team needs at least one")
    names = [role.name for role in roles]
    for role in roles:
        if fault := _fault(role):
            raise TeamError(f"system {name!r}, role {role.name!r}: {fault}")
        if names.count(role.name) > 1:
            raise TeamError(f"system {name!r} names the role {role.name!r} twice; every role needs a name of its own")
        for word in (role.name, role.plays or role.name):
            if not re.fullmatch(r"[A-Za-z0-9_-]+", word):
                raise TeamError(
                    f"role name {word!r} may hold letters, digits, '_' and '-' only: it names files and adapters"
                )
        if role.model and (role.adapter or role.frozen):
            raise TeamError(
                f"system {name!r}: role {role.name!r} is played by the outside model {role.model!r}, which has no "
                "adapter: leave `adapter` and `frozen` out"
            )
    for role in roles:
        others = [other.name for other in roles if other.plays == role.plays and other.frozen != role.frozen]
        if role.frozen and others:
            raise TeamError(
                f"system {name!r}: role {role.name!r} is frozen, but {others[0]!r} trains the adapter "
                f"{role.plays!r} that they share; freeze both or give one an adapter of its own"
            )


def _fault(role: Role) -> str:
    """What is wrong with its values: Python checks none of them when a user writes a Role."""
    for field in ("name", "prompt", "adapter", "model"):
        if not isinstance(getattr(role, field), str):
            return f"`{field}` must be a string"
    for field in ("needs", "produces"):
        files = getattr(role, field)
        if not isinstance(files, tuple) or not all(isinstance(file, str) for file in files):
            return f'`{field}` must be a tuple of file names, with a comma even for one: ("model.pkl",)'
    if not isinstance(role.max_tokens, int) or role.max_tokens < 1:
        return "`max_tokens` must be a whole number of at least 1"
    try:
        re.compile(role.stop or "")
    except (re.error, TypeError) as error:
        return f"`stop` is no regular expression: {error}"
    return ""
