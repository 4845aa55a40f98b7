"""Grade a table of predictions against the answers. Text only: no pickle is opened where the answers are.

Reads predictions.csv or submission.csv (`file` in the request) and answers.csv, joins them by id, and reports the facts
`readable`, `columns`, `ids`, `values` and the `score`: RMSE or accuracy. The order of rows does not matter; everything
else about the form does.
"""

import csv
import json
import math
import re
from collections.abc import Iterable
from pathlib import Path

MISSING = {"", "na", "nan", "none", "null", "<na>"}
NUMBER_ID = re.compile(r"([+-]?\d{1,18})(\.0*)?")


class Wrong(Exception):
    """What is wrong with the predictions, in a few words."""


def main(folder: Path = Path(".")) -> None:
    request = json.loads((folder / "request.json").read_text())
    facts = dict.fromkeys(("readable", "columns", "ids", "values"), False)
    fault = score = None
    try:
        score = grade(folder, request, facts)
    except Wrong as wrong:
        fault = str(wrong)
    (folder / "report.json").write_text(json.dumps({"facts": facts, "fault": fault, "score": score}))


def grade(folder: Path, request: dict, facts: dict[str, bool]) -> float:
    """The score; marks in `facts` how far the predictions were in order."""
    answers = dict(read_rows(folder / "answers.csv")[1:])
    header, *rows = read_rows(folder / request["file"]) or [[]]
    facts["readable"] = True
    check_columns(header, request["id_column"], request["target"])
    check_widths(rows)
    facts["columns"] = True
    predictions = by_id(rows, {whole_number(text) for text in answers})
    facts["ids"] = True
    pairs = [(predictions[whole_number(row)], answer) for row, answer in answers.items()]
    if numbers_only(answer for _, answer in pairs):
        score = score_numbers([(number(given), float(answer)) for given, answer in pairs], request["metric"])
    else:
        score = share([label(given) == answer for given, answer in pairs])
    facts["values"] = True
    return score


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


def by_id(rows: list[list[str]], expected: set[int]) -> dict[int, str]:
    found: dict[int, str] = {}
    for text, value in rows:
        row_id = whole_number(text)
        if row_id in found:
            raise Wrong(f"id {row_id} is there twice")
        found[row_id] = value
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
    label(text)
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


def score_numbers(pairs: list[tuple[float, float]], metric: str) -> float:
    if metric == "accuracy":
        return share([given == answer for given, answer in pairs])
    differences = [given - answer for given, answer in pairs]
    score = math.sqrt(math.fsum(gap * gap for gap in differences) / len(pairs))
    if not math.isfinite(score):
        raise Wrong("predictions are too large to be measured")
    return score


def share(right: list[bool]) -> float:
    return sum(right) / len(right)


if __name__ == "__main__":
    main()
