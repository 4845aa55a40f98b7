"""The pages a person reads, taken apart: their blocks, commands, links, and what they name."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
PROGRAMS = {
    *("apt-get", "docker", "git", "make", "mappa", "pip", "pre-commit", "python", "python3", "rm", "sudo", "sysctl"),
    *("tensorboard", "timeout", "torchrun", "wandb"),
}
"""What makes a piece of code within a sentence a command."""

STANDS_FOR = {"CONFIG": "configs/quickstart.toml", "RUN": "runs/first", "N": "2"}


class Block(NamedTuple):
    page: str
    line: int
    language: str
    text: str


class Command(NamedTuple):
    page: str
    line: int
    words: tuple[str, ...]


class Link(NamedTuple):
    page: str
    line: int
    target: str


def blocks(page: str) -> list[Block]:
    """Fenced and indented blocks."""
    return [
        Block(page, _line(token), token.info.strip(), token.content)
        for token in _tokens(page)
        if token.type in ("fence", "code_block")
    ]


def python(page: str) -> str:
    """The one python block of a page."""
    (block,) = (block for block in blocks(page) if block.language == "python")
    return block.text


def code(page: str) -> Iterator[tuple[int, str]]:
    """(line, text) of every piece of code within a sentence."""
    for token, child in _children(page):
        if child.type == "code_inline":
            yield _line(token), child.content


def commands(page: str) -> list[Command]:
    """Every command of a page: the lines of its sh blocks, what is typed in its console blocks, and whatever else
    begins with a known program."""
    found = []
    for block in blocks(page):
        for number, line in enumerate(block.text.replace("\\\n", " ").splitlines()):
            if block.language == "console":
                typed = line.removeprefix("$ ") if line.startswith("$ ") else ""
            else:
                typed = line if block.language == "sh" or (not block.language and _is_command(line)) else ""
            if words := _words(typed):
                found.append(Command(page, block.line + 1 + number, words))
    for line, text in code(page):
        if _is_command(text) and len(words := _words(text)) > 1:
            found.append(Command(page, line, words))
    return found


def program(command: Command) -> tuple[str, list[str]]:
    """Its name and arguments, without the folder it lies in, what times it out, and names that stand for others."""
    words = [STANDS_FOR.get(word, word) for word in command.words]
    if words[0] == "timeout":
        words = words[next(place for place, word in enumerate(words[1:], 1) if word[0].isdigit()) + 1 :]
    return Path(words[0]).name, words[1:]


def what(command: Command) -> str:
    """What a command is, whatever its arguments: `mappa view`, `make train`, `python -m mappa.train --dry-run`."""
    name, words = program(command)
    if name == "torchrun":
        return f"torchrun {next(word for word in words if word[0] != '-')}"
    if name == "python":
        return " ".join([name, *words[:2], *(["--dry-run"] if "--dry-run" in words else [])])
    return " ".join(
        [name, *[word for word in words if word[0] != "-" and "=" not in word][: 2 if name == "pip" else 1]]
    )


def dry_make(words: Sequence[str]) -> list[str]:
    """The commands that make would run for somebody at a terminal, whatever make these tests are run by was told."""
    told = {"ARGS", "CONFIG", "N", "PYTHON", "MFLAGS"}
    environment = {key: value for key, value in os.environ.items() if key not in told and not key.startswith("MAKE")}
    done = subprocess.run(
        ["make", "-n", *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def links(page: str) -> Iterator[Link]:
    """Of links and pictures."""
    for token, child in _children(page):
        if child.type in ("link_open", "image"):
            yield Link(page, _line(token), str(child.attrGet("href") or child.attrGet("src")))


def anchors(page: str) -> set[str]:
    """What a link may name behind `#`: headings as GitHub makes anchors of them."""
    tokens = _tokens(page)
    headings = [after.content for token, after in pairwise(tokens) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _is_command(text: str) -> bool:
    return text.strip() != "" and Path(text.split()[0]).name in PROGRAMS


def _words(text: str) -> tuple[str, ...]:
    """As a shell sees them, without the brackets around what may be left out."""
    text = re.sub(r"(?<!\S)\[|\](?!\S)", "", text)
    return tuple(word for word in shlex.split(text, comments=True) if word not in ("...", "key=value"))


@cache
def _tokens(page: str) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse((ROOT / page).read_text())


def _children(page: str) -> Iterator[tuple[Token, Token]]:
    for token in _tokens(page):
        for child in token.children or ():
            yield token, child


def _line(token: Token) -> int:
    return token.map[0] + 1 if token.map else 0
