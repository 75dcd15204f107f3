"""From plans to the objects and events of OpenAI's API."""

import asyncio
import base64
import struct
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import torch
from fastapi import Request
from fastapi.responses import StreamingResponse

from model.engine import Engine
from serve import generation
from serve.errors import ApiError
from serve.generation import Choice, Plan, chat_logprobs, check_fits, collect, completion_logprobs, envelope
from serve.plans import encode_inputs
from serve.schema import ChatRequest, CompletionRequest, EmbeddingRequest, Generation
from serve.server import Server


def start_choices(plan: Plan, request: Generation) -> list[Choice]:
    """The texts of a plan, in the order of their jobs; an echo stands before its answer."""
    texts = [""] * len(plan.prompts)
    if isinstance(request, CompletionRequest) and request.echo:
        texts = [plan.model.tokenizer.decode(ids) for ids in plan.prompts]
    pairs = zip(plan.prompts, texts, strict=True)
    return [Choice(plan, prompt, text) for prompt, text in pairs for _ in range(plan.choices)]


def format_choice(request: Generation, choice: Choice, index: int) -> dict[str, Any]:
    """A finished choice as an object."""
    tokenizer = choice.plan.model.tokenizer
    logprobs = None
    if isinstance(request, CompletionRequest):
        if request.logprobs is not None:
            start = 0 if choice.plan.echoes or not request.echo else len(tokenizer.decode(choice.prompt))
            logprobs = completion_logprobs(tokenizer, choice, choice.scores, start)
        return {"index": index, "text": choice.text, "logprobs": logprobs, "finish_reason": choice.finish}
    if choice.plan.likeliest >= 0:
        logprobs = chat_logprobs(tokenizer, choice.scores[: choice.tokens])
    message = {"role": "assistant", "content": choice.text, "refusal": None}
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": choice.finish}


async def complete(server: Server, plan: Plan, request: Generation, is_background: bool = False) -> dict[str, Any]:
    """The whole answer of a completion or a conversation."""
    choices = start_choices(plan, request)
    async with generation.submitted(server.scheduler, plan, request, is_background) as events:
        async for _ in collect(events, choices):
            pass
    kept: list[Choice] = []
    for at in range(0, len(choices), plan.choices):
        group = choices[at : at + plan.choices]
        if plan.kept < plan.choices:
            group = sorted(group, key=Choice.mean_logprob, reverse=True)[: plan.kept]
        kept += group
    counts = generation.usage(choices, plan)
    server.tokens.labels("read").inc(counts["prompt_tokens"])
    server.tokens.labels("written").inc(counts["completion_tokens"])
    is_chat = isinstance(request, ChatRequest)
    kind = ("chat.completion", "chatcmpl") if is_chat else ("text_completion", "cmpl")
    formatted = [format_choice(request, choice, index) for index, choice in enumerate(kept)]
    return envelope(*kind, request.model) | {"choices": formatted, "usage": counts} | extensions(plan)


def extensions(plan: Plan) -> dict[str, Any]:
    """Of a model with a prompt template: the prompts that were sent, and the sources of each."""
    return {"prompts_sent": plan.sent, "sources": plan.sources} if plan.sent else {}


async def stream(server: Server, plan: Plan, request: Generation) -> AsyncIterator[str]:
    """The answer as server-sent events, a piece of text each."""
    choices, started = start_choices(plan, request), time.monotonic()
    is_chat = isinstance(request, ChatRequest)
    kind = ("chat.completion.chunk", "chatcmpl") if is_chat else ("text_completion", "cmpl")
    head = envelope(*kind, request.model)
    wants_usage = bool(request.stream_options and request.stream_options.include_usage)
    head |= {"usage": None} if wants_usage else {}
    begun: set[int] = set()
    sent = [0] * len(choices)
    try:
        async with generation.submitted(server.scheduler, plan, request) as events:
            async for index, new in collect(events, choices, server.seconds):
                if not begun:
                    server.first.observe(time.monotonic() - started)
                choice = choices[index]
                text = choice.text if index not in begun else new
                finish = choice.finish or None
                piece: dict[str, Any] = {"index": index, "logprobs": None, "finish_reason": finish}
                scores = choice.scores[sent[index] :]
                sent[index] = len(choice.scores)
                if is_chat:
                    piece["delta"] = ({"role": "assistant"} if index not in begun else {}) | {"content": text}
                    if plan.likeliest >= 0:
                        drawn = choice.scores[sent[index] - len(scores) : choice.tokens]
                        piece["logprobs"] = chat_logprobs(plan.model.tokenizer, drawn)
                else:
                    piece["text"] = text
                    if plan.likeliest >= 0:
                        start = 0 if index not in begun else len(choice.text) - len(new)
                        piece["logprobs"] = completion_logprobs(plan.model.tokenizer, choice, scores, start)
                begun.add(index)
                if text or scores or finish:
                    yield generation.server_sent(head | {"choices": [piece]})
        counts = generation.usage(choices, plan)
        server.tokens.labels("read").inc(counts["prompt_tokens"])
        server.tokens.labels("written").inc(counts["completion_tokens"])
        if wants_usage or plan.sent:
            last = {"choices": [], "usage": counts if wants_usage else None} | extensions(plan)
            yield generation.server_sent(head | last)
    except ApiError as error:
        yield generation.server_sent(error.body())
    yield generation.server_sent("[DONE]")


async def embed(server: Server, request: EmbeddingRequest, is_background: bool = False) -> dict[str, Any]:
    """The mean of the last hidden states of every input."""
    model = server.find(request.model)
    prompts = encode_inputs(model, request.input)
    check_fits(model, prompts, 0)

    def work(ids: Sequence[int], engine: Engine) -> list[float]:
        tokens = torch.tensor([ids], device=engine.model.device)
        return [float(x) for x in engine.model.features(tokens)[0].float().mean(0)]

    jobs = [generation.run_on_engine(server.scheduler, model, ids, work, is_background) for ids in prompts]
    data = []
    for index, found in enumerate(await asyncio.gather(*jobs)):
        vector: Any = found
        if request.encoding_format == "base64":
            vector = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
        data.append({"object": "embedding", "index": index, "embedding": vector})
    count = sum(map(len, prompts))
    counts = {"prompt_tokens": count, "total_tokens": count}
    return {"object": "list", "data": data, "model": request.model, "usage": counts}


async def generate(server: Server, request: Request, plan: Plan, body: Generation) -> Any:
    """The response of a completion or a conversation, streamed or whole."""
    server.check_queue(len(plan.prompts) * plan.choices)
    if body.stream:
        return StreamingResponse(stream(server, plan, body), media_type="text/event-stream")
    return await server.answer(request, complete(server, plan, body))
