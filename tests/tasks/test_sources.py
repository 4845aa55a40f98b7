"""Sources: what is read from each layout, what is refused and counted, what is set aside."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from mappa.config import TasksConfig
from mappa.errors import TaskError
from mappa.tasks import measured_on, prepare
from mappa.tasks.contamination import contamination, given_away, grams
from mappa.tasks.published import _metric_of_script
from mappa.tasks.source import draw, read_source, set_aside
from mappa.tasks.tabular import name_of, read_tabular, suite
from mappa.types import Role, Task

from .conftest import write_task
from .published import write_dsbench, write_mlebench
from .team import look
from .workspace import FolderWorkspace, Workspaces

ANALYST = Role(name="analyst", prompt="", produces=("submission.csv",))
RECORDS = {
    "aime": ({"id": 60, "problem": "P?", "solution": "so \\boxed{204}", "answer": "204"}, "204"),
    "aime25": ({"problem": "P?", "answer": 70, "id": "0"}, "70"),
    "amc": ({"id": 0, "problem": "P?", "question": "P?", "answer": 27.0}, "27"),
    "math": ({"problem": "P?", "solution": "is $\\boxed{\\frac{1}{2}}$.", "subject": "Algebra"}, "\\frac{1}{2}"),
    "gsm8k": ({"question": "P?", "answer": "3 * 6 = <<3*6=18>>18\n#### 1,018"}, "1,018"),
    "svamp": ({"Body": "There is one.", "Question": "P?", "Answer": 145.0, "Type": "Sum", "ID": "c-1"}, "145"),
    "asdiv": ({"body": "One.", "question": "P?", "answer": "9 (apples)", "idx": 0}, "9"),
    "mawps": ({"input": "P?", "target": 43.5}, "43.5"),
    "mawps as published": ({"iIndex": 1, "sQuestion": "P?", "lEquations": ["X=8"], "lSolutions": [8.0]}, "8"),
    "calc-mawps": ({"id": "m__1", "question": "P?", "chain": "", "result": "8", "result_float": 8.0}, "8"),
}


def write_jsonl(path: Path, *records: object) -> Path:
    path.write_text("".join(f"{record if isinstance(record, str) else json.dumps(record)}\n" for record in records))
    return path


@pytest.mark.parametrize("name", RECORDS)
def test_the_usual_field_names_are_known(name: str, tmp_path: Path) -> None:
    record, answer = RECORDS[name]
    (task,) = read_source(f"jsonl:{write_jsonl(tmp_path / 'set.jsonl', record)}", tmp_path).train
    assert task.answer == answer and task.prompt.endswith("P?") and not task.folder
    assert task.kind == {"math": "Algebra", "svamp": "Sum"}.get(name, "maths")
    assert task.id.startswith("set-") and "/" not in task.id


def test_bad_records_are_refused_and_counted_and_the_others_used(tmp_path: Path) -> None:
    good = [{"problem": f"What is {n} plus {n}?", "answer": 2 * n, "id": n} for n in range(4)]
    bad = [
        {"problem": "No answer?", "answer": "NaN"},
        {"answer": 3},
        "{half",
        "[1]",
        {"problem": "", "answer": 1},
        good[0],
    ]
    path = write_jsonl(tmp_path / "set.jsonl", *good, *bad)
    tasks = prepare(TasksConfig(source=f"jsonl:{path}", heldout_tasks=1), tmp_path)
    assert (len(tasks.train), len(tasks.heldout), len(tasks.refused)) == (3, 1, 6)
    why = {refused.task: refused.why for refused in tasks.refused}
    assert "no answer" in why["set:5"] and "no problem" in why["set:6"] and "no JSON object" in why["set:7"]
    assert "there twice" in why["set:10"]
    assert tasks.notes()[0] == "6 tasks cannot be used:" and len(tasks.notes(2)) == 3


def test_a_line_of_any_length_costs_itself_only(tmp_path: Path) -> None:
    good = '{"problem": "What is 1 + 1?", "answer": 2}'
    path = write_jsonl(tmp_path / "set.jsonl", '{"problem": "' + "x" * (3 << 20) + '", "answer": 1}', good)
    found = read_source(f"jsonl:{path}", tmp_path)
    assert [task.id for task in found.train] == ["set-2"], "places are lines of the file"
    assert [(one.task, one.why) for one in found.refused] == [("set:1", "a line of more than 1 MiB")]


@pytest.mark.parametrize(
    ("content", "message"), [("", "no problem that can be used"), ('{"problem": "x"}\n', "set:1: no answer")]
)
def test_a_file_of_nothing_is_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "set.jsonl").write_text(content)
    with pytest.raises(TaskError, match=message):
        prepare(f"jsonl:{tmp_path / 'set.jsonl'}", tmp_path)
    with pytest.raises(TaskError, match="cannot be read"):
        prepare(f"jsonl:{tmp_path / 'nowhere.jsonl'}", tmp_path)
    with pytest.raises(TaskError, match="no source of the form 'csv'"):
        prepare("csv:x", tmp_path)


def test_what_is_held_out_is_never_trained_on(tmp_path: Path) -> None:
    long = "If a train leaves at noon and drives forty miles each hour for three hours how far is it then from home"
    train = write_jsonl(
        tmp_path / "a.jsonl",
        {"problem": "What is 1 + 1?", "answer": 2},
        {"problem": "What is 2 + 2?", "answer": 4},
        {"problem": long + " today?", "answer": 120},
    )
    heldout = write_jsonl(
        tmp_path / "b.jsonl", {"problem": "what is 1+1", "answer": 2}, {"problem": "So: " + long + "?", "answer": 120}
    )
    tasks = prepare(TasksConfig(source=f"jsonl:{train}", heldout=f"jsonl:{heldout}"), tmp_path)
    assert [task.id for task in tasks.train] == ["a-2", "a-3"]
    assert [(r.task, r.why) for r in tasks.refused] == [("a-1", "is the held-out task b-1")]
    (overlap,) = tasks.overlaps
    assert (overlap.train, overlap.heldout, overlap.how) == ("a-3", "b-2", "13-gram") and 0.5 < overlap.share < 1
    learned = prepare(TasksConfig(source=f"jsonl:{train}", heldout_tasks=1), tmp_path)
    later = measured_on(learned, f"jsonl:{heldout}", tmp_path)
    assert len(later.train) == 2 and len(later.heldout) == 2, "what was learned from stays, and is reported"
    assert {one.how for one in contamination(read_source(f"jsonl:{train}", tmp_path).train, later.heldout)} == {
        "exact",
        "13-gram",
    }
    assert len(grams(long)) == len(long.split()) - 12 and len(grams("two words")) == 1


def test_two_splits_of_one_source_are_numbered_alike_and_are_other_problems(tmp_path: Path) -> None:
    for split, numbers in (("train", range(5)), ("test", range(5, 8))):
        (tmp_path / split).mkdir()
        write_jsonl(
            tmp_path / split / "sums.jsonl", *({"problem": f"What is {n} + 1?", "answer": n + 1} for n in numbers)
        )
    source, heldout = (f"jsonl:{tmp_path / split / 'sums.jsonl'}" for split in ("train", "test"))
    tasks = prepare(TasksConfig(source=source, heldout=heldout), tmp_path)
    assert [task.id for task in tasks.train] == [f"sums-{n}" for n in range(1, 6)]
    assert [task.id for task in tasks.heldout] == [f"heldout-sums-{n}" for n in range(1, 4)]
    assert [task.id for task in measured_on(tasks, heldout, tmp_path).heldout] == [task.id for task in tasks.heldout]


def test_every_copy_of_a_held_out_problem_is_found_and_near_copies_beside_it(tmp_path: Path) -> None:
    text = "If a train leaves at noon and drives forty miles each hour how far is it from home at three"
    names = {"a": text, "b": text.upper() + "?", "c": text + ". Explain.", "d": "What is 5 + 3?", "e": "What is 5.3?"}
    train = [Task(id=name, kind="maths", prompt=prompt) for name, prompt in names.items()]
    heldout = [Task(id="x", kind="maths", prompt=text), Task(id="y", kind="maths", prompt="what is 5 - 3")]
    found = [(overlap.train, overlap.heldout, overlap.how) for overlap in contamination(train, heldout)]
    assert ("a", "x", "exact") in found and ("b", "x", "exact") in found and ("c", "x", "13-gram") in found
    assert not any(how == "exact" and held == "y" for _, held, how in found)


def test_the_draw_keeps_the_kinds_in_proportion_and_the_seed_decides() -> None:
    tasks = [Task(id=f"{n:03}", kind="ab"[n % 4 == 0], prompt="") for n in range(100)]
    chosen = draw(tasks, 10, 0)
    assert sorted(task.kind for task in chosen) in (["a"] * 8 + ["b"] * 2, ["a"] * 7 + ["b"] * 3)  # 7.5 and 2.5
    assert chosen == draw(list(reversed(tasks)), 10, 0) != draw(tasks, 10, 1)
    train, heldout = set_aside(tasks, 64, 0)
    assert len(heldout) == 64 and len({task.id for task in train + heldout}) == 100


def test_dsbench_as_downloaded(tmp_path: Path, workspaces: Workspaces) -> None:
    root = tmp_path / "ds"
    call = "accuracy_score(actual[args.value], submission[args.value])"
    write_dsbench(root, "pay", kind="classification", function="accuracy_score", call=call)
    rmse = "np.sqrt(mean_squared_error(actual[args.value], submission[args.value]))"
    write_dsbench(root, "sum", kind="regression", function="mean_squared_error", call=rmse, scores=False)
    write_dsbench(root, "list", kind="classification", function="x", call="mpa_at_3(actual, submission)")
    gone = write_dsbench(root, "gone", kind="classification", function="accuracy_score", call=call)
    (gone.parents[1] / "answers" / "gone" / "test_answer.csv").unlink()
    blind = write_dsbench(root, "blind", kind="classification", function="accuracy_score", call=call)
    pd.read_csv(blind / "train.csv").drop(columns="paid").to_csv(blind / "train.csv", index=False)
    twice = write_dsbench(root, "twice", kind="classification", function="accuracy_score", call=call)
    answers = twice.parents[1] / "answers" / "twice" / "test_answer.csv"
    pd.concat([pd.read_csv(answers)] * 2).to_csv(answers, index=False)
    gaps = write_dsbench(root, "gaps", kind="regression", function="mean_squared_error", call=rmse)
    unsure = gaps.parents[1] / "answers" / "gaps" / "test_answer.csv"
    pd.read_csv(unsure).assign(paid=[1.0, None, 3.0, 4.0, 5.0, 6.0]).to_csv(unsure, index=False)
    words = write_dsbench(root, "words", kind="regression", function="mean_squared_error", call=rmse)
    pd.read_csv(words / "train.csv").assign(paid="much").to_csv(words / "train.csv", index=False)
    empty = write_dsbench(root, "empty", kind="classification", function="accuracy_score", call=call)
    (empty / "test.csv").write_text("")
    vast = write_dsbench(root, "vast", kind="classification", function="accuracy_score", call=call)
    os.truncate(vast / "train.csv", 1 << 30)
    essay = write_dsbench(root, "essay", kind="classification", function="accuracy_score", call=call)
    pd.read_csv(essay / "train.csv").assign(color="long " * 40_000).to_csv(essay / "train.csv", index=False)

    found = read_source(f"dsbench:{root}", tmp_path)
    essays, pay, total = found.train
    assert essays.id == "essay", "a field of 200,000 characters is no fault"
    assert (pay.id, pay.kind, pay.target, pay.id_column) == ("pay", "classification", "paid", "row")
    assert pay.prompt == "The pay challenge: predict who pays."
    assert pay.metric is not None and (pay.metric.name, pay.metric.baseline, pay.metric.reference) == (
        "accuracy",
        0.5,
        0.9,
    )
    assert total.metric is not None and (total.metric.name, total.metric.reference) == ("rmse", 0.0)
    why = {refused.task: refused.why for refused in found.refused}
    assert why.keys() == {"list", "gone", "blind", "twice", "empty", "gaps", "words", "vast"}
    assert "1 rows have no 'paid'" in why["gaps"] and "needs a target of numbers" in why["words"]
    assert "its metric is mpa_at_3" in why["list"] and "test_answer.csv is missing" in why["gone"]
    assert "no column 'paid'" in why["blind"] and "is there twice" in why["twice"] and "not a CSV" in why["empty"]
    assert "has 1024 MiB; a table may have 512" in why["vast"]

    workspace = FolderWorkspace(tmp_path / "episode")
    backwards = pd.read_csv(Path(pay.folder) / "private/answers.csv").iloc[::-1]
    backwards.to_csv(workspace.folder / "submission.csv", index=False)
    evidence = look(pay, ANALYST, workspace, workspaces)
    assert evidence.success and evidence.facts["score"] == 1.0, "rows in another order are the same rows"
    assert evidence.facts["normalised"] == pytest.approx(1.25) and evidence.facts["auc"] == 1.0
    tasks = prepare(TasksConfig(source=f"dsbench:{root}", heldout_tasks=1), tmp_path)
    assert (len(tasks.train), len(tasks.heldout), len(tasks.refused)) == (2, 1, 8)


@pytest.mark.parametrize(
    ("line", "metric"),
    [
        ("performance = accuracy_score(a[v], b[v])", "accuracy"),
        (
            "if x:\n    performance = mean_absolute_error(a, b)\nelse:\n    performance = mean_absolute_error(a, c)",
            "mae",
        ),
        ("performance = np.sqrt(mean_squared_error(a, b))", "rmse"),
        ("performance = mean_squared_error(a, b, squared=False)", "rmse"),
        ("performance = f1_score(a, b)", "f1_binary"),
        ("performance = f1_score(a, b, average='micro')", "accuracy"),
        ("performance = f1_score(a, b, average='macro')", "f1"),
        ("performance = (a[args.value] == b[args.value]).mean()", "accuracy"),
        ("performance = quadratic_weighted_kappa(a, b, 10)", "qwk"),
        ("performance = normalized_gini(a, b)", "gini"),
        ("performance = rmsle(a[v], b[v])", "rmsle"),
        ("performance = mean_squared_error(a, b)", None),
        ("performance = f1_score(a, b, average='weighted')", None),
        ("performance = mpa_at_3(a, b)", None),
        ("performance = np.sqrt(mean_squared_log_error(a, b))", "rmsle"),
        ("score = roc_auc_score(a, b)\nperformance = score", "auc"),
        ("smape = np.sqrt(mean_squared_error(a, b))  # or so\nperformance = smape", "rmse"),
        ("performance = calculate_rmse(a, b)", "rmse"),
        ("performance = cohen_kappa_score(a, b, weights='quadratic')", "qwk"),
        ("performance = cohen_kappa_score(a, b)", None),
        ("performance = f1_score(a, b, average=None)", None),
        ("performance = f1_score(a, b, pos_label=0)", None),
        ("performance = 1 - roc_auc_score(a, b)", None),
        ("performance = roc_auc_score(a, b) * 100", None),
        ("performance = np.sqrt(mean_squared_error(a, b)) * 100", None),
        ("nothing = 1", None),
    ],
)
def test_the_metric_is_read_off_the_graders_last_line(line: str, metric: str | None) -> None:
    text = f"from sklearn.metrics import roc_auc_score\n{line}\n"
    if metric is not None:
        assert _metric_of_script(text) == metric
    else:
        with pytest.raises(TaskError, match="its metric is"):
            _metric_of_script(text)


def test_mlebench_as_prepared(tmp_path: Path, workspaces: Workspaces) -> None:
    root = tmp_path / "mle"
    write_mlebench(root, "loans", "auc-roc")
    write_mlebench(root, "words", "multi-class-log-loss")
    write_mlebench(root, "many", "multi-class-classification-accuracy")
    write_mlebench(root, "plain", "accuracy", answers="description: x")
    write_mlebench(root, "gone", "accuracy", answers="answers: gone/prepared/private/answers.csv")
    (root / "many/prepared/private/gold_submission.csv").write_text("row,paid\n")
    (write_mlebench(root, "lost", "accuracy").parents[1] / "config.yaml").unlink()
    found = read_source(f"mlebench:{root}", tmp_path)
    loans, many, plain = found.train
    assert plain.id == "plain", "the only table there is meant where no answers are named"
    assert many.metric is not None and many.metric.name == "accuracy"
    assert loans.metric is not None
    assert (loans.metric.name, loans.metric.baseline, loans.metric.reference) == ("auc", 0.5, 1.0)
    why = {refused.task: refused.why for refused in found.refused}
    assert "multi-class-log-loss" in why["words"] and "no config.yaml of lost" in why["lost"]
    assert "private/answers.csv is missing" in why["gone"], "another table is never taken for the one that is named"
    workspace = FolderWorkspace(tmp_path / "episode")
    answers = pd.read_csv(Path(loans.folder) / "private/answers.csv")
    answers.assign(paid=0.2 + answers["paid"] / 10).to_csv(workspace.folder / "submission.csv", index=False)
    facts = look(loans, ANALYST, workspace, workspaces).facts
    assert facts["score"] == facts["auc"] == 1.0 and facts["accuracy"] == 0.5


@pytest.mark.parametrize("form", ["dsbench", "mlebench"])
def test_a_folder_of_another_layout_is_refused(form: str, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="no data_resplit folder|no \\*/prepared folder"):
        prepare(f"{form}:{tmp_path}", tmp_path)


def test_the_suite_has_64_training_tables_of_both_kinds() -> None:
    tables = suite()
    assert len(tables["train"]) == 64
    kinds = [table.kind for table in tables["train"]]
    assert kinds.count("regression") == 32 and kinds.count("classification") == 32
    names = [name_of(table) for split in tables.values() for table in split]
    assert len(set(names)) == len(names)
    train = {(table.package, table.dataset) for table in tables["train"]}
    assert not train & {(table.package, table.dataset) for table in tables["heldout"]}


def test_the_suite_leaves_out_what_leaks(tmp_path: Path) -> None:
    """A small list: one good pair, one held-out twin of a training table, one table that is not there."""
    listed = tmp_path / "list.tsv"
    rows = [
        "split\tpackage\tdataset\ttarget\tkind\tdrop",
        "train\tMASS\tcrabs\tsex\tclassification\tindex",
        "train\tMASS\tnothing\tx\tregression\t",
        "heldout\tMASS\tcrabs\tsp\tclassification\tindex",
        "heldout\tsklearn.datasets\tdiabetes\ttarget\tregression\t",
    ]
    listed.write_text("\n".join(rows) + "\n")
    found = read_tabular(tmp_path, listed)
    assert [task.id for task in found.train] == ["MASS-crabs-sex"]
    assert [task.id for task in found.heldout] == ["sklearn.datasets-diabetes-target"]
    why = {refused.task: refused.why for refused in found.refused}
    assert "no readable MASS/nothing" in why["MASS-nothing-x"]
    assert "shares its columns with the training task MASS-crabs-sex" in why["MASS-crabs-sp"]


def test_a_column_that_says_the_target_is_named(source: Path, tmp_path: Path) -> None:
    (task,) = prepare(str(source), tmp_path).train
    assert given_away(task) == ["size"]  # the fixture's price is ten times its size
    table = pd.read_csv(source / "train/shop/public/train.csv").assign(size=[3, 1, 4, 1, 5, 9])
    table.to_csv(source / "train/shop/public/train.csv", index=False)
    assert given_away(task) == []


def test_equal_rows_of_two_tables_are_found(source: Path, tmp_path: Path) -> None:
    tasks = prepare(str(source), tmp_path)
    (overlap,) = contamination(tasks.train, tasks.heldout)
    assert (overlap.train, overlap.heldout, overlap.how) == ("shop", "stall", "columns")
    rows = pd.read_csv(source / "heldout/stall/public/test.csv").assign(size=[1.0, 2.0, 30.0], color=list("rrb"))
    rows.to_csv(source / "heldout/stall/public/test.csv", index=False)
    (overlap,) = contamination(tasks.train, tasks.heldout)
    assert (overlap.how, overlap.share) == ("rows", pytest.approx(2 / 3))
    rows.assign(size=[1, 2, None]).astype({"size": "Int64"}).to_csv(
        source / "heldout/stall/public/test.csv", index=False
    )
    table = pd.read_csv(source / "train/shop/public/train.csv")
    table.astype({"size": int}).to_csv(source / "train/shop/public/train.csv", index=False)
    (overlap,) = contamination(tasks.train, tasks.heldout)
    assert (overlap.how, overlap.share) == ("rows", pytest.approx(2 / 3)), "whole numbers, read as floats on one side"


def test_one_bad_folder_costs_itself_only(source: Path, tmp_path: Path) -> None:
    write_task(source / "train" / "hut")
    (source / "train/shop/private/answers.csv").unlink()
    tasks = prepare(str(source), tmp_path)
    assert [task.id for task in tasks.train] == ["hut"]
    assert "private/answers.csv is missing" in tasks.refused[0].why


def test_optional_packages_that_are_missing_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, source in (("datasets", "datasets:gsm8k"), ("reasoning_gym", "gym:basic_arithmetic")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(TaskError, match="pip install"):
            prepare(source, tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace())
    with pytest.raises(TaskError, match="unknown option color"):
        prepare("datasets:gsm8k?color=red", tmp_path)


def test_datasets_loads_what_it_is_given(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    folder = tmp_path / "sums"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", *({"question": f"{n}+1?", "answer": f"so\n#### {n + 1}"} for n in range(5)))
    found = read_source(f"datasets:{folder}?split=train", tmp_path)
    assert [task.answer for task in found.train] == ["1", "2", "3", "4", "5"]
    with pytest.raises(TaskError, match="datasets cannot load"):
        read_source(f"datasets:{folder}?split=nothing", tmp_path)


def test_reasoning_gym_generates_what_it_is_asked(tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym")
    tasks = prepare(TasksConfig(source="gym:basic_arithmetic?size=20&seed=3", heldout_tasks=5), tmp_path)
    assert len(tasks.train) + len(tasks.heldout) + len(tasks.refused) == 20 and len(tasks.heldout) == 5
    assert tasks == prepare(TasksConfig(source="gym:basic_arithmetic?size=20&seed=3", heldout_tasks=5), tmp_path)
    with pytest.raises(TaskError, match="reasoning-gym cannot generate"):
        prepare("gym:no_such_generator", tmp_path)


def test_a_published_training_table_needs_no_ids(tmp_path: Path, workspaces: Workspaces) -> None:
    call = "accuracy_score(actual[args.value], submission[args.value])"
    folder = write_dsbench(tmp_path / "ds", "pay", kind="classification", function="accuracy_score", call=call)
    pd.read_csv(folder / "train.csv").drop(columns="row").to_csv(folder / "train.csv", index=False)
    (task,) = read_source(f"dsbench:{tmp_path / 'ds'}", tmp_path).train
    workspace = FolderWorkspace(tmp_path / "episode")
    train, test = (pd.read_csv(f"{task.folder}/public/{name}.csv") for name in ("train", "test"))
    train[["width"]].to_pickle(workspace.folder / "X_train.pkl")
    train["paid"].to_pickle(workspace.folder / "y_train.pkl")
    test.set_index("row")[["width"]].to_pickle(workspace.folder / "X_test.pkl")
    engineer = Role(name="engineer", prompt="", produces=("X_train.pkl", "y_train.pkl", "X_test.pkl"))
    evidence = look(task, engineer, workspace, workspaces)
    assert evidence.success and all(evidence.facts.values()), evidence
