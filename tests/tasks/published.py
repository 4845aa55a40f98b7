"""Small benchmarks in the layouts of DSBench and MLE-bench, as their downloads unpack."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

ROWS = 12
GRADER = """
from sklearn.metrics import roc_auc_score, {function}
actual = pd.read_csv(args.answer_file)
performance = {call}
with open("result.txt", "w") as f:
    f.write(str(performance))
"""


def table(kind: str, first: int, rows: int = ROWS) -> pd.DataFrame:
    numbers = range(first, first + rows)
    target = [n * 1.5 for n in numbers] if kind == "regression" else [n % 2 for n in numbers]
    return pd.DataFrame(
        {"width": [n % 5 for n in numbers], "row": [f"r{n}" for n in numbers], "color": list("rgbrgb" * 9)[:rows],
         "paid": target}
    )  # fmt: skip


def write_dsbench(root: Path, name: str, *, kind: str, function: str, call: str, scores: bool = True) -> Path:
    """One task: text ids that do not stand first, a column that only train.csv has."""
    data, folder = root / "data", root / "data" / "data_resplit" / name
    for part in (folder, data / "answers" / name, data / "task", root / "evaluation"):
        part.mkdir(parents=True, exist_ok=True)
    table(kind, 0).assign(registered=1).to_csv(folder / "train.csv", index=False)
    test = table(kind, 100, 6)
    test.drop(columns="paid").to_csv(folder / "test.csv", index=False)
    pd.DataFrame({"row": ["x1", "x2"], "paid": [0, 0]}).to_csv(folder / "sample_submission.csv", index=False)
    test.to_csv(data / "answers" / name / "test_answer.csv", index=False)
    (data / "task" / f"{name}.txt").write_text(f"The {name} challenge: predict who pays.")
    (root / "evaluation" / f"{name}_eval.py").write_text(GRADER.format(function=function, call=call))
    if scores:
        for which, score in (("baseline", 0.5), ("GT", 0.9)):
            place = root / "save_performance" / which / name
            place.mkdir(parents=True)
            (place / "result.txt").write_text(str(score))
    return folder


def write_mlebench(root: Path, name: str, grader: str, *, kind: str = "classification", answers: str = "") -> Path:
    public, private = root / name / "prepared" / "public", root / name / "prepared" / "private"
    public.mkdir(parents=True)
    private.mkdir()
    table(kind, 0).to_csv(public / "train.csv", index=False)
    test = table(kind, 100, 6)
    test.drop(columns="paid").to_csv(public / "test.csv", index=False)
    test[["row", "paid"]].to_csv(private / "test.csv", index=False)
    test[["row", "paid"]].assign(paid=0).to_csv(public / "sample_submission.csv", index=False)
    (public / "description.md").write_text(f"# {name}")
    named = answers or f"answers: {name}/prepared/private/test.csv"
    (root / name / "config.yaml").write_text(
        f"id: {name}\ndataset:\n  {named}\n\ngrader:\n  name: {grader}\n  grade_fn: y\n\npreparer: z\n"
    )
    return public
