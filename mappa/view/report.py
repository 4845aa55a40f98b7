"""`mappa report`: the page and its answers in one HTML file that needs no server and no network."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from mappa.coach.monitor import RECENT
from mappa.observe.summary import replace_file
from mappa.view.actions import ORDERS, list_actions
from mappa.view.answers import Answers
from mappa.view.app import static
from mappa.view.overview import Overview, overview

FILE_NAME = "report.html"
BYTES = 4_500_000
"""What the answers may take together; episodes that no longer fit are left out, the least remarkable first."""
LISTED = 3000
"""Actions of a phase in the list, the newest."""
_LESS = b"\\u003c"
"""A `<` within a JSON string."""

Question = tuple[str, dict[str, str]]


def write_report(folder: Path, out: Path | None = None) -> Path:
    """Write the report of the run in `folder`, also of one that is under way. Returns its path.

    Raises JournalError if the folder has no journal of this schema, or an evaluation that cannot be read.
    """
    answers = Answers(folder)
    try:
        while answers.refresh():
            pass
        page = _page(_recorded(answers))
    finally:
        answers.close()
    out = out or folder / FILE_NAME
    replace_file(out, page.encode())
    return out


def _recorded(answers: Answers) -> dict[str, msgspec.Raw]:
    """Answers by the path that the page asks for them with. Only the page's own lists are cut to fit."""
    run = overview(answers.folder, answers.catalogue, answers.settings)
    found = dict(_ask(answers, _wanted(run)))
    rows = [row for phase in run.phases for row in list_actions(answers.catalogue, phase=phase, limit=LISTED)]
    found["actions"] = msgspec.Raw(msgspec.json.encode(rows))
    size = sum(map(_size, found.values()))
    episodes = _remarkable(answers)
    for path, raw in _ask(answers, [*(("episode", {"id": id}) for id in episodes), *_contexts(answers, episodes)]):
        size += _size(raw)
        if size > BYTES:
            break
        found[path] = raw
    return found


def _contexts(answers: Answers, episodes: Sequence[str]) -> Iterator[Question]:
    """What each action saw; nothing where the base's tokenizer is not at hand, as the first of them tells."""
    sql = "select ordinal from actions where episode = ?"
    for place, id in enumerate(episodes):
        questions = [("tokens", {"id": id, "ordinal": str(row[0])}) for row in answers.catalogue.rows(sql, (id,))]
        if place == 0 and questions and answers.ask(*questions[0])[0] != 200:
            return
        yield from questions


def _size(answer: msgspec.Raw) -> int:
    """Bytes that it takes in the page."""
    return len(bytes(answer).replace(b"<", _LESS))


def _wanted(run: Overview) -> Iterator[Question]:
    yield from (("run", {}), ("curves", {}), ("drift", {}))
    for last in bias_windows(run.last):
        yield "bias", {"last": str(last)}
    for step in range(1, run.last + 1)[-50:]:
        yield "lanes", {"step": str(step)}


def bias_windows(last: int) -> list[int]:
    """The last steps of the windows that the page shows: at most twelve, no two of the same steps twice over."""
    every = max(1, RECENT // 2, -(-last // 12)) if last > RECENT else 1
    return list(range(last, 0, -every))[:12][::-1]


def _ask(answers: Answers, questions: Iterable[Question]) -> Iterator[tuple[str, msgspec.Raw]]:
    for name, query in questions:
        status, body = answers.ask(name, query)
        if status == 200:
            path = "&".join(f"{key}={value}" for key, value in query.items())
            yield (f"{name}?{path}" if path else name), msgspec.Raw(body)


def _remarkable(answers: Answers) -> list[str]:
    """Episodes, those first that an order of the list begins with, then before and after, then the newest."""
    orders = [order for order in ORDERS if order != "newest"]
    firsts = [row.episode for order in orders for row in list_actions(answers.catalogue, order, limit=40)]
    rest = "select id from episodes order by phase = 'train', step desc, id"
    return list(dict.fromkeys([*firsts, *(row[0] for row in answers.catalogue.rows(rest))]))


def _page(answers: dict[str, msgspec.Raw]) -> str:
    style, script = static("app.css"), static("app.js")
    policy = f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:"
    # Inside a script element nothing but its end tag has a meaning: with no `<` in it there is none.
    data = msgspec.json.encode(answers).replace(b"<", _LESS).decode()
    page = static("index.html")
    for what, instead in (
        ("<!--policy-->", f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        ('<link rel="stylesheet" href="app.css">', f"<style>{style}</style>"),
        (
            '<script src="app.js"></script>',
            f'<script type="application/json" id="answers">{data}</script><script>{script}</script>',
        ),
    ):
        assert what in page
        page = page.replace(what, instead)
    return page


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
