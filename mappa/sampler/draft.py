"""Guessing the next tokens by looking them up: what agents write repeats much of what they were shown.

The last few tokens of a row are looked up in its own prompt and output; what followed them there is the guess. The
engine samples every guessed position anyway, with the random number that belongs to it, and keeps tokens only up to the
first that differs from the guess: the text is exactly the one that would have been written without guessing, in fewer
passes.
"""

from __future__ import annotations

_LONGEST, _SHORTEST = 6, 2
_FIRST, _MOST = 6, 12


class Draft:
    """Guesses for one row. `tokens` is its prompt and output so far, extended by `add`."""

    def __init__(self, prompt: tuple[int, ...]) -> None:
        self.tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # run of tokens -> where it was last followed by something
        self._length = _FIRST
        for token in prompt:
            self.add(token)

    def add(self, token: int) -> None:
        """Append a token, remembering that it follows the runs before it."""
        end = len(self.tokens)
        for size in range(_SHORTEST, _LONGEST + 1):
            if end >= size:
                self._after[tuple(self.tokens[end - size : end])] = end
        self.tokens.append(token)

    def guess(self, limit: int) -> list[int]:
        """At most `limit` tokens that may come next; none where the last tokens were not seen before."""
        end = len(self.tokens)
        for size in range(_LONGEST, _SHORTEST - 1, -1):
            found = self._after.get(tuple(self.tokens[end - size : end])) if end >= size else None
            if found is not None:
                return self.tokens[found : found + min(limit, self._length)]
        return []

    def learn(self, guessed: int, right: int) -> None:
        """Guess further ahead where guesses come true, and less far where they do not."""
        if guessed:
            self._length = min(_MOST, 2 * self._length) if right == guessed else max(2, right + 1)
