"""Problems with one answer, from records as the usual sets have them.

    {"problem": ..., "solution": ..., "answer": "70"}             AIME, MATH: the answer, else the solution's \\boxed{}
    {"question": ..., "answer": "reasoning\\n#### 18"}              GSM8K: what stands behind ####
    {"problem": ..., "answer": 27.0}                              AMC: numbers as numbers
    {"Body": ..., "Question": ..., "Answer": 145.0}              SVAMP, ASDiv; also input/target, prompt/expected_answer
    {"sQuestion": ..., "lSolutions": [8.0]}                      MAWPS; also question/result

A record without a problem or an answer is refused, with its place; the others are used.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from mappa.errors import TaskError
from mappa.tasks.answers import LONGEST_ANSWER, boxed
from mappa.tasks.found import Found, Refused
from mappa.types import Task

PROBLEM = ("problem", "question", "prompt", "input", "body", "squestion")
ANSWER = ("answer", "final_answer", "expected_answer", "gold", "target", "label", "lsolutions", "result")
SOLUTION = ("solution", "reasoning", "response")
KIND = ("subject", "type", "solution_type", "category")
NAME = ("id", "unique_id", "idx")
NO_ANSWER = ("nan", "inf", "-inf", "none", "null")
"""What other programs write where there is none."""
LONGEST_LINE = 1 << 20


def read_jsonl(path: Path) -> Found:
    """The problems of a JSONL file. Raises TaskError if it cannot be read or holds none that can be used."""
    return tasks_of(_records(path), path.stem)


def tasks_of(records: Iterable[tuple[str, Mapping[str, Any] | TaskError]], source: str) -> Found:
    """Tasks of (place, record) pairs; a record that is an error is refused with it."""
    tasks: dict[str, Task] = {}
    refused = []
    for place, record in records:
        try:
            if isinstance(record, TaskError):
                raise record
            task = task_of(record, source, place)
            if task.id in tasks:
                raise TaskError(f"the id {task.id!r} is there twice")
            tasks[task.id] = task
        except TaskError as error:
            refused.append(Refused(f"{source}:{place}", str(error)))
    if not tasks:
        first = f"; {refused[0].task}: {refused[0].why}" if refused else ""
        raise TaskError(f"{source} holds no problem that can be used ({len(refused)} refused{first})")
    return Found(train=tuple(tasks.values()), refused=tuple(refused))


def task_of(record: Mapping[str, Any], source: str, place: str) -> Task:
    """One record as a task. Raises TaskError for one without a problem or without an answer."""
    fields = {str(key).lower(): value for key, value in record.items() if value is not None}
    problem = _problem(fields)
    if not problem:
        raise TaskError(f"no problem: none of {', '.join(PROBLEM)} holds text")
    answer = _answer(fields)
    if not answer:
        raise TaskError(f"no answer: {', '.join(ANSWER)} are empty, and no solution has \\boxed{{}} or ####")
    if len(answer) > LONGEST_ANSWER:
        raise TaskError(f"an answer of {len(answer)} characters; {LONGEST_ANSWER} at most can be compared")
    name = next((str(fields[key]) for key in NAME if key in fields), place)
    kind = next((str(fields[key]) for key in KIND if isinstance(fields.get(key), str)), "maths")
    return Task(id=re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{source}-{name}"), kind=kind, prompt=problem, answer=answer)


def _problem(fields: Mapping[str, Any]) -> str:
    if isinstance(fields.get("body"), str) and isinstance(fields.get("question"), str):
        return f"{fields['body'].strip()} {fields['question'].strip()}"
    return next((fields[key].strip() for key in PROBLEM if isinstance(fields.get(key), str)), "")


def _answer(fields: Mapping[str, Any]) -> str:
    for key in ANSWER:
        value = fields.get(key)
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            continue
        text = _plain(value)
        if text and text.lower() not in NO_ANSWER:
            return text
    for key in SOLUTION:
        found = boxed(fields[key]) if isinstance(fields.get(key), str) else None
        if found:
            return found
    return ""


def _plain(value: str | int | float) -> str:
    """`27.0` as 27; of reasoning, what stands behind ####; of `9 (apples)`, the number."""
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value)
    text = str(value).rpartition("####")[2].strip()
    counted = re.fullmatch(r"([-+]?[\d.,/]+)\s*\([^()]*\)", text)
    return counted[1] if counted else boxed(text) or text


def _records(path: Path) -> Iterator[tuple[str, Mapping[str, Any] | TaskError]]:
    try:
        with path.open("rb") as file:
            file.seek(len(codecs.BOM_UTF8) if file.read(3) == codecs.BOM_UTF8 else 0)
            for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE), b""), start=1):
                if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
                    while (rest := file.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
                        pass
                    yield str(number), TaskError(f"a line of more than {LONGEST_LINE >> 20} MiB")
                elif line.strip():
                    yield str(number), _record(line)
    except OSError as error:
        raise TaskError(f"{path} cannot be read: {error.strerror}") from error


def _record(line: bytes) -> Mapping[str, Any] | TaskError:
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return TaskError(f"no JSON object: {error}")
