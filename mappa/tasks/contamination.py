"""What held-out tasks share with training tasks, and what a task gives away of itself.

Text: equal after normalising case, space and punctuation, but not operators (5 + 3 is not 5 - 3); or sharing 13-grams
of words, the usual measure. Tables: equal rows, ids and target aside; or a table of the same columns, which is the same
data under another name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import pandas as pd

from mappa.tasks.found import Overlap
from mappa.types import Task

GRAM = 13
ROWS = 5_000
"""Rows of a table that are looked at."""
SAME_COLUMNS = 0.8
"""Share of a held-out table's feature names that a training table has, from which the two are called alike."""


def contamination(train: Sequence[Task], heldout: Sequence[Task]) -> tuple[Overlap, ...]:
    """Every training task whose text is a held-out task's, and for every held-out task its worst overlap with the
    others, where it has one."""
    found = [*_of_texts([t for t in train if not t.folder], [t for t in heldout if not t.folder])]
    found += _of_tables([t for t in train if t.folder], [t for t in heldout if t.folder])
    return tuple(found)


def normal(text: str) -> str:
    """Words of letters and digits in lower case: what stays of a text that was copied by hand."""
    return " ".join(re.findall(r"\w+", text.lower()))


def copied(text: str) -> str:
    """The same with operators and decimal points, which make another problem; hyphens between words are none."""
    text = re.sub(r"(?<=[^\W\d_]{2})-(?=[^\W\d_]{2})", " ", text.lower().replace("\N{MINUS SIGN}", "-"))
    return " ".join(re.findall(r"\d+(?:\.\d+)+|\w+|[-+*/^=<>|!%×÷·√±≤≥≠]", text))


def grams(text: str) -> set[str]:
    """The 13-grams of words; the whole text where it is shorter."""
    words = normal(text).split()
    return {" ".join(words[i : i + GRAM]) for i in range(max(1, len(words) - GRAM + 1))} if words else set()


def given_away(task: Task) -> list[str]:
    """Features of a task with files that alone say what the target is; worked out on its training table."""
    table = pd.read_csv(f"{task.folder}/public/train.csv", nrows=ROWS)
    target = table[task.target]
    names = [name for name in table.columns if name not in (task.target, task.id_column)]
    return [name for name in names if _says(table[name], target, task.kind)]


def _of_texts(train: Sequence[Task], heldout: Sequence[Task]) -> Iterator[Overlap]:
    same: dict[str, list[str]] = {copied(task.prompt): [] for task in heldout}
    owners: dict[str, str] = {}
    for task in train:
        copies = same.get(copied(task.prompt))
        if copies is not None:
            copies.append(task.id)
        else:
            owners |= dict.fromkeys(grams(task.prompt), task.id)
    for task in heldout:
        yield from (Overlap(name, task.id, "exact", 1.0) for name in same[copied(task.prompt)])
        own = grams(task.prompt)
        shared = [owners[gram] for gram in own if gram in owners]
        if shared:
            yield Overlap(max(set(shared), key=shared.count), task.id, "13-gram", len(shared) / len(own))


def _of_tables(train: Sequence[Task], heldout: Sequence[Task]) -> Iterator[Overlap]:
    known = [(task.id, *_features(task, "train.csv")) for task in train]
    for task in heldout:
        columns, rows = _features(task, "test.csv")
        best: Overlap | None = None
        for name, other_columns, other_rows in known:
            alike = len(columns & other_columns) / max(1, len(columns))
            equal = len(rows & other_rows) / max(1, len(rows)) if columns == other_columns else 0.0
            for how, share, least in (("rows", equal, 0.0), ("columns", alike, SAME_COLUMNS)):
                if share > least and (best is None or (how == best.how and share > best.share)):
                    best = Overlap(name, task.id, how, share)
        if best is not None:
            yield best


def _features(task: Task, name: str) -> tuple[frozenset[str], set[str]]:
    table = pd.read_csv(f"{task.folder}/public/{name}", nrows=ROWS)
    kept = sorted(column for column in table.columns if column not in (task.target, task.id_column))
    return frozenset(kept), {"|".join(map(_cell, row)) for row in table[kept].itertuples(index=False)}


def _cell(value: object) -> str:
    """A column of whole numbers is read as floats where one of them is missing."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _says(feature: pd.Series, target: pd.Series, kind: str) -> bool:
    """A number that runs along with the target; or few enough values, each of one class only."""
    if feature.nunique() < 2 or target.nunique() < 2:
        return False
    if kind == "regression":
        numeric = pd.api.types.is_numeric_dtype(feature) and not pd.api.types.is_bool_dtype(feature)
        return numeric and abs(feature.corr(target, method="spearman")) > 0.9999
    if feature.nunique() > len(feature) / 4:
        return False  # a name of its own for nearly every row says nothing about rows to come
    return bool((target.groupby(feature).nunique() == 1).all())
