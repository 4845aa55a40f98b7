"""What a run is and how far it has got: the head of the page, and the table before and after."""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec import Struct

from mappa.errors import JournalError
from mappa.journal.schema import connect
from mappa.observe.evaluation import EvaluationResult, evaluation_rows, paired_text
from mappa.view.actions import ORDERS
from mappa.view.catalogue import Catalogue
from mappa.view.words import tokenizer_file

_ROLES = """
select role from (select role, ordinal from actions order by id desc limit 1000) group by role order by min(ordinal)
"""
"""In the order in which they act."""


class Settings(Struct):
    """What the page needs of a run's config; whatever else that has is passed over."""

    name: str = ""
    model: str = ""
    system: str = ""
    seed: int = 0
    steps: int = 0


class Comparison(Struct, frozen=True):
    """The held-out tasks in one mode: labels and cells of a table, and the change in one line."""

    mode: str
    title: str
    heads: list[str]
    rows: list[list[str]]
    change: str


class Overview(Struct, frozen=True, kw_only=True):
    name: str
    model: str
    seed: int
    steps: int
    """Planned."""
    step: int
    """Done."""
    last: int
    """The last step of which there is an action."""
    actions: int
    left: int
    """Actions of the journal that are still being read."""
    changes: int
    episodes: dict[str, int]
    """By state: running, done, cut, lost."""
    phases: list[str]
    roles: list[str]
    kinds: list[str]
    tasks: list[str]
    adapters: list[str]
    orders: list[str]
    comparisons: list[Comparison]
    tokens: bool
    """Whether the base's tokenizer is at hand: what a role saw can be told, and its tokens be painted."""


def settings(journal: Path) -> Settings:
    """Raises JournalError where the config that a journal keeps is none."""
    with connect(journal) as connection:
        found = connection.execute("select value from meta where key='config'").fetchone()
    try:
        return msgspec.json.decode(found[0], type=Settings) if found and found[0] else Settings()
    except msgspec.DecodeError as error:
        raise JournalError(f"{journal} keeps a config that cannot be read: {error}") from None


def overview(folder: Path, catalogue: Catalogue, given: Settings) -> Overview:
    ((actions,),) = catalogue.rows("select count(*) from actions")
    ((last,),) = catalogue.rows("select max(step) from actions where phase='train'")
    ((step,),) = catalogue.rows("select max(step) from steps")
    return Overview(
        name=given.name or folder.name,
        model=given.model,
        seed=given.seed,
        steps=given.steps,
        step=step or 0,
        last=last or 0,
        actions=actions,
        left=catalogue.left,
        changes=catalogue.changes,
        episodes=dict(catalogue.rows("select state, count(*) from episodes group by state")),
        phases=[row[0] for row in catalogue.rows("select distinct phase from episodes")],
        roles=[row[0] for row in catalogue.rows(_ROLES)],
        kinds=[row[0] for row in catalogue.rows("select distinct kind from episodes order by kind")],
        tasks=[row[0] for row in catalogue.rows("select distinct task from episodes order by task")],
        adapters=[row[0] for row in catalogue.rows("select distinct adapter from actions where phase='train'")],
        orders=list(ORDERS),
        comparisons=comparisons(folder),
        tokens=tokenizer_file(given.model) is not None,
    )


def comparisons(folder: Path) -> list[Comparison]:
    """What the run measured on the held-out tasks so far. Raises JournalError on a damaged file."""
    found = []
    for mode in ("greedy", "sampled"):
        before, after = (_evaluation(folder / f"evaluation-{phase}-{mode}.json") for phase in ("base", "trained"))
        if before is None:
            continue
        title = f"{len(before.tasks)} held-out tasks, {before.episodes} {mode} episodes, no repairs, 95 % intervals"
        heads = ["success", "base", *(["trained", "change"] if after is not None else [])]
        change = paired_text(before, after) if after is not None else ""
        found.append(Comparison(mode, title, heads, list(evaluation_rows(before, after)), change))
    return found


def _evaluation(path: Path) -> EvaluationResult | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=EvaluationResult)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as error:
        raise JournalError(f"{path} is no evaluation ({error}); remove it and measure again") from None
