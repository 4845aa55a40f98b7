"""Messages to roles, and what is read out of what they write: the part meant for others, code, boxed answers."""

from __future__ import annotations

import re

from mappa.types import Action, Message, Role

_OPEN, _CLOSE = "<think>", "</think>"
_FENCE = re.compile(r"```(?P<language>[\w+-]*)[ \t]*\n(?P<code>.*?)(?P<end>```|\Z)", re.S)
_PYTHON = ("python", "py", "python3")


def chat(role: Role, request: str) -> list[Message]:
    """A role's prompt, its worked examples as past turns, then what it is asked now."""
    messages = [Message("system", role.prompt)] if role.prompt else []
    for asked, answered in role.examples:
        messages += [Message("user", asked), Message("assistant", answered)]
    return [*messages, Message("user", request)]


def spoken(action: Action) -> str:
    """What others are shown of an action: its text without its reasoning."""
    return without_thinking(action.text)


def without_thinking(text: str) -> str:
    """`text` behind its last closed `<think>` part, and before one that was never closed.

    Templates that open the tag themselves leave only `</think>` in what is written: all before it is reasoning.

    >>> without_thinking("<think>17 is prime</think>It is 17. <think>Or is")
    'It is 17.'
    """
    behind = text.rpartition(_CLOSE)[2]
    return behind.partition(_OPEN)[0].strip()


def python_block(text: str) -> str | None:
    """The code of the first fenced block, closed or not; None if there is no fence or nothing in it."""
    found = re.search(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", text, re.S)
    return found.group(1) if found and found.group(1).strip() else None


def python_program(text: str) -> str | None:
    """All closed python blocks outside of the reasoning, one after the other, as one program; None if there is none.

    A block that was never closed is left out: it was cut off, and half a program does what nobody meant.
    """
    found = _FENCE.finditer(without_thinking(text))
    blocks = [match["code"].strip("\n") for match in found if match["language"].lower() in _PYTHON and match["end"]]
    return "\n\n".join(block for block in blocks if block.strip()) or None


def tagged(text: str, tag: str) -> str | None:
    """What stands in the last `<tag>...</tag>` outside of the reasoning; None if there is no closed one."""
    found = re.findall(rf"<{tag}>(.*?)</{tag}>", without_thinking(text), re.S)
    return found[-1].strip() if found else None


def shortened(text: str, limit: int) -> str:
    """`text`, or its beginning and its end with what is missing between them said."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"
