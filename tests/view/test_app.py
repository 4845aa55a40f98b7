"""The server over a real loopback socket, the report as a file, the table in a terminal."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from rich.console import Console

from mappa.cli import main
from mappa.view.report import write_report
from mappa.view.top import top
from tests.view.conftest import viewing
from tests.view.journals import add_evil, write_run


@pytest.fixture(scope="module")
def client(finished_run: Path) -> Iterator[httpx.Client]:
    with viewing(finished_run) as url, httpx.Client(base_url=url, timeout=60) as client:
        while client.get("/api/pulse").json()["left"]:
            pass
        yield client


def test_the_page_and_its_answers(client: httpx.Client) -> None:
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html") and "app.js" in page.text
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
    for name in ("app.js", "app.css"):
        assert client.get(f"/{name}").headers["x-content-type-options"] == "nosniff"
    assert client.get("/api/run").json()["actions"] == 180
    rows = client.get("/api/actions", params={"order": "worst", "role": "analyst", "text": "crashed"}).json()
    assert rows and {row["role"] for row in rows} == {"analyst"}
    assert client.get("/api/episode", params={"id": rows[0]["episode"]}).json()["task"] == rows[0]["task"]
    assert all(point[0] > 2 for curve in client.get("/api/curves?since=2").json() for point in curve["points"])
    trace = client.get("/trace.json")
    assert "attachment" in trace.headers["content-disposition"] and trace.json()["traceEvents"]


@pytest.mark.parametrize(
    ("path", "status", "error"),
    [
        ("/api/nothing", 404, "no question 'nothing'"),
        ("/api/episode?id=no-such", 404, "the journal has no 'no-such'"),
        ("/api/episode", 404, "the journal has no 'id'"),
        ("/api/actions?order=bests", 422, "no order 'bests'"),
        ("/api/lanes?step=-1", 422, "step='-1' is not a number"),
        ("/api/lanes?step=9223372036854775807", 422, "larger than any number"),
        (f"/api/actions?offset={2**63}", 422, "larger than any number"),
        (f"/api/bias?last={'9' * 20}", 422, "larger than any number"),
        (f"/api/curves?since={'9' * 5000}", 422, "larger than any number"),
        (f"/api/lanes?step={'9' * 18}", 200, None),
        (f"/api/bias?last={'9' * 18}", 200, None),
        ("/api/tokens?id=1-1-Boston-0&ordinal=99", 404, "the journal has no '1-1-Boston-0/99'"),
        ("/api/actions?task=%27%3B+drop+table+actions", 200, None),
    ],
)
def test_what_cannot_be_answered_is_said(client: httpx.Client, path: str, status: int, error: str | None) -> None:
    reply = client.get(path)
    assert reply.status_code == status
    assert error is None or error in reply.json()["error"]


def test_only_this_machine_is_answered_and_only_reading(client: httpx.Client) -> None:
    assert client.get("/", headers={"host": "attacker.example"}).status_code == 400
    assert client.post("/api/run").status_code == 405
    assert client.get("/../pyproject.toml").status_code == 404


def test_a_taken_port_and_no_run_are_said(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with viewing(finished_run) as url:
        assert main(["view", str(finished_run), "--port", url.rpartition(":")[2]]) == 2
    assert "give another --port" in capsys.readouterr().err
    for port in ("99999", "65536", "-1"):
        assert main(["view", str(finished_run), f"--port={port}"]) == 2
        assert "give another --port" in capsys.readouterr().err
    for command in ("view", "report", "top"):
        assert main([command, str(tmp_path)]) == 2
        assert "no journal at" in capsys.readouterr().err


def test_a_report_holds_its_data_and_no_way_out_of_it(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    add_evil(run)
    assert main(["report", str(run), "-o", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "http-equiv" in page and "unsafe" not in page and "src=" not in re.sub(r"<script type.*?</script>", "", page)
    data = re.findall(r'<script type="application/json" id="answers">(.*?)</script>', page, re.S)
    answers = json.loads(data[0])
    assert len(data) == 1 and "<" not in data[0]
    assert len(answers["actions"]) == 183 and answers["run"]["comparisons"]
    assert sum(name.startswith("episode?") for name in answers) == 61


def test_a_damaged_evaluation_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run")
    damaged = run / "evaluation-base-greedy.json"
    damaged.write_text("{")
    assert main(["report", str(run)]) == 2
    assert f"{damaged} is no evaluation" in capsys.readouterr().err


def test_a_large_report_leaves_out_what_does_not_fit(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=1, episodes=30, words=8000)
    report = write_report(run)
    assert 3_000_000 < report.stat().st_size < 5_000_000


def test_top_shows_the_last_step(finished_run: Path) -> None:
    console = Console(file=io.StringIO(), width=120, color_system=None)
    with console.capture() as captured:
        top(finished_run, once=True, console=console)
    text = captured.get()
    assert "step 4/4" in text and "60 done" in text and "coach: 16 replies" in text
    assert re.search(r"modeler\s+\S+\s+5\.0\s+50 %\s+0", text) and "serving 50 % busy" in text
