"""[coach]: who scores actions, and the chat endpoints that it may ask."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Struct

from mappa.config.described import doc


class ChatConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One OpenAI-compatible chat endpoint, and how it may be used."""

    url: Annotated[str, doc("base address of the endpoint, up to and without /chat/completions")] = (
        "http://127.0.0.1:8000/v1"
    )
    model: Annotated[str, doc("the model's name as the endpoint knows it")] = ""
    key_env: Annotated[
        str,
        doc("environment variable that holds the API key; empty: the endpoint asks for none. Never the key itself"),
    ] = ""
    structured: Annotated[
        Literal["json_schema", "json_object", "off"],
        doc("how the endpoint is told the form of a reply; a reply is checked all the same"),
    ] = "json_schema"
    window: Annotated[int, doc("tokens the model can take in, reply included; a longer prompt is trimmed", ge=2048)] = (
        32768
    )
    max_tokens: Annotated[int, doc("longest reply, tokens", ge=64)] = 700
    temperature: Annotated[float, doc("temperature of a reply", ge=0)] = 0.0
    deadline: Annotated[float, doc("seconds one score may take, waiting, retries and repair included", gt=0)] = 300.0
    attempt_timeout: Annotated[float, doc("seconds after which one request is given up and sent again", gt=0)] = 60.0
    attempts: Annotated[int, doc("requests for one reply at most, hedges not counted", ge=1)] = 8
    backoff: Annotated[
        float, doc("seconds before the second request at most; doubles with each one, up to 30", gt=0)
    ] = 0.5
    concurrency: Annotated[int, doc("requests in flight at most; fewer while the endpoint is overloaded", ge=1)] = 64
    requests_per_minute: Annotated[int, doc("0 = no limit", ge=0)] = 0
    tokens_per_minute: Annotated[int, doc("prompts and replies together; 0 = no limit", ge=0)] = 0
    hedge: Annotated[
        float,
        doc("share of requests that may be sent twice, when one takes longer than 95 % do; 0 = none", ge=0, le=1),
    ] = 0.05
    dollars_in: Annotated[float, doc("price of a million prompt tokens", ge=0)] = 0.0
    dollars_out: Annotated[float, doc("price of a million reply tokens", ge=0)] = 0.0


class CoachConfig(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who scores actions."""

    kind: Annotated[
        Literal["rubric", "llm", "ensemble", "replay"],
        doc(
            "'rubric': computed from the evidence alone, no network; 'llm': a model behind `coach.chat`; 'ensemble': "
            "the rubric and every endpoint of [coach.member.NAME]; 'replay': the verdicts of another run's journal"
        ),
    ] = "rubric"
    rubrics: Annotated[
        tuple[str, ...],
        doc(
            "rubrics by name (data-science, dsbench, maths) or by path; the first that knows a role is used",
            min_length=1,
        ),
    ] = ("data-science", "maths")
    chat: Annotated[ChatConfig, doc("the endpoint of kind 'llm'")] = ChatConfig()
    member: Annotated[
        dict[str, ChatConfig], doc("an endpoint of kind 'ensemble', such as [coach.member.small] model = ...")
    ] = msgspec.field(default_factory=dict)
    agreement: Annotated[
        float, doc("members agree whose scores lie within so many points of their median", ge=0, le=10)
    ] = 2.0
    quorum: Annotated[float, doc("share of all members that must agree, else there is no score", gt=0, le=1)] = 0.5
    replay: Annotated[str, doc("journal whose verdicts kind 'replay' gives")] = ""
    monitor: Annotated[
        bool,
        doc(
            "watch the coach: means, gaps between kinds on actions of equal outcome, drift, canaries. It observes and "
            "changes no score"
        ),
    ] = True
    alarm_rate: Annotated[float, doc("chance that a run, however long, has any false alarm", gt=0, lt=1)] = 0.05
    canary_every: Annotated[
        int,
        doc("steps between scorings of the canaries, actions that deserve nothing and ask for a 10; 0 = no", ge=0),
    ] = 10
    anchor_every: Annotated[
        int,
        doc(
            "steps between scorings of the anchors, actions of the first step that show the coach's drift; 0 = never",
            ge=0,
        ),
    ] = 10
    repeat: Annotated[
        float,
        doc("share of actions that are scored twice more, to see how exact a single score is", ge=0, le=1),
    ] = 0.01
    correct: Annotated[
        Literal["off", "offset"],
        doc(
            "'offset': take off each role's scores what one kind of task is favoured by on actions of equal outcome. "
            "(learn.group_by='role-kind' normalises each kind on its own instead)"
        ),
    ] = "off"
    retrospect: Annotated[
        bool,
        doc("once an episode has its outcome, blame failures on whoever caused them, over the files and messages used"),
    ] = False
    memory: Annotated[
        bool, doc("show a coach that reads its own record for the role and kind, and the role's recurring faults")
    ] = False
    rewrite_below: Annotated[
        float,
        doc(
            "actions with code scored below this are rewritten by a coach that reads; what runs and does better in the "
            "sandbox is learned, with weight learn.supervised; 0 = none",
            ge=0,
            le=10,
        ),
    ] = 0.0
    budget_tokens: Annotated[int, doc("tokens a run may buy, prompts and replies together; 0 = no limit", ge=0)] = 0
    budget_dollars: Annotated[float, doc("what a run may cost; 0 = no limit", ge=0)] = 0.0
