"""Benchmarks as they are downloaded: DSBench's data modelling tasks and MLE-bench's prepared competitions.

    dsbench:DIR     DIR/data.json, DIR/data/{task,data_resplit,answers}/NAME..., DIR/evaluation, DIR/save_performance
    mlebench:DIR    DIR/ID/prepared/{public,private}/..., and ID's config.yaml beside `prepared`, in a checkout of
                    MLE-bench at DIR/.., or in the installed package

Each becomes a task folder (folder.py). The metric is read off the benchmark's own grader by the name of the function it
calls; what mappa has no such metric for (several targets, images, ranked lists) is refused with its name. Baseline and
reference are DSBench's `baseline` and `GT` where save_performance has them, else the trivial prediction's score and a
perfect one.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import math
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import msgspec
from msgspec import Struct

from mappa.errors import TaskError
from mappa.tasks.folder import TABLE_MB, TaskFile, load_task
from mappa.tasks.found import Found, Refused
from mappa.tasks.metrics import GREATER_IS_BETTER, METRICS_OF_KIND
from mappa.tasks.probes import grade
from mappa.types import Metric, Task

PERFECT = {name: float(greater) for name, greater in GREATER_IS_BETTER.items()}
FUNCTIONS = {
    "accuracy_score": "accuracy", "roc_auc_score": "auc", "log_loss": "logloss", "normalized_gini": "gini",
    "matthews_corrcoef": "mcc", "cohen_kappa_score": "qwk", "quadratic_weighted_kappa": "qwk", "qwk": "qwk",
    "mean_absolute_error": "mae", "mae": "mae", "rmse": "rmse", "root_mean_squared_error": "rmse", "rmsle": "rmsle",
    "root_mean_squared_log_error": "rmsle", "calculate_rmse": "rmse", "calculate_rmsle": "rmsle", "r2_score": "r2",
}  # fmt: skip
GRADERS = {
    "accuracy": "accuracy", "multiclassclassificationaccuracy": "accuracy",
    "auc": "auc", "aucroc": "auc", "rocauc": "auc", "areaundertheroccurve": "auc", "f1": "f1",
    "logloss": "logloss", "matthewscorrelationcoefficient": "mcc", "mcc": "mcc", "quadraticweightedkappa": "qwk",
    "rmse": "rmse", "rootmeansquarederror": "rmse", "rmsle": "rmsle", "rootmeansquaredlogarithmicerror": "rmsle",
    "rootmeansquaredlogerror": "rmsle", "mae": "mae", "meanabsoluteerror": "mae", "r2": "r2",
}  # fmt: skip


class Published(Struct, frozen=True, kw_only=True):
    """One task where it lies, before it is a task folder."""

    name: str
    train: Path
    test: Path
    sample: Path
    answers: Path
    description: str
    metric: str
    scores: tuple[float, float] | None = None
    """Baseline and reference, where the benchmark gives them."""


Reader = Callable[[Path, str], Published]


def read_dsbench(place: Path, cache: Path) -> Found:
    """The tasks of DSBench. Raises TaskError if none can be used."""
    data = next((folder for folder in (place / "data", place) if (folder / "data_resplit").is_dir()), None)
    if data is None:
        raise TaskError(f"no data_resplit folder in {place} or {place}/data: unpack DSBench's data.zip there")
    names = sorted(path.name for path in (data / "data_resplit").iterdir() if path.is_dir())
    return _import("dsbench", place, names, lambda _, name: _dsbench_task(place, data, name), cache)


def read_mlebench(place: Path, cache: Path) -> Found:
    """The prepared competitions of MLE-bench. Raises TaskError if none can be used."""
    names = sorted(path.parent.name for path in place.glob("*/prepared") if path.is_dir())
    if not names:
        raise TaskError(f"no */prepared folder in {place}: run `mlebench prepare` first, and give its data folder")
    return _import("mlebench", place, names, _mlebench_task, cache)


def _dsbench_task(root: Path, data: Path, name: str) -> Published:
    folder = data / "data_resplit" / name
    parents = (root, data, root.parent)
    script = next((p for parent in parents if (p := parent / "evaluation" / f"{name}_eval.py").is_file()), None)
    if script is None:
        raise TaskError(f"evaluation/{name}_eval.py is missing: it says which metric is meant")
    saved = [
        parent / "save_performance" / which / name / "result.txt" for which in ("baseline", "GT") for parent in parents
    ]
    found = [float(path.read_text()) for path in saved if path.is_file()]
    description = data / "task" / f"{name}.txt"
    return Published(
        name=name,
        train=folder / "train.csv",
        test=folder / "test.csv",
        sample=_one(folder, "*ample*.csv"),
        answers=data / "answers" / name / "test_answer.csv",
        description=description.read_text(errors="replace") if description.is_file() else "",
        metric=_metric_of_script(script.read_text(errors="replace")),
        scores=(found[0], found[1]) if len(found) == 2 else None,
    )


def _mlebench_task(root: Path, name: str) -> Published:
    public, private = root / name / "prepared" / "public", root / name / "prepared" / "private"
    description = public / "description.md"
    return Published(
        name=name,
        train=public / "train.csv",
        test=public / "test.csv",
        sample=_one(public, "*ample*ubmission*.csv"),
        answers=_answers_of(_config(root, name), private),
        description=description.read_text(errors="replace") if description.is_file() else "",
        metric=_metric_of_config(_config(root, name)),
    )


def _one(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise TaskError(f"{folder} has {len(found)} files like {pattern}; exactly one is expected")
    return found[0]


def _metric_of_script(text: str) -> str:
    """By the function whose value the script writes down as the performance, itself or by one name in between."""
    written = _assigned(text, "performance")
    if re.fullmatch(r"[A-Za-z_]\w*", written):
        written = _assigned(text, written)
    called = re.findall(r"([A-Za-z_]\w*)\s*\(", written)
    if re.match(r"[-\d.]|.*\)\s*[-+*/%]", written):
        _unknown(written)  # 1 - a metric, or a metric * 100
    rooted = "sqrt" in called or "squared=False" in written
    if rooted and "mean_squared_error" in called:
        return "rmse"
    if rooted and "mean_squared_log_error" in called:
        return "rmsle"
    if "f1_score" in called:  # scikit-learn's default is the F1 of class 1; the micro mean is the accuracy
        average = re.search(r"average\s*=\s*['\"]?(\w+)", written)
        label = re.search(r"pos_label\s*=\s*(?!1\b)", written)
        kinds = {"": "f1_binary", "macro": "f1", "micro": "accuracy"}
        known_f1 = None if label else kinds.get(average[1] if average else "")
        return known_f1 or _unknown(written)
    if "cohen_kappa_score" in called and not re.search(r"weights\s*=\s*['\"]quadratic", written):
        _unknown("a kappa without quadratic weights")
    if re.search(r"==.*\)\.mean\(\)\s*$", written):
        return "accuracy"
    known = [FUNCTIONS[name.lower()] for name in called if name.lower() in FUNCTIONS]
    return known[0] if len(known) == 1 else _unknown(", ".join(called) or "not to be found")


def _assigned(text: str, name: str) -> str:
    """What a script assigns to `name` last; empty where it never does."""
    return (re.findall(rf"^\s*{name}\s*=\s*(.+?)\s*(?:#.*)?$", text, re.M) or [""])[-1]


def _unknown(metric: str) -> NoReturn:
    raise TaskError(f"its metric is {metric}; known are {', '.join(GREATER_IS_BETTER)}")


def _config(root: Path, name: str) -> str:
    """The text of a competition's config.yaml. Raises TaskError."""
    places = [root / name, *(base / "mlebench" / "competitions" / name for base in (root, root.parent))]
    package = importlib.util.find_spec("mlebench")
    if package is not None and package.origin is not None:
        places.append(Path(package.origin).parent / "competitions" / name)
    config = next((path / "config.yaml" for path in places if (path / "config.yaml").is_file()), None)
    if config is None:
        raise TaskError(f"no config.yaml of {name}: copy mlebench/competitions/{name}/config.yaml to {root / name}")
    return config.read_text(errors="replace") + "\n"


def _metric_of_config(config: str) -> str:
    found = re.search(r"^grader:\s*\n(?:\s+\S.*\n)*?\s+name:\s*['\"]?([^'\"\n]+)", config, re.M)
    named = found[1].strip() if found else ""
    metric = GRADERS.get(re.sub(r"[^a-z0-9]", "", named.lower()))
    return metric or _unknown(named or "not named")


def _answers_of(config: str, private: Path) -> Path:
    """The file that the config names, which `_state` misses where it is not there; else the only table."""
    found = re.search(r"^\s+answers:\s*['\"]?([^'\"\n]+)", config, re.M)
    return private / Path(found[1].strip()).name if found else _one(private, "*.csv")


def _import(kind: str, place: Path, names: list[str], read: Reader, cache: Path) -> Found:
    """Task folders of what can be used, each built once for the state its files are in."""
    tasks: list[Task] = []
    refused = []
    for name in names:
        try:
            published = read(place, name)
            folder = cache / "tasks" / f"{kind}-{_state(published)}" / name
            if not (folder / "task.json").exists():
                with _long_fields():
                    _build(folder, published)
            tasks.append(load_task(folder))
        except (TaskError, OSError, ValueError, csv.Error) as error:
            refused.append(Refused(name, str(error)))
    if not tasks:
        first = f"; {refused[0].task}: {refused[0].why}" if refused else ""
        raise TaskError(f"{place} holds no task that can be used ({len(refused)} refused{first})")
    return Found(train=tuple(tasks), refused=tuple(refused))


@contextmanager
def _long_fields() -> Iterator[None]:
    """A field may hold a text as long as the table: csv's own limit of 128 KiB is for the whole process, so it comes
    back."""
    before = csv.field_size_limit(TABLE_MB << 20)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _state(published: Published) -> str:
    digest = hashlib.sha256(repr((published.metric, published.scores, published.description)).encode())
    for path in (published.train, published.test, published.sample, published.answers):
        if not path.is_file():
            raise TaskError(f"{path} is missing")
        if path.stat().st_size > TABLE_MB << 20:
            raise TaskError(f"{path} has {path.stat().st_size >> 20} MiB; a table may have {TABLE_MB}")
        digest.update(f"{path}|{path.stat().st_size}|{path.stat().st_mtime_ns}".encode())
    digest.update(Path(__file__).read_bytes())
    return digest.hexdigest()[:10]


def _build(folder: Path, published: Published) -> None:
    """Write the task folder; task.json last, so that what was interrupted is written again."""
    id_column, target = _columns(published.sample)
    answers = list(_rows(published.answers, (id_column, target)))
    trained = [value for (value,) in _rows(published.train, (target,)) if value]
    if not answers or not trained:
        raise TaskError(f"{'answers' if not answers else 'train.csv'}: no rows with a {target!r}")
    blank = sum(not value for _, value in answers)
    if blank:
        raise TaskError(f"{published.answers}: {blank} rows have no {target!r}")
    metric, guess = _metric(published, trained, [value for _, value in answers])
    shutil.rmtree(folder, ignore_errors=True)
    for part in ("public", "private"):
        (folder / part).mkdir(parents=True)
    shutil.copyfile(published.train, folder / "public" / "train.csv")
    shutil.copyfile(published.test, folder / "public" / "test.csv")
    _write(folder / "private" / "answers.csv", (id_column, target), answers)
    _write(folder / "public" / "sample_submission.csv", (id_column, target), [(row, guess) for row, _ in answers])
    spec = TaskFile(
        kind="regression" if metric.name in METRICS_OF_KIND["regression"] else "classification",
        target=target,
        metric=metric,
        id_column=id_column,
        prompt=published.description,
        as_published=True,
    )
    (folder / "task.json").write_bytes(msgspec.json.encode(spec))


def _metric(published: Published, trained: list[str], answers: list[str]) -> tuple[Metric, str]:
    """The metric with its two ends, and the trivial prediction."""
    name = published.metric
    if name in METRICS_OF_KIND["regression"] or name in grade.OF_SCORES:
        try:
            guess = repr(math.fsum(map(float, trained)) / len(trained))
        except ValueError as error:
            raise TaskError(f"{name} needs a target of numbers in train.csv: {error}") from None
    else:
        guess = Counter(trained).most_common(1)[0][0]
    try:
        baseline = grade.score_all([guess] * len(answers), answers, name)[name]
    except grade.Wrong as wrong:
        raise TaskError(f"its answers do not fit {name}: {wrong}") from None
    reference = PERFECT[name]
    if published.scores is not None:
        baseline, reference = published.scores
    return Metric(name=name, greater_is_better=GREATER_IS_BETTER[name], baseline=baseline, reference=reference), guess


def _columns(sample: Path) -> tuple[str, str]:
    with sample.open(newline="", encoding="utf-8-sig") as file:
        header = next(csv.reader(file), [])
    if len(header) != 2:
        raise TaskError(f"{sample.name} has {len(header)} columns; only tasks with one id and one target are known")
    return header[0], header[1]


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        absent = [name for name in columns if name not in (reader.fieldnames or [])]
        if absent:
            raise TaskError(f"{path} has no column {absent[0]!r}")
        for row in reader:
            yield tuple(row[name] or "" for name in columns)


def _write(path: Path, header: tuple[str, str], rows: list[tuple[str, ...]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
