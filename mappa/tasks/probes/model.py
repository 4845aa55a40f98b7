"""Open a model that model-written code saved, let it predict, and write the predictions as text.

No answers are here: whatever the unpickled object does, it cannot know them. Reports the facts `model.pkl` (it loads),
`has_predict` and `predicts` (one value per row of the features in `features`).
"""

import csv
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd


class Wrong(Exception):
    """What is wrong with the model, in a few words."""


def main(folder: Path = Path(".")) -> None:
    request = json.loads((folder / "request.json").read_text())
    facts = dict.fromkeys(("model.pkl", "has_predict", "predicts"), False)
    fault = None
    warnings.simplefilter("ignore")
    try:
        try_model(folder, request, facts)
    except Wrong as wrong:
        fault = str(wrong)
    (folder / "report.json").write_text(json.dumps({"facts": facts, "fault": fault}))


def try_model(folder: Path, request: dict, facts: dict[str, bool]) -> None:
    model = load(folder / "model.pkl")
    facts["model.pkl"] = True
    if not callable(getattr(model, "predict", None)):
        raise Wrong(f"model.pkl holds a {type(model).__name__}, which has no predict")
    facts["has_predict"] = True
    if not request["features"]:
        raise Wrong("there is no table to try the model on")
    features = load(folder / request["features"])
    table = pd.read_csv(folder / request["table"])
    ids = list(table[request["id_column"]] if request["id_column"] in table.columns else table.index)
    predictions = predict(model, features, request["features"])
    if len(predictions) != len(ids):
        raise Wrong(f"model predicts {len(predictions)} rows, {len(ids)} expected")
    facts["predicts"] = True
    write(folder / "predictions.csv", request, ids_of(features, ids, request["id_column"]), predictions)


def load(path: Path) -> object:
    try:
        return pd.read_pickle(path)
    except Exception as error:  # noqa: BLE001 - a foreign pickle may raise anything
        raise Wrong(f"{path.name} does not load: {shown(error)}") from None


def predict(model: Any, features: object, name: str) -> np.ndarray:
    try:
        predictions = np.asarray(model.predict(features))
    except Exception as error:  # noqa: BLE001 - a foreign model may raise anything
        raise Wrong(f"model cannot predict {name}: {shown(error)}") from None
    if predictions.ndim == 2 and predictions.shape[1] == 1:
        predictions = predictions[:, 0]
    if predictions.ndim != 1:
        raise Wrong(f"model predicts an array of {predictions.ndim} dimensions, one value per row expected")
    return predictions


def ids_of(features: object, ids: list[Any], id_column: str) -> list[Any]:
    """The ids that the features carry, in their index or in a column; else those of the table, row by row."""
    if isinstance(features, pd.DataFrame):
        for own in (list(features.index), list(features[id_column]) if id_column in features.columns else []):
            if len(own) == len(ids) and set(own) == set(ids):
                return own
    return ids


def write(path: Path, request: dict, ids: list[Any], predictions: np.ndarray) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow([request["id_column"], request["target"]])
        # tolist: numpy's own scalars print as `np.float64(1.5)`.
        table.writerows(zip(ids, predictions.tolist(), strict=True))


def shown(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:120]}" if lines else type(error).__name__


if __name__ == "__main__":
    main()
