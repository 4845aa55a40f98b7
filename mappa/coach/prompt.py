"""What a coach that reads is shown: one action as two messages, with what agents wrote fenced off as data.

- Facts that the host measured (exit status, files, checks) stand in the system message, a channel no agent writes to.
  What an agent can choose in them (names of files and exceptions) is let in as bare words only.
- All else is fenced by a word drawn anew for every prompt that occurs nowhere in the material; the instructions are
  said again after it.
- A prompt that is too long loses, in this order: what the role saw, the upstream results, its job description, tool
  output, what the checks say in words, what it wrote, the task. Each keeps its head and its tail. Facts are never cut.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from string import Template as Filled
from typing import Any

import msgspec
from msgspec import Struct

from mappa.coach.context import ActionContext, makers
from mappa.coach.rubrics import DATA, Rubric
from mappa.errors import CoachError
from mappa.types import Action, ExecutionResult, Message

BYTES_PER_TOKEN = 3
"""Fewer than any tokenizer in use packs into a token on average, so that an estimate errs upwards."""
KEPT = 400
"""Bytes of a section that trimming leaves, head and tail together."""
LONGEST = 24_000
"""Bytes of one section at most, however much room there is."""
MOST_FILES = 64
_FENCE = "\x00fence\x00"


class Template(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The words around the material. Its version is part of every verdict's coach."""

    name: str
    version: int
    system: str
    section: str
    closing: str
    repair: str

    @property
    def id(self) -> str:
        return f"{self.name}@{self.version}"


class Section(Struct, frozen=True):
    """A piece of material. The lower `keep`, the sooner it is trimmed."""

    title: str
    text: str
    keep: int


class Prompt(Struct, frozen=True, kw_only=True):
    """Messages ready to send, the same for every fence but for the fence."""

    messages: tuple[Message, ...]
    digest: str
    """Hash of all that the messages say, the fence left out."""
    tokens: int
    """Estimated from above."""
    trimmed: tuple[str, ...] = ()
    """Titles of the sections that lost their middle."""


class TooLong(Struct, frozen=True):
    """The facts and the least of everything else do not fit the coach's window."""

    tokens: int


@cache
def load_template(name: str) -> Template:
    """A template that comes with mappa. Raises CoachError naming the field that is missing or wrong."""
    path = DATA / "templates" / f"{name}.toml"
    try:
        return msgspec.convert(tomllib.loads(path.read_text()), Template)
    except (OSError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise CoachError(f"template {path}: {error}") from None


def build(
    context: ActionContext,
    template: Template,
    rubric: Rubric,
    *,
    room: int,
    memory: str = "",
    more: Sequence[Section] = (),
) -> Prompt | TooLong:
    """The prompt for one action in at most `room` tokens. `memory` is the coach's own record, in the host's words and
    numbers alone; `more` is further material."""
    words = {
        "rubric": rubric.id,
        "about": rubric.about,
        "bands": "\n".join(f"{band.score}: {band.text}" for band in rubric.bands),
        "caps": _metric_bands(rubric),
        "memory": memory,
        "facts": msgspec.json.encode(facts_of(context)).decode(),
        "role": _word(context.role.name),
        "turn": str(context.action.turn),
        "kind": _word(context.task.kind),
        "fence": _FENCE,
    }
    system, closing = (Filled(text.strip()).substitute(words) for text in (template.system, template.closing))
    sections = [*sections_of(context), *more]
    frame = len(_section(template, Section("", "", 0)).encode())
    fixed = len(system.encode()) + len(closing.encode()) + sum(frame + len(s.title) for s in sections)
    left = room * BYTES_PER_TOKEN - fixed
    kept = _fit(sections, left)
    if kept is None:
        least = sum(min(KEPT, len(s.text.encode())) for s in sections)
        return TooLong((fixed + least) // BYTES_PER_TOKEN)
    material = "\n".join(_section(template, section) for section in kept)
    return _fenced(
        system,
        f"{material}\n\n{closing}",
        [old.title for old, new in zip(sections, kept, strict=True) if old is not new],
    )


def facts_of(context: ActionContext) -> dict[str, Any]:
    """What the host itself measured about an action; nothing in it can be a sentence of an agent's."""
    action = context.action
    made = makers((*context.earlier, action))
    by = [f"{_word(a.role)}/{a.turn}" for a in (*context.earlier, action)]
    files = {
        _word(name): {
            "bytes": size,
            "made by": by[made[name]] if name in made else "the task",
            **({"shape": context.shapes[name]} if name in context.shapes else {}),
        }
        for name, size in list(context.files.items())[:MOST_FILES]
    }
    return {
        "task": {"kind": context.task.kind, "metric": context.task.metric.name if context.task.metric else None},
        "role": context.role.name,
        "turn": action.turn,
        "needs": {name: name in context.files for name in context.role.needs},
        "must produce": {name: name in context.files for name in context.role.produces},
        "inputs put right by the host": action.repaired,
        "cut off at the token limit": action.finish_reason == "length",
        "execution": _execution(action.execution),
        "checks": _checks(action),
        "files": files,
        "files not listed": max(0, len(context.files) - MOST_FILES),
        "upstream did its part": dict(context.upstream),
        "outcome": {"success": context.outcome.success, **context.outcome.metrics} if context.outcome else None,
    }


def sections_of(context: ActionContext) -> list[Section]:
    """The material, in the order in which it is shown."""
    action, execution = context.action, context.action.execution
    seen = "\n\n".join(f"[{message.role}]\n{message.content}" for message in context.messages)
    upstream = "\n\n".join(_upstream(earlier) for earlier in context.earlier)
    found = [
        Section("The task, as the first agent was given it", context.task.prompt, 7),
        Section("The agent's job description", context.role.prompt, 3),
        Section("What the agent saw", seen, 1),
        Section("What came before, agent by agent", upstream, 2),
        Section("What the agent wrote", action.text, 6),
    ]
    if execution is not None:
        found += [
            Section("Exception that ended its code", execution.exception or "", 5),
            Section("stdout of its code", execution.stdout, 4),
            Section("stderr of its code", execution.stderr, 4),
        ]
    if action.evidence is not None and action.evidence.fault:
        found.append(Section("The first fault that the checks found", action.evidence.fault, 5))
    return [section for section in found if section.text or section.title == "What the agent wrote"]


def _fit(sections: Sequence[Section], room: int) -> list[Section] | None:
    """The sections within `room` bytes, trimmed in the order of `keep`; None where that cannot be."""
    kept = [msgspec.structs.replace(s, text=cut) if (cut := _cut(s.text, LONGEST)) != s.text else s for s in sections]
    sizes = [len(section.text.encode()) for section in kept]
    for place in sorted(range(len(kept)), key=lambda i: kept[i].keep):
        over = sum(sizes) - room
        if over <= 0:
            break
        text = _cut(kept[place].text, max(KEPT, sizes[place] - over))
        if text != kept[place].text:
            kept[place] = msgspec.structs.replace(kept[place], text=text)
            sizes[place] = len(text.encode())
    return kept if sum(sizes) <= room else None


def _cut(text: str, size: int) -> str:
    """`text` in at most about `size` bytes: its head and its tail, and how much is left out between them."""
    data = text.encode(errors="replace")
    if len(data) <= size:
        return text
    half = max(0, size - 60) // 2
    head, tail = data[:half].decode(errors="ignore"), data[-half:].decode(errors="ignore")
    return f"{head}\n[... {len(data) - 2 * half:,} bytes left out ...]\n{tail}"


def _fenced(system: str, user: str, trimmed: Sequence[str]) -> Prompt:
    digest = hashlib.blake2b(f"{system}\x00{user}".encode(errors="replace"), digest_size=16).hexdigest()
    fence = secrets.token_hex(8)
    while fence in user:
        fence = secrets.token_hex(8)
    messages = (Message("system", system.replace(_FENCE, fence)), Message("user", user.replace(_FENCE, fence)))
    tokens = sum(len(m.content.encode(errors="replace")) for m in messages) // BYTES_PER_TOKEN + 16
    return Prompt(messages=messages, digest=digest, tokens=tokens, trimmed=tuple(trimmed))


def _section(template: Template, section: Section) -> str:
    text = section.text.replace("\x00", "").encode(errors="replace").decode()
    return Filled(template.section.strip()).substitute(title=section.title, text=text, fence=_FENCE)


def _metric_bands(rubric: Rubric) -> str:
    def line(metric: Any) -> str:
        sign = ">=" if metric.greater_is_better else "<="
        bands = ", ".join(f"{sign} {bound:g}: {cap:g}" for bound, cap in metric.bands)
        return f"at most, by {metric.fact}: {bands}, else {metric.otherwise:g}"

    return "\n".join(line(metric) for metric in rubric.metrics)


def _execution(execution: ExecutionResult | None) -> dict[str, Any] | None:
    if execution is None:
        return None
    return {
        "outcome": execution.outcome,
        "exit status": execution.exit_code,
        "exception": _word((execution.exception or "").partition(":")[0]) or None,
        "line": execution.exception_line,
        "stdout bytes": execution.stdout_bytes,
        "stderr bytes": execution.stderr_bytes,
        "created": _sizes(execution.created),
        "changed": _sizes(execution.changed),
        "deleted": [_word(name) for name in execution.deleted[:MOST_FILES]],
        "seconds": round(execution.wall_seconds, 1),
    }


def _checks(action: Action) -> dict[str, Any] | None:
    if action.evidence is None:
        return None
    facts = {name: value for name, value in action.evidence.facts.items() if not isinstance(value, str)}
    return {"did its part": action.evidence.success, **facts}


def _sizes(files: Mapping[str, int]) -> dict[str, int]:
    return {_word(name): size for name, size in list(files.items())[:MOST_FILES]}


def _upstream(action: Action) -> str:
    how = action.execution.outcome if action.execution is not None else "no code"
    fault = f"; {action.evidence.fault}" if action.evidence is not None and action.evidence.fault else ""
    return f"[{action.role}, turn {action.turn}: {how}{fault}]\n{action.text}"


def _word(text: str) -> str:
    """A name that may stand among the facts: short, and no sentence can be made of it."""
    return re.sub(r"[^\w.\-/]", "_", text)[:48]
