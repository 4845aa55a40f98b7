"""The grader's metrics against scikit-learn's, and submissions of every bad kind."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
from sklearn import metrics as sk

from mappa.tasks.probes import grade

DRAW = random.Random(0)
TRUTH = [float(DRAW.random() > 0.6) for _ in range(60)]
CHANCES = [round(0.6 * DRAW.random() + 0.3 * truth, 1) for truth in TRUTH]  # rounded, so that there are ties
GRADES = [float(DRAW.randint(0, 4)) for _ in range(60)]
GUESSES = [float(min(4, max(0, g + DRAW.randint(-1, 1)))) for g in GRADES]
AMOUNTS = [DRAW.random() * 100 for _ in range(60)]
NEAR = [amount + DRAW.gauss(0, 9) for amount in AMOUNTS]
NEAR = [max(0.0, near) for near in NEAR]


def scores(given: list[float], truth: list[float], metric: str) -> dict[str, float]:
    return grade.score_all([repr(g) for g in given], [repr(t) for t in truth], metric)


@pytest.mark.parametrize(
    ("metric", "given", "truth", "expected"),
    [
        ("auc", CHANCES, TRUTH, sk.roc_auc_score(TRUTH, CHANCES)),
        ("logloss", CHANCES, TRUTH, sk.log_loss(TRUTH, CHANCES)),
        ("accuracy", GUESSES, GRADES, sk.accuracy_score(GRADES, GUESSES)),
        ("f1", GUESSES, GRADES, sk.f1_score(GRADES, GUESSES, average="macro")),
        ("f1", [1.0, 3.0, 2.0], [1.0, 1.0, 2.0], sk.f1_score([1, 1, 2], [1, 3, 2], average="macro")),
        ("f1_binary", [float(c >= 0.5) for c in CHANCES], TRUTH, sk.f1_score(TRUTH, [c >= 0.5 for c in CHANCES])),
        ("gini", CHANCES, TRUTH, 2 * sk.roc_auc_score(TRUTH, CHANCES) - 1),
        ("mcc", GUESSES, GRADES, sk.matthews_corrcoef(GRADES, GUESSES)),
        ("qwk", GUESSES, GRADES, sk.cohen_kappa_score(GRADES, GUESSES, weights="quadratic")),
        ("rmse", NEAR, AMOUNTS, sk.root_mean_squared_error(AMOUNTS, NEAR)),
        ("mae", NEAR, AMOUNTS, sk.mean_absolute_error(AMOUNTS, NEAR)),
        ("rmsle", NEAR, AMOUNTS, sk.root_mean_squared_log_error(AMOUNTS, NEAR)),
        ("r2", NEAR, AMOUNTS, sk.r2_score(AMOUNTS, NEAR)),
    ],
)
def test_metrics_are_scikit_learns(metric: str, given: list[float], truth: list[float], expected: float) -> None:
    assert scores(given, truth, metric)[metric] == pytest.approx(expected, rel=1e-9)


def test_what_else_can_be_worked_out_comes_along() -> None:
    both = scores(CHANCES, TRUTH, "auc")
    labels = [float(chance >= 0.5) for chance in CHANCES]
    assert both["accuracy"] == pytest.approx(sk.accuracy_score(TRUTH, labels)) and both.keys() == {
        "auc",
        "accuracy",
        "f1",
    }
    assert scores(labels, TRUTH, "accuracy")["auc"] == pytest.approx(sk.roc_auc_score(TRUTH, labels))
    numbers = scores(NEAR, AMOUNTS, "mae")
    assert numbers["rmse_of_range"] == pytest.approx(numbers["rmse"] / (max(AMOUNTS) - min(AMOUNTS)))
    words = grade.score_all(["a", "b", "b"], ["a", "b", "c"], "accuracy")
    assert words == {"accuracy": pytest.approx(2 / 3), "f1": pytest.approx((1 + 2 / 3 + 0) / 3)}


ANSWERS = "row,paid\na1,10\na2,20\na3,30\n"
SUBMISSIONS = {
    "as asked": (ANSWERS, None, 0.0),
    "rows in another order": ("row,paid\na3,30\na1,10\na2,20\n", None, 0.0),
    "wrong ids": ("row,paid\na1,10\na2,20\nb9,30\n", "1 ids are not in test.csv, the first is b9", None),
    "duplicate ids": ("row,paid\na1,10\na1,20\na3,30\n", "id a1 is there twice", None),
    "extra rows": (ANSWERS + "a4,1\n", "1 ids are not in test.csv, the first is a4", None),
    "rows missing": ("row,paid\na1,10\n", "2 of 3 ids are missing, the first is a2", None),
    "nan": ("row,paid\na1,nan\na2,20\na3,30\n", "predictions are missing for some rows", None),
    "infinite": ("row,paid\na1,inf\na2,20\na3,30\n", "'inf' is not a finite number", None),
    "words for numbers": ("row,paid\na1,ten\na2,20\na3,30\n", "'ten' is not a number", None),
    "too large": ("row,paid\na1,1e308\na2,20\na3,-1e308\n", "predictions are too large to be measured", None),
    "empty": ("", "columns are none", None),
    "header only": ("row,paid\n", "3 of 3 ids are missing", None),
    "ragged": ("row,paid\na1,10,7\na2,20\na3,30\n", "a row has 3 fields, not 2", None),
    "a half quote": ('row,paid\na1,"10\n', "is not a CSV table", None),
}


@pytest.mark.parametrize("case", SUBMISSIONS)
def test_a_bad_submission_is_told_what_is_wrong(case: str, tmp_path: Path) -> None:
    text, fault, score = SUBMISSIONS[case]
    (tmp_path / "submission.csv").write_text(text)
    (tmp_path / "answers.csv").write_text(ANSWERS)
    request = {"file": "submission.csv", "target": "paid", "id_column": "row", "metric": "rmse"}
    (tmp_path / "request.json").write_text(json.dumps(request))
    grade.main(tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["score"] == score
    assert (report["fault"] is None) if fault is None else (fault in report["fault"])
    assert math.isfinite(score or 0)
