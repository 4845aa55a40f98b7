"""`mappa`: what is asked of an installation from the command line. Training has a program of its own, mappa.train."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mappa import __version__
from mappa.errors import ConfigError, MappaError
from mappa.serve import program


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
    replay = commands.add_parser(
        "replay",
        help="learn from a run's journaled episodes again, without generating",
        description="Feeds a run's journaled episodes to a new learner: the same samples, bit for bit.",
    )
    replay.add_argument("folder", type=Path, metavar="RUN", help="folder of the run")
    replay.add_argument("overrides", metavar="key=value", nargs="*", help="overrides, such as learn.lr=1e-4")
    replay.add_argument("--coach", metavar="KIND", help="score every action again, with this coach, before learning")
    replay.add_argument("--out", type=Path, metavar="FOLDER", help="where to write (default: RUN/replay)")
    replay.set_defaults(run=_replay)
    trace = commands.add_parser(
        "trace",
        help="a run's timeline for chrome://tracing or ui.perfetto.dev",
        description="Writes the journaled spans of a run, also of one that is under way, as a trace.",
    )
    trace.add_argument("folder", type=Path, metavar="RUN", help="folder of the run")
    trace.add_argument("-o", "--out", type=Path, default=Path("trace.json"), metavar="FILE", help="default: trace.json")
    trace.set_defaults(run=_trace)
    serve = commands.add_parser("serve", help="train and sample for clients of the Tinker API")
    program.add_arguments(serve)
    serve.set_defaults(run=program.run)
    view = commands.add_parser(
        "view",
        help="a run as a local page, live while it goes on",
        description="Serves a run's curves, episodes, bias board and timeline on a loopback port, until Ctrl-C.",
    )
    view.add_argument("folder", type=Path, metavar="RUN", help="folder of the run")
    view.add_argument("--port", type=int, default=8266, help="default: 8266; 0 = any that is free")
    view.set_defaults(run=_view)
    report = commands.add_parser(
        "report",
        help="the same page with its data in one HTML file",
        description="Writes a run's page, also of one that is under way, as one file that needs no server.",
    )
    report.add_argument("folder", type=Path, metavar="RUN", help="folder of the run")
    report.add_argument("-o", "--out", type=Path, metavar="FILE", help="default: RUN/report.html")
    report.set_defaults(run=_report)
    top = commands.add_parser("top", help="the same numbers in a terminal", description="Until Ctrl-C.")
    top.add_argument("folder", type=Path, metavar="RUN", help="folder of the run")
    top.add_argument("--once", action="store_true", help="print the table once")
    top.set_defaults(run=_top)
    return parser


def _doctor(options: argparse.Namespace) -> int:
    from mappa.doctor import examine, show, show_json

    checks = examine()
    (show_json if options.json else show)(checks)
    return 0 if all(check.ok or not check.needed for check in checks) else 1


def _replay(options: argparse.Namespace) -> int:
    from mappa.replay import replay

    replay(options.folder, options.out or options.folder / "replay", options.overrides, coach=options.coach)
    return 0


def _trace(options: argparse.Namespace) -> int:
    from mappa.journal import read_spans
    from mappa.observe.timeline import chrome_trace

    spans = read_spans(options.folder / "journal.sqlite")
    with _writing(options.out):
        options.out.write_bytes(chrome_trace(spans))
    print(f"{len(spans)} spans are in {options.out}")
    return 0


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """ConfigError where what a command makes cannot be put there."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error}; name another file with -o") from error


def _view(options: argparse.Namespace) -> int:
    from mappa.view.answers import Answers
    from mappa.view.app import serve

    serve(Answers(options.folder), options.port, lambda url: print(f"{options.folder} is at {url}", flush=True))
    return 0


def _report(options: argparse.Namespace) -> int:
    from mappa.view.report import write_report

    with _writing(options.out or options.folder):
        print(f"the report is {write_report(options.folder, options.out)}")
    return 0


def _top(options: argparse.Namespace) -> int:
    from mappa.view.top import top

    top(options.folder, once=options.once)
    return 0


if __name__ == "__main__":
    sys.exit(main())
