"""A coach that reads: one chat request per action, a verdict out of the reply, or a typed reason why there is none.

What the evidence rules out no reply can bring back: where the rubric knows the role, the score is cut at the cap that
the evidence sets (`rubric.ceiling`), so an agent that talks a model into a 10 for nothing gets what nothing is worth.
The model's own score stays in the verdict's evidence as `raw`.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

from mappa.coach.budget import Budget
from mappa.coach.client import ChatClient
from mappa.coach.client_wire import Refusal
from mappa.coach.context import ActionContext
from mappa.coach.memory import remembered
from mappa.coach.prompt import Prompt, TooLong, build, load_template
from mappa.coach.reply import SCHEMA, Judgement, Unreadable, read_judgement
from mappa.coach.rewrite import SCHEMA as REWRITTEN
from mappa.coach.rewrite import read_rewritten
from mappa.coach.rubric import ceiling, is_victim
from mappa.coach.rubrics import Rubric, load_rubric
from mappa.coach.store import CallStore, ChatRequest
from mappa.config import ChatConfig
from mappa.errors import CoachError, ConfigError
from mappa.types import Fact, Message, Verdict

QUOTED = 300
SHRINK = 0.7
"""What is left of a prompt's room when the endpoint finds it too long after all."""
SHRINKS = 3


class Failed(Struct, frozen=True):
    """No judgement: a refusal, or a reply that is none even after it was asked for again."""

    refusal: Refusal


class LlmCoach:
    """Implements `Coach` with the model behind `config`. Raises ConfigError if that cannot be used, or if there is no
    rubric to tell it what is asked of a role."""

    def __init__(
        self,
        config: ChatConfig,
        *,
        budget: Budget,
        store: CallStore,
        rubrics: Sequence[str] = ("data-science", "maths"),
    ) -> None:
        if not rubrics:
            raise ConfigError("coach.rubrics is empty; name at least one, such as data-science or maths")
        self._config, self._budget = config, budget
        self._rubrics = tuple(load_rubric(name) for name in rubrics)
        self._template, self._writing = load_template("score"), load_template("rewrite")
        self._client = ChatClient(config, budget=budget, store=store)
        self._refused: str | None = None
        self.name = f"llm:{config.model}/{self._template.id}/{'+'.join(rubric.id for rubric in self._rubrics)}"

    @property
    def stopped(self) -> str | None:
        if self._refused is None and self._budget.exhausted:
            return f"the coach's budget is spent: {self._budget}; give it more and run the same command again"
        return self._refused

    @property
    def client(self) -> ChatClient:
        return self._client

    async def score(self, context: ActionContext) -> Verdict:
        execution = context.action.execution
        if execution is not None and execution.outcome == "sandbox-failure":
            reason = "The sandbox failed, which is nobody's fault."
            return Verdict(score=None, reason=reason, coach=self.name, missing="sandbox-failure")
        rubric = self._rubric(context)
        deadline = asyncio.get_running_loop().time() + self._config.deadline
        try:
            found = await self._judge(context, rubric, deadline)
        except CoachError as error:
            self._refused = str(error)
            raise
        if isinstance(found, Failed):
            if found.refusal.kind in ("unavailable", "deadline") and self._client.failing() >= self._config.deadline:
                self._refused = (
                    f"{self._config.url} has given no reply for {self._config.deadline:g} s (coach deadline); mend it "
                    f"and run the same command again. The last that was heard: {found.refusal.reason}"
                )
            return Verdict(score=None, reason=found.refusal.reason, coach=self.name, missing=found.refusal.kind)
        return self._verdict(context, rubric, found)

    async def rewrite(self, context: ActionContext) -> str | None:
        """Implements `Writer`."""
        rubric = self._rubric(context)
        room = self._config.window - self._config.max_tokens
        prompt = build(context, self._writing, rubric, room=room)
        if isinstance(prompt, TooLong):
            return None
        request = self._request(prompt.messages, f"{prompt.digest}/{self._writing.id}", prompt.tokens)
        deadline = asyncio.get_running_loop().time() + self._config.deadline
        reply = await self._client.complete(replace(request, schema=REWRITTEN, schema_name="rewrite"), deadline)
        return None if isinstance(reply, Refusal) else read_rewritten(reply.text)

    async def close(self) -> None:
        await self._client.close()

    def _rubric(self, context: ActionContext) -> Rubric:
        return next((r for r in self._rubrics if r.part(context.role) is not None), self._rubrics[0])

    async def _judge(self, context: ActionContext, rubric: Rubric, deadline: float) -> Judgement | Failed:
        """Ask; ask with a shorter prompt where the endpoint finds it too long; ask once for the form."""
        room = self._config.window - self._config.max_tokens
        refusal = Refusal("too-long", "")
        memory, faults = remembered(context.standing)
        for _ in range(SHRINKS):
            prompt = build(context, self._template, rubric, room=room, memory=memory, more=faults)
            if isinstance(prompt, TooLong):
                reason = (
                    f"about {prompt.tokens} tokens at the least, of a window of {self._config.window} (coach window)"
                )
                return Failed(Refusal("too-long", reason))
            request = self._request(prompt.messages, f"{prompt.digest}/{context.reading}", prompt.tokens)
            reply = await self._client.complete(request, deadline)
            if not isinstance(reply, Refusal):
                found = read_judgement(reply.text)
                if isinstance(found, Judgement):
                    return found
                return await self._repaired(prompt, request, reply.text, found, deadline)
            refusal = reply
            if reply.kind != "too-long":
                break
            room = int(min(room, prompt.tokens) * SHRINK)
        return Failed(refusal)

    async def _repaired(
        self, prompt: Prompt, asked: ChatRequest, text: str, fault: Unreadable, deadline: float
    ) -> Judgement | Failed:
        """One more request that shows the model what it wrote."""
        shown = text if len(text) <= 4000 else text[:2000] + "\n[...]\n" + text[-2000:]
        again = self._template.repair.strip().replace("$why", fault.why[:QUOTED])
        messages = (*prompt.messages, Message("assistant", shown), Message("user", again))
        tokens = prompt.tokens + (len(shown) + len(again)) // 3
        reply = await self._client.complete(self._request(messages, f"{asked.key}/repair", tokens), deadline)
        if isinstance(reply, Refusal):
            return Failed(reply)
        found = read_judgement(reply.text)
        if isinstance(found, Judgement):
            return found
        return Failed(Refusal("malformed", f"no verdict in the reply, nor in its repair: {found.why}; {fault.why}"))

    def _request(self, messages: tuple[Message, ...], what: str, tokens: int) -> ChatRequest:
        config = self._config
        parts = (what, config.url, config.model, config.temperature, config.max_tokens, config.structured, self.name)
        return ChatRequest(
            key=hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest(),
            messages=messages,
            schema=SCHEMA,
            schema_name="verdict",
            max_tokens=config.max_tokens,
            tokens_in=tokens,
        )

    def _verdict(self, context: ActionContext, rubric: Rubric, found: Judgement) -> Verdict:
        score, facts = found.score, dict[str, Fact]()
        facts |= {f"seen {place}": text[:QUOTED] for place, text in enumerate(found.evidence[:8], start=1)}
        facts |= {"fault": found.fault, "raw": found.score}
        part = rubric.part(context.role)
        if part is not None and context.action.evidence is not None:
            cap = rubric.caps.victim[1] if is_victim(context) else ceiling(context, rubric, part)
            if score > cap:
                score, facts["cap"] = cap, cap
        reason = " ".join(found.reason.split())[:QUOTED]
        return Verdict(evidence=facts, reason=reason, score=round(score, 2), coach=self.name)
