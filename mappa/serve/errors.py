"""What a request can end with beside its result."""

from __future__ import annotations

from mappa.errors import MappaError


class UserError(MappaError):
    """What was asked for cannot be done: the request fails in the category `user`."""


class Refused(MappaError):
    """A request that is not taken in at all: answered with an HTTP status and a message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
