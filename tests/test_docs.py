"""README, CONTRIBUTING and docs/ say what is so: their commands are taken by the programs they name and run by tests
(some in test_docs_run.py); settings, links, keys and files are those there are."""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import re
import sys
import tomllib
from collections.abc import Sequence
from importlib.metadata import entry_points
from itertools import chain
from typing import Any

import pytest

import mappa.errors
from mappa.config import config_from, describe, load_config, serve_config
from tests.pages import PAGES, ROOT, anchors, blocks, code, commands, dry_make, links, program, what

WHEELS = "tests/kernels/test_build.py::test_with_a_compiler_the_wheel_has_the_extension_within_two_minutes"
ABOUT_A_RUN = "tests/test_docs_run.py::test_commands_about_a_run"
RUN_BY = {
    "mappa doctor": "tests/test_cli.py::test_a_prepared_machine_is_found_ready",
    "mappa replay": "tests/test_resume.py::test_a_replay_learns_the_same_from_the_journal",
    "mappa report": ABOUT_A_RUN,
    "mappa serve": "tests/serve/test_durable.py::test_the_server_is_killed_and_comes_back",
    "mappa top": ABOUT_A_RUN,
    "mappa trace": ABOUT_A_RUN,
    "mappa view": "tests/view/test_app.py::test_the_page_and_its_answers",
    "make train": "tests/test_docs_run.py::test_the_team_of_readme_is_trained_by_its_command",
    "pip install ./kernels": WHEELS,
    "pip install .": WHEELS,
    "python -m mappa.evaluate": ABOUT_A_RUN,
    "python -m mappa.train": "tests/test_train.py::test_a_run_ends_and_a_finished_one_is_not_done_again",
    "python -m mappa.train --dry-run": "tests/test_dryrun.py::test_the_papers_runs_fit_their_gpus",
    "torchrun mappa.train": "tests/test_train.py::test_two_ranks_learn_from_one_rollout",
    "torchrun program.py": "tests/learn/test_embedding.py::test_a_guest_in_another_programs_process_group",
}
"""The test that runs a command, by what it is."""
ONLY_TAKEN = re.compile(
    r"make (?!train$)[a-z-]+|pip (install|config)( \S+)?|python -m bench\.\w+"
    r"|(apt-get|git|sysctl|tensorboard|pre-commit)\b.*"
)
"""Only taken by the program they name: they change the machine, take hours, or ask a package index."""
EMBEDDING = (
    "test_the_learner_program_trains_and_what_it_saves_is_what_it_trained",
    "test_the_loss_of_the_page_is_the_default_one_where_nothing_is_clipped",
    "test_trl_with_our_kernel_says_what_trl_says",
    "test_the_actor_and_the_loss_of_an_openrlhf_loop",
)
PYTHON_RUN_BY = {
    "README.md": ["tests/test_docs_run.py::test_the_team_of_readme_goes_on_from_what_failed"],
    "docs/embedding.md": [
        *(f"tests/learn/test_embedding.py::{name}" for name in EMBEDDING),
        "tests/serve/test_loops.py::test_the_program_of_the_page",
    ],
    "docs/kernels.md": ["tests/test_docs_run.py::test_the_kernels_of_the_page"],
    "docs/sandbox.md": ["tests/test_docs_run.py::test_the_sandbox_of_the_page"],
    "docs/systems.md": 8 * ["tests/systems/test_shapes.py::test_every_example_has_a_test_and_is_short"],
}
"""The tests that run the python blocks of a page, in their order."""
LANGUAGES = {"sh", "console", "python", "toml", "mermaid", ""}
ALL = [command for page in PAGES for command in commands(page)]
SECTIONS = "tasks|sandbox|coach|sampler|rollout|learn|evaluate|log"
KEYS = re.findall(r"^  (\S+) \(", describe(), re.M)


class Taken(Exception):
    """A program has taken its arguments."""


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a module's `main` makes of arguments; it goes no further. SystemExit 2 where it takes them not."""
    ways = {name: getattr(argparse.ArgumentParser, name) for name in ("parse_args", "parse_intermixed_args")}

    def parse(module: str, arguments: Sequence[str]) -> argparse.Namespace:
        for name, real in ways.items():

            def take(self: argparse.ArgumentParser, *given: Any, real: Any = real) -> None:
                raise Taken(real(self, *given))

            monkeypatch.setattr(argparse.ArgumentParser, name, take)
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        try:
            begun = importlib.import_module(module).main()
            if inspect.iscoroutine(begun):
                begun.send(None)
        except Taken as taken:
            return taken.args[0]
        except SystemExit as stopped:
            if stopped.code != 0:
                raise AssertionError(f"{module} does not take {arguments}") from None
            return argparse.Namespace()
        raise AssertionError(f"{module} looks at no arguments")

    return parse


@pytest.mark.parametrize("kind", sorted({what(command) for command in ALL}))
def test_every_command_is_run_by_a_test_or_one_that_can_only_be_taken(kind: str) -> None:
    assert kind in RUN_BY or ONLY_TAKEN.fullmatch(kind), f"name the test that runs {kind!r} in RUN_BY"


@pytest.mark.parametrize("test", sorted({*RUN_BY.values(), *chain(*PYTHON_RUN_BY.values())}))
def test_tests_that_are_named_are_there(test: str) -> None:
    path, name = test.split("::")
    functions = [node.name for node in ast.parse((ROOT / path).read_text()).body if isinstance(node, ast.FunctionDef)]
    assert name in functions


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_taken_by_its_program(page: str, parse: Any) -> None:
    for command in commands(page):
        name, words = program(command)
        place = f"{page}:{command.line}"
        if name == "make":
            for line in dry_make(words):
                if found := re.search(r"-m mappa\.train (.*)", line):
                    check_training(parse("mappa.train", found[1].replace("'", "").replace('"', "").split()))
        elif name == "mappa":
            check_mappa(parse, words)
        elif name == "python":
            assert words[0] == "-m", place
            taken = parse(words[1], words[2:])
            if words[1] == "mappa.train":
                check_training(taken)
        elif name == "pip":
            check_pip(words, place)
        elif name == "torchrun":
            assert any(word in ("program.py", "mappa.train") for word in words), place
        elif name in ("apt-get", "sysctl"):
            said = (ROOT / "mappa/sandbox/tiers.py").read_text()
            assert " ".join([name, *words]) in said or words[-1] in said, f"{place}: the sandbox names another remedy"
        elif name != "git":
            assert name in entry_points(group="console_scripts").names, place


def check_training(taken: argparse.Namespace) -> None:
    """The config is there and takes the overrides."""
    if hasattr(taken, "config"):
        load_config(ROOT / taken.config, taken.overrides)


def check_mappa(parse: Any, words: Sequence[str]) -> None:
    """`mappa view` alone stands for the command, not for a call of it."""
    taken = parse("mappa.cli", words if len(words) > 1 else [*words, "--help"])
    if words[0] == "serve" and hasattr(taken, "model"):
        serve_config([f"model={taken.model}", f"port={taken.port}", *taken.settings])


def check_pip(words: Sequence[str], place: str) -> None:
    """What is installed is a folder of ours, an extra of ours, or a package that an extra names."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    known = {re.split(r"[^\w-]", package)[0] for packages in extras.values() for package in packages}
    for word in words[1:] if words[0] == "install" else ():
        if word.startswith("."):
            assert (ROOT / word / "pyproject.toml").is_file(), place
        elif found := re.fullmatch(r"mappa\[(\w+)\]", word):
            assert found[1] in extras, place
        else:
            assert word[0] == "-" or word in known, place


@pytest.mark.parametrize("page", PAGES)
def test_blocks_are_of_a_known_kind_and_settings_are_taken(page: str) -> None:
    for block in blocks(page):
        place = f"{page}:{block.line}"
        assert block.language in LANGUAGES, place
        if block.language == "toml":
            config_from({"name": "page"} | tomllib.loads(block.text), where=place)


@pytest.mark.parametrize("page", PAGES)
def test_every_program_is_run_by_a_test(page: str) -> None:
    programs = [block for block in blocks(page) if block.language == "python"]
    assert len(programs) == len(PYTHON_RUN_BY.get(page, [])), "name the test that runs it in PYTHON_RUN_BY"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for link in links(page):
        file, _, anchor = link.target.partition("#")
        if "://" not in file:
            target = (ROOT / page).parent / file if file else ROOT / page
            assert target.exists(), f"{page}:{link.line} links to {link.target}"
            if anchor:
                name = str(target.resolve().relative_to(ROOT))
                assert anchor in anchors(name), f"{page}:{link.line} links to {link.target}"


@pytest.mark.parametrize("page", PAGES)
def test_settings_and_files_that_are_named_are_there(page: str) -> None:
    for line, text in code(page):
        if found := re.match(rf"({SECTIONS})\.[a-z_.]+(?!\S*/)", text):
            key = found[0].rstrip(".")
            assert any(known == key or known.startswith(f"{key}.") for known in KEYS), f"{page}:{line}: no key {key}"
        if re.fullmatch(r"(mappa|tests|bench|docs|configs|csrc|kernels|requirements|tools)/[\w./-]*", text):
            assert (ROOT / text).exists(), f"{page}:{line}: no {text}"


def test_every_page_is_linked_from_readme() -> None:
    assert {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} <= {
        link.target for link in links("README.md")
    }


def test_readme_is_two_screens() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 100


def test_operations_knows_every_error() -> None:
    errors = {name for name, found in vars(mappa.errors).items() if isinstance(found, type)} - {"MappaError"}
    assert errors == set(re.findall(r"^\| `(\w+Error)` \|", (ROOT / "docs/operations.md").read_text(), re.M))
