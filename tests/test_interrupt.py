from __future__ import annotations

import os
import signal

import pytest

from mappa.interrupt import Interrupts


def test_the_first_interrupt_asks_and_the_second_stops() -> None:
    before = signal.getsignal(signal.SIGINT)
    asked: list[str] = []
    with Interrupts() as interrupts:
        interrupts.on_first(lambda: asked.append("early"))
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupts.asked and asked == ["early"]
        interrupts.on_first(lambda: asked.append("late"))  # it has come already
        assert asked == ["early", "late"]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
