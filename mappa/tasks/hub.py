"""Problems from packages that are optional: Hugging Face `datasets`, and the generators of `reasoning-gym`.

datasets:openai/gsm8k?name=main&split=train        columns as in maths.py
gym:basic_arithmetic?size=200&seed=1               exact answers, as the generator gives them
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any
from urllib.parse import parse_qsl

from mappa.errors import TaskError
from mappa.tasks.found import Found
from mappa.tasks.maths import tasks_of

GYM_SIZE = 200


def read_datasets(place: str) -> Found:
    """A data set of the hub, or a folder of files that `datasets` can load. Raises TaskError."""
    name, options = _options(place, {"name", "split"})
    library = _library("datasets", "datasets")
    try:
        rows = library.load_dataset(name, options.get("name"), split=options.get("split", "train"))
    except Exception as error:  # the library raises what its many formats and servers raise
        raise TaskError(f"datasets cannot load {place!r}: {type(error).__name__}: {error}") from error
    source = name.rstrip("/").rpartition("/")[2]
    return tasks_of(((str(number), row) for number, row in enumerate(rows)), source)


def read_gym(place: str) -> Found:
    """Generated problems. Raises TaskError for a generator that is not there or a setting that it does not take."""
    name, options = _options(place, None)
    library = _library("reasoning_gym", "reasoning-gym")
    settings: dict[str, Any] = {"size": GYM_SIZE, "seed": 0}
    settings |= {key: _value(text) for key, text in options.items()}
    try:
        made = library.create_dataset(name, **settings)
        return tasks_of(_generated(made, name), name)
    except TaskError:
        raise
    except Exception as error:  # an unknown generator or setting; each generator checks its own
        raise TaskError(f"reasoning-gym cannot generate {place!r}: {type(error).__name__}: {error}") from error


def _value(text: str) -> bool | int | float | str:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            pass
    return text


def _generated(made: Any, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number in range(len(made)):
        entry = made[number]
        yield str(number), {"question": entry["question"], "answer": entry["answer"], "subject": name}


def _library(module: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise TaskError(f"this source needs {package}: pip install {package} ({error})") from error


def _options(place: str, known: set[str] | None) -> tuple[str, dict[str, str]]:
    name, _, query = place.partition("?")
    options = dict(parse_qsl(query.replace("+", "%2B"), keep_blank_values=True))  # split=train+test means a plus
    unknown = sorted(options.keys() - known) if known is not None else []
    if not name or unknown:
        raise TaskError(f"source {place!r}: {f'unknown option {unknown[0]}' if unknown else 'no name'}")
    return name, options
