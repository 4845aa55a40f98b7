"""From the journal's token ids back to text, with the base's tokenizer: loaded when first asked for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from mappa.config import cache_home
from mappa.errors import ModelError
from mappa.journal import read_action, read_advantages

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MOST = 4000
"""Tokens that are shown one by one; the rest comes as one piece."""


class Piece(Struct, frozen=True, array_like=True):
    """Some text, and log-prob and advantage of the token that completed it: None where no single token did, or where
    the learner has not learned from it."""

    text: str
    logprob: float | None
    advantage: float | None


class Tokens(Struct, frozen=True):
    """What an action saw, as one text, and what it wrote, token by token."""

    prompt: str
    pieces: list[Piece]


def tokens_of(journal: Path, model: str, episode: str, ordinal: int) -> Tokens:
    """Raises KeyError for an action there is not, ModelError where the base's tokenizer is not at hand."""
    action = read_action(journal, episode, ordinal)
    tokenizer = _tokenizer(model)
    prompt = tokenizer.decode(list(action.prompt_ids), skip_special_tokens=False)
    advantages = read_advantages(journal, f"{episode}/{action.role}/{action.turn}")
    return Tokens(prompt, _pieces(tokenizer, action.output_ids, action.logprobs, advantages))


def _pieces(
    tokenizer: Tokenizer, ids: Sequence[int], logprobs: Sequence[float], advantages: Sequence[float] | None
) -> list[Piece]:
    """A character may take several tokens: they are one piece."""
    from tokenizers.decoders import DecodeStream

    stream = DecodeStream(skip_special_tokens=False)
    found = []
    for place, (id, logprob) in enumerate(zip(ids[:MOST], logprobs, strict=False)):
        if (text := stream.step(tokenizer, id)) is not None:
            found.append(Piece(text, round(logprob, 4), None if advantages is None else round(advantages[place], 4)))
    if rest := list(ids[MOST:]):
        found.append(Piece(tokenizer.decode(rest, skip_special_tokens=False), None, None))
    return found


@lru_cache(maxsize=8)
def tokenizer_file(model: str) -> Path | None:
    """The tokenizer.json of a base, where it is on this machine."""
    for folder in (Path(model), cache_home() / "models" / model):
        if (path := folder / "tokenizer.json").is_file():
            return path
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(model, "tokenizer.json")
    except HFValidationError:  # a folder that is gone
        return None
    return Path(cached) if isinstance(cached, str) else None


@lru_cache(maxsize=1)
def _tokenizer(model: str) -> Tokenizer:
    from tokenizers import Tokenizer

    path = tokenizer_file(model)
    if path is None:
        raise ModelError(f"no tokenizer.json of {model!r} is on this machine; put the base model where the run had it")
    return Tokenizer.from_file(str(path))
