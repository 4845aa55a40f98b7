"""The systems of docs/systems.md, played by the real loop: each shape does what the page says."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mappa.coach import check_roles, load_coach
from mappa.config import CoachConfig, OutsideConfig, config_from
from mappa.errors import SamplerError, TeamError
from mappa.rollout.samples import samples_of
from mappa.run import learn_settings
from mappa.sampler.outside import OutsideModel
from mappa.systems import System, adapters_of, frozen_adapters, load_system, team_of
from mappa.types import Message, SamplingParams, Task

from ..stages import ScriptedSampler, Theatre, transcript

PAGE = Path(__file__).resolve().parents[2] / "docs" / "systems.md"
EXAMPLES = dict(re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?```python\n(.*?)\n```", PAGE.read_text(), re.S | re.M))
TASK = Task(id="sum", kind="maths", prompt="What is 2 + 3?", answer="5")


@pytest.fixture(scope="module")
def theatre(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Theatre:
    return Theatre(tiny_model, tmp_path_factory.mktemp("theatre"))


def example(heading: str, folder: Path) -> System:
    path = folder / "team_of_mine.py"
    path.write_text(EXAMPLES[heading])
    return load_system(f"{path}:team")


def test_every_example_has_a_test_and_is_short() -> None:
    tested = re.findall(r'example\("([^"]+)"', Path(__file__).read_text())
    assert sorted(EXAMPLES) == sorted(set(tested))
    for name, code in EXAMPLES.items():
        lines = [line for line in code.partition("@system")[2].splitlines() if line.strip()]
        assert len(lines) <= 10, name


@pytest.mark.parametrize("heading", EXAMPLES)
def test_every_example_can_be_trained_as_it_is(heading: str, tmp_path: Path) -> None:
    path = tmp_path / "team_of_mine.py"
    path.write_text(EXAMPLES[heading])
    check_roles(CoachConfig(), load_system(f"{path}:team").roles)


def test_a_chain(theatre: Theatre, tmp_path: Path) -> None:
    team = example("A chain", tmp_path)
    replies = {"writer": ["<think>hm</think>It is 6."], "fixer": ["\\boxed{5}"]}
    episode = theatre.play(team, TASK, replies, coach=load_coach(CoachConfig()))
    assert [action.verdict and action.verdict.score for action in episode.actions] == [3.0, 10.0]
    assert episode.error is None and episode.outcome is not None and episode.outcome.success
    assert [role for role, _, _ in transcript(episode)] == ["writer", "fixer"]
    assert "Draft: It is 6." in theatre.sampler.prompts["fixer"][0]
    assert "hm" not in theatre.sampler.prompts["fixer"][0], "reasoning is the writer's own"
    assert episode.actions[0].evidence is not None and not episode.actions[0].evidence.success


def test_a_loop_until_done(theatre: Theatre, tmp_path: Path) -> None:
    team = example("A loop until it is done", tmp_path)
    bad, good = "<think>a\nb</think>\n```python\n1 / 0\n```", "```python\nprint(2 + 3)\n```"
    episode = theatre.play(team, TASK, {"coder": [bad, bad, good]})
    assert [a.execution and a.execution.outcome for a in episode.actions] == ["error", "error", "ok"]
    assert episode.outcome is not None and episode.outcome.success
    assert "ZeroDivisionError" in theatre.sampler.prompts["coder"][1]
    for before, after in zip(episode.actions, episode.actions[1:], strict=False):
        context = before.prompt_ids + before.output_ids
        assert after.prompt_ids[: len(context)] == context, (
            "the next turn goes on from what was sampled, token by token"
        )


def test_a_branch(theatre: Theatre, tmp_path: Path) -> None:
    team = example("A branch", tmp_path)
    for word, expert in (("Geometry", "geometry"), ("algebra", "algebra")):
        episode = theatre.play(team, TASK, {"router": [word], "algebra": ["5"], "geometry": ["5"]})
        assert [role for role, _, _ in transcript(episode)] == ["router", expert]


def test_a_debate(theatre: Theatre, tmp_path: Path) -> None:
    team = example("A debate", tmp_path)
    replies = {"pro": ["It is 5.", "Still 5."], "con": ["It is 6.", "Well, 6."], "judge": ["\\boxed{5}"]}
    episode = theatre.play(team, TASK, replies)
    assert transcript(episode)[:4] == [
        ("pro", 0, "It is 5."), ("con", 0, "It is 6."), ("pro", 1, "Still 5."), ("con", 1, "Well, 6.")
    ]  # fmt: skip
    own = theatre.sampler.prompts["pro"][1]
    assert own.index("It is 5.") < own.index("Your opponent says: It is 6.")
    assert "Pro: Still 5.\n\nCon: Well, 6." in theatre.sampler.prompts["judge"][0]


def test_roles_in_parallel(theatre: Theatre, tmp_path: Path) -> None:
    team = example("Roles in parallel", tmp_path)
    episode = theatre.play(team, TASK, {"one": ["five"], "two": ["x = 5"], "chair": ["\\boxed{5}"]})
    assert {role for role, _, _ in transcript(episode)[:2]} == {"one", "two"}
    assert "five\n\nx = 5" in theatre.sampler.prompts["chair"][0]


def test_a_failure_in_parallel_is_the_episodes_own(theatre: Theatre, tmp_path: Path) -> None:
    code = EXAMPLES["Roles in parallel"].replace("for role in (ONE, TWO)", "for role in (ONE, None)")
    (tmp_path / "half.py").write_text(code)
    episode = theatre.play(load_system(f"{tmp_path / 'half.py'}:team"), TASK, {"one": ["five"], "chair": ["5"]})
    assert episode.error is not None and episode.error.startswith("TeamError: the system raised AttributeError")


def test_roles_that_share_one_adapter(theatre: Theatre, tmp_path: Path) -> None:
    team = example("Roles that share one adapter", tmp_path)
    assert adapters_of(team) == ("thinker",)
    episode = theatre.play(team, TASK, {"solver": ["4"], "checker": ["\\boxed{5}"]})
    assert {action.adapter for action in episode.actions} == {"thinker@0"}
    samples = samples_of([episode], group_by="role")
    assert [(sample.role, sample.group) for sample in samples] == [("thinker", "solver"), ("thinker", "checker")]


def test_any_team_can_share_one_adapter(theatre: Theatre, tmp_path: Path) -> None:
    example("Roles in parallel", tmp_path)
    config = config_from({"name": "x", "system": f"{tmp_path / 'team_of_mine.py'}:team", "adapters": "shared"})
    team = team_of(config)
    assert adapters_of(team) == ("team",) == learn_settings(config).roles
    episode = theatre.play(team, TASK, {"one": ["4"], "two": ["5"], "chair": ["\\boxed{5}"]})
    assert episode.outcome is not None and episode.outcome.success
    assert {action.adapter for action in episode.actions} == {"team@0"}
    groups = [(sample.role, sample.group) for sample in samples_of([episode], group_by="role")]
    assert sorted(groups) == [("team", "chair"), ("team", "one"), ("team", "two")]


def test_a_frozen_role_shares_nothing(tmp_path: Path) -> None:
    example("A role that is frozen", tmp_path)
    config = config_from({"name": "x", "system": f"{tmp_path / 'team_of_mine.py'}:team", "adapters": "shared"})
    with pytest.raises(TeamError, match="'referee' is frozen, so it cannot share"):
        team_of(config)


def test_a_role_that_is_frozen(theatre: Theatre, tmp_path: Path) -> None:
    team = example("A role that is frozen", tmp_path)
    assert frozen_adapters(team) == {"referee"}
    episode = theatre.play(team, TASK, {"learner": ["4"], "referee": ["\\boxed{5}"]})
    assert episode.outcome is not None and episode.outcome.success
    settings = learn_settings(config_from({"name": "x", "system": f"{tmp_path / 'team_of_mine.py'}:team"}))
    assert settings.roles == ("learner", "referee") and settings.role["referee"].frozen


class Endpoint(ThreadingHTTPServer):
    """A chat endpoint on a real socket: overloaded once, then answers; keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.asked: list[dict[str, object]] = []
        self.failures = [503]
        self.answer: object = {"choices": [{"message": {"content": "Add them."}, "finish_reason": "stop"}]}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Answering(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        status = self.server.failures.pop() if self.server.failures else 200
        self.server.asked.append({"path": self.path, "key": self.headers.get("authorization"), **body})
        data = json.dumps(self.server.answer if status == 200 else {"error": "busy"}).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    server = Endpoint()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_role_that_an_outside_model_plays(
    theatre: Theatre, tmp_path: Path, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    team = example("A role that an outside model plays", tmp_path)
    monkeypatch.setenv("TEACHER_KEY", "k3y")
    config = OutsideConfig(url=endpoint.url, model="large", key_env="TEACHER_KEY")
    episode = theatre.play(team, TASK, {"worker": ["\\boxed{5}"]}, outside={"teacher": OutsideModel("teacher", config)})
    assert episode.error is None and adapters_of(team) == ("worker",)
    planner, worker = episode.actions
    assert (planner.adapter, planner.text, planner.output_ids) == ("outside/teacher", "Add them.", ())
    assert "Plan: Add them." in theatre.sampler.prompts["worker"][0]
    assert [asked["path"] for asked in endpoint.asked] == ["/v1/chat/completions"] * 2  # one was overload
    assert endpoint.asked[-1]["key"] == "Bearer k3y" and endpoint.asked[-1]["model"] == "large"
    assert [sample.role for sample in samples_of([episode], group_by="role")] == ["worker"]
    assert worker.output_ids


def test_an_outside_model_that_is_of_no_use_costs_the_episode(
    theatre: Theatre, tmp_path: Path, endpoint: Endpoint
) -> None:
    team = example("A role that an outside model plays", tmp_path)
    endpoint.failures = [401]
    model = OutsideModel("teacher", OutsideConfig(url=endpoint.url, model="large"))
    episode = theatre.play(team, TASK, {"worker": ["5"]}, outside={"teacher": model})
    assert episode.error is not None and "SamplerError: outside.teacher" in episode.error and "401" in episode.error
    assert len(endpoint.asked) == 1, "a refusal is not tried again"
    episode = theatre.play(team, TASK, {"worker": ["5"]})
    assert episode.error is not None and "the config has no [outside.teacher]" in episode.error


def test_an_answer_that_is_no_completion_is_refused(endpoint: Endpoint) -> None:
    import asyncio

    endpoint.failures, endpoint.answer = [], {"choices": []}

    async def ask() -> None:
        model = OutsideModel("teacher", OutsideConfig(url=endpoint.url, model="large"))
        try:
            await model.write([Message("user", "?")], SamplingParams())
        finally:
            await model.close()

    with pytest.raises(SamplerError, match="no chat completion"):
        asyncio.run(ask())


ENDLESS = """
import asyncio
import sys
from mappa.systems import Role, chat, system

ROLE = Role(name="role", prompt="")

@system(ROLE)
async def acts(stage):
    while True:
        await stage.act(ROLE, chat(ROLE, "Go on."))

@system(ROLE)
async def waits(stage):
    await stage.act(ROLE, chat(ROLE, "Go on."))
    while True:
        await asyncio.sleep(0)

@system(ROLE)
async def idle(stage):
    pass

@system(ROLE)
async def breaks(stage):
    await stage.act(ROLE, chat(ROLE, "Go on."))
    {}["nothing"]

@system(ROLE)
async def stranger(stage):
    await stage.act(Role(name="nobody", prompt=""), chat(ROLE, "Go on."))

@system(ROLE)
async def stubborn(stage):
    while True:
        try:
            await stage.act(ROLE, chat(ROLE, "Go on."))
        except Exception:
            pass

@system(ROLE)
async def leaves(stage):
    await stage.act(ROLE, chat(ROLE, "Go on."))
    sys.exit("I have had enough")

@system(ROLE)
async def gives_up(stage):
    await stage.act(ROLE, chat(ROLE, "Go on."))
    raise asyncio.CancelledError

@system(ROLE)
async def never_acts(stage):
    while True:
        await asyncio.sleep(0)

@system(ROLE)
async def mixes(stage):
    action = await stage.act(ROLE, chat(ROLE, "Go on."))
    await stage.act(Role(name="other", prompt="", adapter="role"), [], after=action)
"""
FAULTS = {
    "acts": "more than 8 actions (rollout.max_actions)",
    "stubborn": "more than 8 actions (rollout.max_actions)",
    "leaves": "the system raised SystemExit: I have had enough",
    "gives_up": "the system cancelled itself",
    "never_acts": "took no action within 1 s (rollout.deadline)",
    "idle": "TeamError: the system took no action",
    "breaks": "TeamError: the system raised KeyError: 'nothing' (",
    "stranger": "role 'nobody' acts but is not among the system's roles",
    "mixes": "cannot go on from an action of 'role'",
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_system_that_goes_wrong_loses_its_own_episode(name: str, theatre: Theatre, tmp_path: Path) -> None:
    (tmp_path / "faulty.py").write_text(ENDLESS)
    system = load_system(f"{tmp_path / 'faulty.py'}:{name}")
    deadline = 1.0 if name == "never_acts" else 60.0  # the others come to their fault on a busy machine too
    episode = theatre.play(system, TASK, {"role": ["5"]}, max_actions=8, deadline=deadline)
    assert episode.error is not None and FAULTS[name] in episode.error, episode.error
    assert episode.outcome is None and samples_of([episode], group_by="role") == []


def test_a_system_that_waits_for_ever_is_cut(theatre: Theatre, tmp_path: Path) -> None:
    (tmp_path / "faulty.py").write_text(ENDLESS)
    episode = theatre.play(load_system(f"{tmp_path / 'faulty.py'}:waits"), TASK, {"role": ["5"]}, deadline=4.0)
    assert episode.cut and episode.error is None and episode.outcome is None and len(episode.actions) == 1


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import nothing_like_it", "cannot be imported: No module"),
        ("def broken(:", "cannot be imported: SyntaxError"),
        ("1 / 0", "cannot be imported: ZeroDivisionError"),
        ("raise SystemExit('no')", "cannot be imported: SystemExit: no"),
        ("team = 3", "is not a system"),
        ("class team:\n    roles = ('a', 'b')\n    async def run(self, stage): ...", "`roles` (a tuple of Role)"),
        ("class team:\n    def __init__(self): raise ValueError('no')", "cannot be made: ValueError: no"),
        (
            "from mappa.systems import Role, system\n"
            "team = system(Role(name='a', prompt='', model='m', frozen=True))(print)",
            "has no adapter",
        ),
        (
            "from mappa.systems import Role, system\n"
            "team = system(Role(name='a', prompt='', frozen=True), Role(name='b', prompt='', adapter='a'))(print)",
            "'b' trains the adapter 'a' that they share",
        ),
        (
            "from mappa.systems import Role, system\n@system(Role(name='a', prompt=''))\ndef team(stage): ...",
            "no async",
        ),
        *(
            (f"from mappa.systems import Role, system\nteam = system(Role(name='a', prompt='', {wrong}))(print)", why)
            for wrong, why in {
                "produces=('model.pkl')": "`produces` must be a tuple of file names",
                "max_tokens=0": "`max_tokens` must be a whole number",
                "stop='(open'": "`stop` is no regular expression",
                "adapter=3": "`adapter` must be a string",
            }.items()
        ),
        (
            "class team:\n    roles = property(lambda self: 1 / 0)\n    async def run(self, stage): ...",
            "ZeroDivisionError",
        ),
    ],
)
def test_a_file_that_is_no_system_is_refused(code: str, message: str, tmp_path: Path) -> None:
    from mappa.errors import TeamError

    (tmp_path / "odd.py").write_text(code)
    with pytest.raises(TeamError, match=re.escape(message)):
        load_system(f"{tmp_path / 'odd.py'}:team")


def test_the_text_of_reasoning_that_the_template_opened_says_so(tiny_model: Path, tmp_path: Path) -> None:
    """R1-like templates end with `<think>`; what is cut off before `</think>` must not pass for an answer."""
    from mappa.systems import spoken

    theatre = Theatre(tiny_model, tmp_path)
    theatre.base.tokenizer.chat_template = theatre.base.tokenizer.chat_template.replace(
        "<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}"
    )
    (tmp_path / "chain.py").write_text(EXAMPLES["A chain"])
    team = load_system(f"{tmp_path / 'chain.py'}:team")
    cut = f"It may be 5{ScriptedSampler.CUT}"
    episode = theatre.play(team, TASK, {"writer": [cut], "fixer": ["hm</think>\\boxed{5}"]})
    assert spoken(episode.actions[0]) == "" and episode.actions[0].finish_reason == "length"
    assert spoken(episode.actions[1]) == "\\boxed{5}"
