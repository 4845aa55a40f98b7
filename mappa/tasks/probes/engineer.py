"""Look at the tables that a data engineer left: X_train.pkl, y_train.pkl and X_test.pkl, beside train.csv and test.csv.

Every fact is judged on its own where that is possible, so that each piece that is right can be told from each that is
not. The pickles are opened by an unpickler that knows pandas' and numpy's types and nothing else: a table does not need
more, and an object that forges this report would. (What keeps the host safe is the sandbox, not this.)
"""

import json
import pickle
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_complex_dtype, is_numeric_dtype

TABLES = ("X_train.pkl", "y_train.pkl", "X_test.pkl")
FACTS = (*TABLES, "shapes", "ids", "target_left_out", "same_columns", "target_values", "numeric", "no_missing")
BUILDERS = {
    ("_codecs", "encode"),
    ("numpy", "dtype"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
    ("pandas._libs.arrays", "__pyx_unpickle_NDArrayBacked"),
    ("pandas._libs.internals", "_unpickle_block"),
    ("pandas.core.indexes.base", "_new_Index"),
    ("pandas.core.indexes.datetimes", "_new_DatetimeIndex"),
    ("pandas.core.indexes.interval", "_new_IntervalIndex"),
    # pandas keeps text in arrow's arrays where pyarrow is installed.
    ("pyarrow.lib", "_restore_array"),
    ("pyarrow.lib", "py_buffer"),
    ("pyarrow.lib", "type_for_alias"),
}
PLAIN = {"bytearray", "complex", "dict", "frozenset", "list", "object", "range", "set", "slice", "tuple"}


class TableUnpickler(pickle.Unpickler):
    """Loads tables and arrays; anything else is refused by name."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) in BUILDERS or (module in ("builtins", "__builtin__") and name in PLAIN):
            return super().find_class(module, name)
        if module.split(".")[0] in ("pandas", "numpy", "datetime"):
            found = super().find_class(module, name)
            if isinstance(found, type):
                return found
        raise pickle.UnpicklingError(f"it holds {module}.{name}, which no table needs")


class Findings:
    """Facts, and the first fault that was met."""

    def __init__(self) -> None:
        self.facts = dict.fromkeys(FACTS, False)
        self.fault: str | None = None

    def note(self, name: str, faults: list[str]) -> None:
        """The fact `name` holds if there are no faults; the first fault of all is kept."""
        self.facts[name] = not faults
        if faults and self.fault is None:
            self.fault = faults[0]


def main(folder: Path = Path(".")) -> None:
    request = json.loads((folder / "request.json").read_text())
    warnings.simplefilter("ignore")
    train = read_table(folder / "train.csv", request["id_column"])
    test = read_table(folder / "test.csv", request["id_column"])
    findings = Findings()
    judge(findings, [load(folder / name, findings) for name in TABLES], train, test, request["target"])
    report = {"facts": findings.facts, "fault": findings.fault}
    (folder / "report.json").write_text(json.dumps(report))


def read_table(path: Path, id_column: str) -> pd.DataFrame:
    """With the ids as index, where the table has them, each once: published training tables need not."""
    table = pd.read_csv(path)
    if id_column in table.columns and table[id_column].is_unique:
        return table.set_index(id_column)
    return table.drop(columns=id_column, errors="ignore")


def load(path: Path, findings: Findings) -> pd.DataFrame | pd.Series | np.ndarray | None:
    """The table or the column of values; None, and a fault, where there is none."""
    as_wanted = as_values if path.name == "y_train.pkl" else as_table
    try:
        with path.open("rb") as file:
            found = as_wanted(TableUnpickler(file).load())
    except FileNotFoundError:
        findings.note(path.name, [f"{path.name} missing"])
    except Exception as error:  # noqa: BLE001 - a foreign pickle may raise anything
        findings.note(path.name, [f"{path.name} does not load: {shown(error)}"])
    else:
        findings.note(path.name, [])
        return found
    return None


def as_table(found: object) -> pd.DataFrame:
    if isinstance(found, np.ndarray) and found.ndim == 2:
        return pd.DataFrame(found)
    if isinstance(found, pd.DataFrame):
        return found
    raise TypeError(f"it holds a {type(found).__name__}, not a table")


def as_values(found: object) -> pd.DataFrame | pd.Series | np.ndarray:
    if isinstance(found, (pd.Series, pd.DataFrame)):
        return found
    values = np.asarray(found)
    if values.ndim == 0:
        raise TypeError(f"it holds a {type(found).__name__}, not a column of values")
    return values


def judge(findings: Findings, tables: list[Any], train: pd.DataFrame, test: pd.DataFrame, target: str) -> None:
    """Facts about what could be loaded; a fact that needs a table which is not there stays false."""
    x, y, z = tables
    if x is not None and y is not None and z is not None:
        findings.note("shapes", shape_faults(x, y, z, len(train), len(test)))
    if x is not None and z is not None:
        classes = [] if is_numeric_dtype(train[target]) else train[target].unique()
        findings.note("target_left_out", target_faults(x, z, target, classes))
        findings.note("same_columns", column_faults(x, z))
    if y is not None:
        findings.note("target_values", value_faults(x, y, train[target]))
    if x is not None and z is not None:
        findings.note("numeric", named("text columns left", [*text_columns(x), *text_columns(z)]))
        findings.note("no_missing", named("missing values left", [*gaps(x), *gaps(z)]))
    if z is not None:
        # Noted last: a role may find the ids elsewhere, so this alone is no fault.
        findings.facts["ids"] = len(z) == len(test) and set(z.index) == set(test.index)


def shape_faults(x: pd.DataFrame, y: Any, z: pd.DataFrame, train_rows: int, test_rows: int) -> list[str]:
    faults = []
    if x.shape[1] == 0:
        faults.append("X_train.pkl has no columns")
    if np.ndim(y) != 1:
        faults.append(f"y_train.pkl has {np.ndim(y)} dimensions, 1 expected")
    for name, thing, rows in (("X_train", x, train_rows), ("y_train", y, train_rows), ("X_test", z, test_rows)):
        if len(thing) != rows:
            faults.append(f"{name}.pkl has {len(thing)} rows, {rows} expected")
    return faults


def target_faults(x: pd.DataFrame, z: pd.DataFrame, target: str, classes: Iterable[Any]) -> list[str]:
    """The target as it is, or turned into one column per class."""
    given_away = {target, *(f"{target}_{label}" for label in classes)}
    for name, table in (("X_train.pkl", x), ("X_test.pkl", z)):
        found = [column for column in table.columns if column in given_away]
        if found:
            return [f"target left in {name}: {quoted(found)}"]
    return []


def column_faults(x: pd.DataFrame, z: pd.DataFrame) -> list[str]:
    if list(x.columns) == list(z.columns):
        return []
    absent = [column for column in x.columns if column not in set(z.columns)]
    extra = [column for column in z.columns if column not in set(x.columns)]
    if absent:
        return [f"columns of X_train.pkl that X_test.pkl lacks: {quoted(absent)}"]
    if extra:
        return [f"columns of X_test.pkl that X_train.pkl lacks: {quoted(extra)}"]
    return ["X_test.pkl has X_train.pkl's columns in another order"]


def value_faults(x: pd.DataFrame | None, y: Any, target: pd.Series) -> list[str]:
    """Are the values of y those of the target, in the order of X_train's rows?"""
    fault = [f"y_train.pkl is not the target {target.name!r}"]
    values = pd.Series(np.asarray(y).ravel())
    if len(values) != len(target):
        return fault
    expected = target.loc[row_order(x if x is not None else y, target.index)].reset_index(drop=True)
    if is_numeric_dtype(expected):
        numbers = pd.to_numeric(values, errors="coerce").astype(float)
        return [] if np.allclose(numbers, expected.astype(float), rtol=1e-6) else fault
    return [] if (values.astype(str) == expected.astype(str)).all() else fault


def row_order(thing: object, ids: pd.Index) -> pd.Index:
    """The ids in the order of `thing`'s rows, where its index or its id column carries them; else in the table's."""
    if isinstance(thing, (pd.Series, pd.DataFrame)):
        candidates = [thing.index]
        if isinstance(thing, pd.DataFrame) and ids.name in thing.columns:
            candidates.append(pd.Index(thing[ids.name]))
        for own in candidates:
            if len(own) == len(ids) and set(own) == set(ids):
                return own
    return ids


def text_columns(table: pd.DataFrame) -> list[Any]:
    kinds = zip(table.columns, table.dtypes, strict=True)
    return [column for column, kind in kinds if not is_numeric_dtype(kind) or is_complex_dtype(kind)]


def gaps(table: pd.DataFrame) -> list[Any]:
    """Columns with a missing or infinite value, neither of which scikit-learn takes."""
    bad = table.replace([np.inf, -np.inf], np.nan).isna().any().to_numpy()
    return [column for column, found in zip(table.columns, bad, strict=True) if found]


def named(what: str, columns: list[Any]) -> list[str]:
    return [f"{what}: {quoted(columns)}"] if columns else []


def quoted(columns: list[Any]) -> str:
    names = list(dict.fromkeys(str(column)[:60] for column in columns))
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def shown(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:120]}" if lines else type(error).__name__


if __name__ == "__main__":
    main()
