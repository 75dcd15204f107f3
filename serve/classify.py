"""Models that answer with a label: classifiers on features of a model (`method = "features"`)."""

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from typing import Any

import torch
from fastapi import Request
from fastapi.responses import StreamingResponse

from adapt.features import pooled_features
from model.engine import Engine
from serve.errors import ApiError
from serve.generation import check_fits, envelope, run_on_engine, server_sent
from serve.models import Model
from serve.plans import encode_inputs
from serve.schema import CompletionRequest
from serve.server import Server


def check_request(model: Model, request: CompletionRequest) -> list[list[int]]:
    """The ids of every text. Raises ApiError for what a classifier cannot do, and for a text that is too long."""
    for name, value in (("n", request.n > 1), ("best_of", (request.best_of or 1) > 1), ("echo", request.echo)):
        if value:
            raise ApiError(400, f"{name}: {model.id} is a classifier and answers with one label", name)
    texts = [request.prompt] if isinstance(request.prompt, str) else request.prompt
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ApiError(400, f"prompt: {model.id} labels texts, not ids", "prompt")
    prompts = encode_inputs(model, texts)
    check_fits(model, prompts, 0)
    return prompts


async def classify(
    server: Server, model: Model, request: CompletionRequest, is_background: bool = False
) -> dict[str, Any]:
    """The likeliest label of every text as a completion, with the probabilities of all labels. Raises ApiError.

    A label counts as one token. It is not drawn: temperature, top_p, seed, stop and max_tokens change nothing.
    """
    head, prompts = model.classifier, check_request(model, request)
    assert head

    def work(ids: Sequence[int], engine: Engine) -> list[float]:
        inputs = torch.tensor([ids], device=engine.model.device)
        features = pooled_features(engine.model, inputs, inputs.new_tensor([len(ids)]), head.pooling)
        return [float(p) for p in head.probabilities(features)[0]]

    found = await asyncio.gather(*(run_on_engine(server.scheduler, model, ids, work, is_background) for ids in prompts))
    choices = []
    for index, values in enumerate(found):
        by_label = dict(sorted(zip(head.labels, values, strict=True), key=lambda pair: -pair[1]))
        label = next(iter(by_label))
        logprobs = None
        if request.logprobs is not None:
            scores = {name: math.log(max(p, 1e-30)) for name, p in by_label.items()}
            top = dict(list(scores.items())[: max(1, request.logprobs)])
            logprobs = {
                "tokens": [label], "token_logprobs": [scores[label]], "top_logprobs": [top], "text_offset": [0],
            }  # fmt: skip
        choices.append(
            {"index": index, "text": label, "logprobs": logprobs, "finish_reason": "stop", "probabilities": by_label}
        )
    read = sum(map(len, prompts))
    server.tokens.labels("read").inc(read)
    usage = {"prompt_tokens": read, "completion_tokens": len(prompts), "total_tokens": read + len(prompts)}
    return envelope("text_completion", "cmpl", request.model) | {"choices": choices, "usage": usage}


async def stream_labels(found: dict[str, Any], wants_usage: bool) -> AsyncIterator[str]:
    """The same as server-sent events."""
    head = {key: value for key, value in found.items() if key not in ("choices", "usage")}
    for choice in found["choices"]:
        yield server_sent(head | ({"usage": None} if wants_usage else {}) | {"choices": [choice]})
    if wants_usage:
        yield server_sent(head | {"choices": [], "usage": found["usage"]})
    yield server_sent("[DONE]")


async def respond(server: Server, request: Request, model: Model, body: CompletionRequest) -> Any:
    """The response of a classifier, streamed or whole."""
    server.check_queue(1 if isinstance(body.prompt, str) else len(body.prompt))
    found = await server.answer(request, classify(server, model, body))
    if body.stream and isinstance(found, dict):
        wants_usage = bool(body.stream_options and body.stream_options.include_usage)
        return StreamingResponse(stream_labels(found, wants_usage), media_type="text/event-stream")
    return found
