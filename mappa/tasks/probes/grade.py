"""Grade a table of predictions against the answers. Text only: no pickle is opened where the answers are.

Reads predictions.csv or submission.csv (`file` in the request) and answers.csv, joins them by id, and reports the
facts `readable`, `columns`, `ids`, `values`, the `score` by the task's metric, and whatever else of `scores` can be
worked out of the same predictions. The order of rows does not matter; everything else about the form does.

Of classes: accuracy, f1 (the mean over all classes that are there or were named), auc (two classes, numbers predicted).
Where the metric wants scores and not labels (auc, gini, logloss), a score of a half or more counts as the label 1.
Of numbers: rmse, mae, rmsle, r2, and rmse_of_range, the rmse as a share of the range of the answers.
"""

import csv
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

MISSING = {"", "na", "nan", "none", "null", "<na>"}
NUMBER_ID = re.compile(r"([+-]?\d{1,18})(\.0*)?")


class Wrong(Exception):
    """What is wrong with the predictions, in a few words."""


def main(folder: Path = Path(".")) -> None:
    request = json.loads((folder / "request.json").read_text())
    facts = dict.fromkeys(("readable", "columns", "ids", "values"), False)
    fault, score, scores = None, None, {}
    try:
        scores = grade(folder, request, facts)
        score = scores[request["metric"]]
    except Wrong as wrong:
        fault = str(wrong)
    report = {"facts": facts, "fault": fault, "score": score, "scores": scores}
    (folder / "report.json").write_text(json.dumps(report))


def grade(folder: Path, request: dict, facts: dict[str, bool]) -> dict[str, float]:
    """The scores by name; marks in `facts` how far the predictions were in order."""
    answers = dict(read_rows(folder / "answers.csv")[1:])
    row_id = whole_number if all(NUMBER_ID.fullmatch(text.strip()) for text in answers) else str.strip
    header, *rows = read_rows(folder / request["file"]) or [[]]
    facts["readable"] = True
    check_columns(header, request["id_column"], request["target"])
    check_widths(rows)
    facts["columns"] = True
    predictions = by_id(rows, {row_id(text) for text in answers}, row_id)
    facts["ids"] = True
    given = [label(predictions[row_id(row)]) for row in answers]
    scores = score_all(given, list(answers.values()), request["metric"])
    facts["values"] = True
    return scores


def read_rows(path: Path) -> list[list[str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return [row for row in csv.reader(file, strict=True) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise Wrong(f"{path.name} is not a CSV table: {error}") from None


def check_columns(header: list[str], id_column: str, target: str) -> None:
    if header == [id_column, target]:
        return
    if header[:1] == [id_column] and len(header) == 2:
        raise Wrong(f"column {header[1]!r} is not the target {target!r}")
    if header[1:] == [target]:
        raise Wrong(f"column {header[0]!r} is not the id {id_column!r}")
    found = ", ".join(repr(name) for name in header[:5]) + (", ..." if len(header) > 5 else "")
    raise Wrong(f"columns are {found or 'none'}, not {id_column!r}, {target!r}")


def check_widths(rows: list[list[str]]) -> None:
    for row in rows:
        if len(row) != 2:
            raise Wrong(f"a row has {len(row)} fields, not 2")


def by_id(rows: list[list[str]], expected: set, row_id: Callable[[str], Any]) -> dict[Any, str]:
    found: dict[Any, str] = {}
    for text, value in rows:
        name = row_id(text)
        if name in found:
            raise Wrong(f"id {name} is there twice")
        found[name] = value
    strangers, absent = found.keys() - expected, expected - found.keys()
    if strangers:
        raise Wrong(f"{len(strangers)} ids are not in test.csv, the first is {min(strangers)}")
    if absent:
        raise Wrong(f"{len(absent)} of {len(expected)} ids are missing, the first is {min(absent)}")
    return found


def whole_number(text: str) -> int:
    match = NUMBER_ID.fullmatch(text.strip())
    if match is None:
        raise Wrong(f"id {text[:40]!r} is not a whole number")
    return int(match[1])


def number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise Wrong(f"{text[:40]!r} is not a number") from None
    if not math.isfinite(value):
        raise Wrong(f"{text[:40]!r} is not a finite number")
    return value


def label(text: str) -> str:
    if text.strip().lower() in MISSING:
        raise Wrong("predictions are missing for some rows")
    return text


def numbers_only(texts: Iterable[str]) -> bool:
    try:
        return all(math.isfinite(float(text)) for text in texts)
    except ValueError:
        return False


def score_all(given: Sequence[str], answers: Sequence[str], metric: str) -> dict[str, float]:
    """Every score that these predictions have, the task's metric among them."""
    numeric = numbers_only(answers)
    if metric in OF_NUMBERS:
        if not numeric:
            raise Wrong(f"answers of {metric} must be finite numbers")
        predictions, truth = [number(text) for text in given], [float(text) for text in answers]
        scores = {"rmse": rmse(predictions, truth), "rmse_of_range": of_range(predictions, truth)}
        return finite(scores | {metric: OF_NUMBERS[metric](predictions, truth)})
    if not numeric:
        if metric in OF_SCORES:
            raise Wrong(f"answers of {metric} must be 0 and 1")
        return finite({name: measure(given, answers) for name, measure in OF_LABELS.items() if wanted(name, metric)})
    predictions, truth = [number(text) for text in given], [float(text) for text in answers]
    classes = sorted(set(truth))
    scores = {}
    if metric in OF_SCORES:
        if not set(classes) <= {0.0, 1.0}:
            raise Wrong(f"answers of {metric} must be 0 and 1")
        scores = {metric: OF_SCORES[metric](predictions, truth)}
        predictions = [float(value >= 0.5) for value in predictions]
    elif len(classes) == 2:
        scores = {
            "auc": auc([float(value == classes[1]) for value in predictions], [float(t == classes[1]) for t in truth])
        }
    return finite({n: measure(predictions, truth) for n, measure in OF_LABELS.items() if wanted(n, metric)} | scores)


def wanted(name: str, metric: str) -> bool:
    return name in ("accuracy", "f1", metric)


def finite(scores: dict[str, float]) -> dict[str, float]:
    if not all(math.isfinite(score) for score in scores.values()):
        raise Wrong("predictions are too large to be measured")
    return scores


def rmse(given: Sequence[float], truth: Sequence[float]) -> float:
    # A product, not a power: a float's power raises where its product is infinite.
    return math.sqrt(math.fsum((g - t) * (g - t) for g, t in zip(given, truth, strict=True)) / len(truth))


def of_range(given: Sequence[float], truth: Sequence[float]) -> float:
    return rmse(given, truth) / ((max(truth) - min(truth)) or 1.0)


def mae(given: Sequence[float], truth: Sequence[float]) -> float:
    return math.fsum(abs(g - t) for g, t in zip(given, truth, strict=True)) / len(truth)


def rmsle(given: Sequence[float], truth: Sequence[float]) -> float:
    if min(given) <= -1:
        raise Wrong("rmsle needs predictions above -1")
    if min(truth) <= -1:
        raise Wrong("rmsle needs answers above -1")
    return rmse([math.log1p(g) for g in given], [math.log1p(t) for t in truth])


def r2(given: Sequence[float], truth: Sequence[float]) -> float:
    mean = math.fsum(truth) / len(truth)
    return 1 - rmse(given, truth) ** 2 * len(truth) / (math.fsum((t - mean) ** 2 for t in truth) or 1.0)


def accuracy(given: Sequence[Any], truth: Sequence[Any]) -> float:
    return sum(g == t for g, t in zip(given, truth, strict=True)) / len(truth)


def f1(given: Sequence[Any], truth: Sequence[Any]) -> float:
    """The mean of 2 hits / (named + there) over the classes of either side, as scikit-learn's macro average."""
    classes = {*truth, *given}
    hits, named, there = Counter(t for g, t in zip(given, truth, strict=True) if g == t), Counter(given), Counter(truth)
    return math.fsum(2 * hits[name] / (named[name] + there[name]) for name in classes) / len(classes)


def f1_binary(given: Sequence[Any], truth: Sequence[Any]) -> float:
    """That of the greater of two classes: where 1 is what is looked for."""
    classes = sorted(set(truth))
    if len(classes) != 2:
        raise Wrong(f"f1_binary needs answers of two classes, not {len(classes)}")
    hits = sum(g == t == classes[-1] for g, t in zip(given, truth, strict=True))
    return 2 * hits / (sum(g == classes[-1] for g in given) + sum(t == classes[-1] for t in truth))


def mcc(given: Sequence[Any], truth: Sequence[Any]) -> float:
    """Matthews' coefficient for any number of classes (Gorodkin 2004)."""
    n, right = len(truth), sum(g == t for g, t in zip(given, truth, strict=True))
    named, there = Counter(given), Counter(truth)
    cover = sum(named[name] * there[name] for name in there)
    spread = (n * n - sum(c * c for c in named.values())) * (n * n - sum(c * c for c in there.values()))
    return (right * n - cover) / math.sqrt(spread) if spread else 0.0


def qwk(given: Sequence[Any], truth: Sequence[Any]) -> float:
    """Quadratic weighted kappa over whole numbers."""
    pairs = [(round(number(str(g))), round(number(str(t)))) for g, t in zip(given, truth, strict=True)]
    named, there = Counter(g for g, _ in pairs), Counter(t for _, t in pairs)
    chance = sum((a - b) ** 2 * n * m for a, n in named.items() for b, m in there.items()) / len(pairs)
    return 1 - sum((g - t) ** 2 for g, t in pairs) / chance if chance else 1.0


def auc(given: Sequence[float], truth: Sequence[float]) -> float:
    """The chance that a one is ranked above a zero; ties count half."""
    ranked = sorted(zip(given, truth, strict=True))
    ones, zeros, below, total, place = sum(truth), len(truth) - sum(truth), 0.0, 0.0, 0
    if not ones or not zeros:
        raise Wrong("auc needs answers of both classes")
    while place < len(ranked):
        end = place
        while end < len(ranked) and ranked[end][0] == ranked[place][0]:
            end += 1
        tied = sum(t for _, t in ranked[place:end])
        total += tied * (below + (end - place - tied) / 2)
        below += end - place - tied
        place = end
    return total / (ones * zeros)


def gini(given: Sequence[float], truth: Sequence[float]) -> float:
    """The normalised Gini coefficient of two classes."""
    return 2 * auc(given, truth) - 1


def logloss(given: Sequence[float], truth: Sequence[float]) -> float:
    if min(given) < 0 or max(given) > 1:
        raise Wrong("logloss needs probabilities between 0 and 1")
    kept = [min(max(g, 1e-15), 1 - 1e-15) for g in given]
    return -math.fsum(math.log(g if t else 1 - g) for g, t in zip(kept, truth, strict=True)) / len(truth)


OF_NUMBERS = {"rmse": rmse, "mae": mae, "rmsle": rmsle, "r2": r2}
OF_LABELS = {"accuracy": accuracy, "f1": f1, "f1_binary": f1_binary, "mcc": mcc, "qwk": qwk}
OF_SCORES = {"auc": auc, "gini": gini, "logloss": logloss}


if __name__ == "__main__":
    main()
