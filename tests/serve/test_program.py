"""The command line: what it refuses before anything large is loaded."""

from __future__ import annotations

import re

import pytest

from mappa.cli import main
from mappa.config import serve_config
from mappa.serve.program import KEY


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["ranks=4"], r"unknown key ranks; did you mean rank\?"),
        (["rank=0"], "rank: Expected `int` >= 1"),
        (["port=http"], "port: Expected `int`, got `str`"),
        (["max_context=9000"], "max_context=9000 does not fit tokens_per_micro_batch=4096; raise it"),
        (["host"], "not of the form"),
    ],
)
def test_settings_are_checked(settings: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--model", "nowhere", *settings]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_key_that_no_client_would_send(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv(KEY, "secret")
    assert main(["serve", "--model", "nowhere"]) == 2
    assert "must be 'tml-' and at least 16 more characters" in capsys.readouterr().err


def test_it_is_not_open_to_others_unless_asked() -> None:
    assert serve_config(["model=x"]).host == "127.0.0.1"


def test_help_lists_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert all(f"  {name} (" in text for name in ("rank", "state", "session_timeout", "gather"))
