"""`mappa`: what is asked of an installation from the command line. Training has a program of its own, mappa.train."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from mappa import __version__
from mappa.errors import MappaError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns its exit status: 0 fine, 1 the command says no, 2 it could not be run."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except MappaError as error:
        print(f"mappa: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mappa",
        description="Trains a team of LLM agents on one node. Training itself: make train, or torchrun -m mappa.train.",
    )
    parser.add_argument("--version", action="version", version=f"mappa {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    doctor = commands.add_parser(
        "doctor",
        help="what this machine has, what is missing, and the command that fixes it",
        description="Checks everything the quickstart needs. Exit status 1 if it cannot run yet.",
    )
    doctor.add_argument("--json", action="store_true", help="one JSON array of checks instead of text")
    doctor.set_defaults(run=_doctor)
    return parser


def _doctor(options: argparse.Namespace) -> int:
    from mappa.doctor import examine, show, show_json

    checks = examine()
    (show_json if options.json else show)(checks)
    return 0 if all(check.ok or not check.needed for check in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
