"""The stand-in endpoint is a fair one: the client that everybody uses gets along with it, in good and in bad."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from bench.parts.coach_server import VERDICT, Server
from mappa.coach.reply import SCHEMA


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.url, api_key="sk-any", max_retries=0, timeout=5.0) as client:
        yield client


def ask(client: openai.OpenAI, model: str = "stand-in") -> str | None:
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "system", "content": "Score."}, {"role": "user", "content": "Action."}],
        max_tokens=100,
        temperature=0,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "verdict", "strict": True, "schema": SCHEMA},
        },
    )
    assert answer.choices[0].finish_reason == "stop" and answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0
    return answer.choices[0].message.content


def test_a_reply_and_the_list_of_models(client: openai.OpenAI) -> None:
    assert ask(client) == VERDICT
    assert [model.id for model in client.models.list()] == ["stand-in"]


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ({"too_many": 1.0}, openai.RateLimitError),
        ({"error": 1.0}, openai.InternalServerError),
        ({"drop": 1.0}, openai.APIConnectionError),
        ({"key": "sk-right"}, openai.AuthenticationError),
        ({"model": "another"}, openai.NotFoundError),
        ({"window": 10}, openai.BadRequestError),
    ],
)
def test_its_faults_are_the_real_ones(
    server: Server, client: openai.OpenAI, script: dict[str, object], error: type[openai.APIError]
) -> None:
    server.script(**script)
    with pytest.raises(error) as caught:
        ask(client)
    if isinstance(caught.value, openai.APIStatusError):
        assert caught.value.body is not None, "its error has the form that the client reads"


def test_a_hang_is_a_timeout(server: Server, client: openai.OpenAI) -> None:
    server.script(hang=1.0)
    with pytest.raises(openai.APITimeoutError):
        ask(client.with_options(timeout=0.3))


def test_its_retries_get_through(server: Server, client: openai.OpenAI) -> None:
    server.script(too_many=0.3, error=0.2, seed=2)
    patient = client.with_options(max_retries=20)
    assert [ask(patient) for _ in range(3)] == [VERDICT] * 3
    assert server.stats()["counts"]["requests"] > 3
