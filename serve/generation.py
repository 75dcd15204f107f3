"""From a request to jobs, and from their events to the objects of OpenAI's API."""

import asyncio
import json
import random
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, NamedTuple

from model.engine import Engine, Score
from model.sampling import Sampling
from serve.errors import ApiError
from serve.models import Model
from serve.scheduler import Event, Job, Scheduler
from serve.schema import Generation
from serve.tokens import token_bytes, token_text
from tokenizer.bpe import Tokenizer


class Plan(NamedTuple):
    """A request, checked and encoded."""

    model: Model
    prompts: list[list[int]]
    choices: int
    """Per prompt, before the best are taken."""
    kept: int
    max_tokens: int
    likeliest: int
    echoes: bool
    stops: list[str]
    sent: list[str]
    """The prompts that a template has filled; empty without one."""
    sources: list[list[dict[str, Any]]]
    """What each prompt quotes."""


def sampling_of(request: Generation) -> Sampling:
    """The sampling settings of a request."""
    temperature = 1.0 if request.temperature is None else request.temperature
    return Sampling(temperature, request.top_k, 1.0 if request.top_p is None else request.top_p, request.min_p)


def stops_of(request: Generation) -> list[str]:
    """The stop strings of a request. Raises ApiError for an empty one."""
    stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
    if "" in stops:
        raise ApiError(422, "stop: an empty stop string would end every text at once", "stop")
    return stops


def check_fits(model: Model, prompts: Sequence[Sequence[int]], max_tokens: int) -> None:
    """Raise ApiError for a prompt that does not fit the context with its answer, or has unknown ids."""
    for ids in prompts:
        if not ids:
            raise ApiError(422, "prompt: has no tokens", "prompt")
        if max(ids) >= model.tokenizer.vocab_size:
            raise ApiError(422, f"prompt: {max(ids)} is not a token id of {model.id}", "prompt")
        if len(ids) + max_tokens > model.context:
            raise ApiError(
                400,
                f"the prompt has {len(ids)} tokens and max_tokens is {max_tokens}; together they exceed the context "
                f"of {model.context}",
                "max_tokens",
                "context_length_exceeded",
            )


@asynccontextmanager
async def submitted(
    scheduler: Scheduler, plan: Plan, request: Generation, is_background: bool = False
) -> AsyncIterator[asyncio.Queue]:
    """The jobs of a plan run inside this context: a queue of (index, event); they are cancelled at its end."""
    loop, events = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Event]]()
    seed = random.getrandbits(48) if request.seed is None else request.seed
    jobs = []
    for number, prompt in enumerate(plan.prompts):
        for choice in range(plan.choices):
            index = number * plan.choices + choice

            def deliver(event: Event, index: int = index) -> None:
                loop.call_soon_threadsafe(events.put_nowait, (index, event))

            jobs.append(
                Job(
                    prompt, deliver, sampling_of(request), f"{seed}:{choice}", max(1, plan.max_tokens),
                    plan.stops, plan.model.adapter, plan.likeliest, plan.echoes, is_background,
                    request.stream,
                )
            )  # fmt: skip
    for job in jobs:
        scheduler.submit(plan.model.batcher, job)
    try:
        yield events
    finally:
        for job in jobs:
            scheduler.cancel(job)


async def run_on_engine(
    scheduler: Scheduler,
    model: Model,
    ids: Sequence[int],
    work: Callable[[Sequence[int], Engine], list[float]],
    is_background: bool = False,
) -> list[float]:
    """What `work` computes for a text between two steps. Raises ApiError if it fails."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Event] = loop.create_future()

    def finish(event: Event) -> None:
        if not done.cancelled():
            done.set_result(event)

    def deliver(event: Event) -> None:
        loop.call_soon_threadsafe(finish, event)

    compute = partial(work, ids)
    scheduler.submit(model.batcher, Job(list(ids), deliver, compute=compute, is_background=is_background))
    event = await done
    if event.finish == "error":
        raise ApiError(500, "the model failed on this request")
    result: Any = event.result
    return list(result)


class Choice:
    """A text as it grows."""

    def __init__(self, plan: Plan, prompt: Sequence[int], echoed: str):
        self.plan, self.prompt, self.text = plan, prompt, echoed
        self.scores: list[Score] = []
        self.tokens = 0
        self.finish = ""

    def add(self, event: Event) -> str:
        """Take an event; returns the new text. Raises ApiError if the job failed."""
        if event.finish == "error":
            raise ApiError(500, "the model failed on this request")
        if event.scores:
            self.scores += event.scores
        self.finish = event.finish
        if self.plan.max_tokens == 0:  # one token was drawn to read the prompt
            self.scores = self.scores[: len(self.prompt) - 1]
            self.finish = event.finish and "length"
            return ""
        self.text += event.text
        self.tokens += event.tokens
        return event.text

    def mean_logprob(self) -> float:
        """Of the drawn tokens, to choose the best of several."""
        drawn = [score.logprob for score in self.scores[len(self.prompt) - 1 if self.plan.echoes else 0 :]]
        return sum(drawn) / max(1, len(drawn))


async def collect(
    events: asyncio.Queue, choices: Sequence[Choice], seconds: float | None = None
) -> AsyncIterator[tuple[int, str]]:
    """Yield (index, new text) until all choices have ended. Raises ApiError after so many seconds."""
    left, started = len(choices), time.monotonic()
    while left:
        rest = None if seconds is None else started + seconds - time.monotonic()
        try:
            index, event = await asyncio.wait_for(events.get(), rest)
        except TimeoutError:
            raise ApiError(503, f"the request took more than {seconds:g} s", None, "timeout") from None
        text = choices[index].add(event)
        left -= bool(event.finish)
        yield index, text


def completion_logprobs(tokenizer: Tokenizer, choice: Choice, scores: Sequence[Score], start: int) -> dict[str, Any]:
    """The log-probabilities of a completion; `start` is the offset of its first token in the text."""
    names: list[str] = []
    values: list[float | None] = []
    tops: list[dict[str, float] | None] = []
    if choice.plan.echoes and start == 0:
        names, values, tops = [token_text(tokenizer, choice.prompt[0])], [None], [None]
    for score in scores:
        names.append(token_text(tokenizer, score.id))
        values.append(score.logprob)
        top = {token_text(tokenizer, id): value for id, value in score.likeliest}
        tops.append(top | {names[-1]: score.logprob})
    offsets, at = [], start
    for name in names:
        offsets.append(at)
        at += len(name)
    return {"tokens": names, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}


def chat_logprobs(tokenizer: Tokenizer, scores: Sequence[Score]) -> dict[str, Any]:
    """The log-probabilities of a chat answer."""

    def entry(id: int, value: float) -> dict[str, Any]:
        return {"token": token_text(tokenizer, id), "logprob": value, "bytes": list(token_bytes(tokenizer, id))}

    content = [
        entry(score.id, score.logprob) | {"top_logprobs": [entry(*each) for each in score.likeliest]}
        for score in scores
    ]
    return {"content": content, "refusal": None}


def usage(choices: Sequence[Choice], plan: Plan) -> dict[str, int]:
    """Token counts of a request."""
    read, drawn = sum(map(len, plan.prompts)), sum(choice.tokens for choice in choices)
    return {"prompt_tokens": read, "completion_tokens": drawn, "total_tokens": read + drawn}


def envelope(kind: str, prefix: str, model: str) -> dict[str, Any]:
    """The fields of every answer."""
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def server_sent(value: object) -> str:
    """A server-sent event."""
    return f"data: {value if isinstance(value, str) else json.dumps(value)}\n\n"
