"""From requests to plans: checked, encoded, within the context."""

from typing import Any

from cli.errors import UserError
from serve.chat import encode_messages
from serve.errors import ApiError
from serve.generation import Plan, check_fits, stops_of
from serve.models import Model
from serve.schema import ChatRequest, CompletionRequest
from serve.server import Server


def encode_inputs(model: Model, given: Any) -> list[list[int]]:
    """Ids of every prompt; a text starts after the document separator. Raises ApiError for no prompt."""
    prompts = [given] if isinstance(given, str) or (given and isinstance(given[0], int)) else given
    if not prompts:
        raise ApiError(422, "prompt: is empty", "prompt")
    tokenizer = model.tokenizer
    return [[tokenizer.separator_id, *tokenizer.encode(p)] if isinstance(p, str) else p for p in prompts]


def plan_completion(server: Server, request: CompletionRequest) -> Plan:
    """Check and encode a completion. Raises ApiError."""
    model = server.find(request.model)
    best_of = request.best_of or request.n
    if best_of < request.n:
        raise ApiError(422, f"best_of = {best_of} is below n = {request.n}", "best_of")
    if request.stream and best_of > request.n:
        raise ApiError(400, "best_of cannot be streamed", "best_of")
    max_tokens = 16 if request.max_tokens is None else request.max_tokens
    if max_tokens == 0 and not request.echo:
        raise ApiError(422, "max_tokens = 0 needs echo", "max_tokens")
    needs_scores = 0 if best_of > request.n else -1
    likeliest = needs_scores if request.logprobs is None else request.logprobs
    sent, sources, stops = fill_template(model, request.prompt, max_tokens, stops_of(request))
    prompts = encode_inputs(model, sent or request.prompt)
    check_fits(model, prompts, max_tokens)
    echoes = request.echo and request.logprobs is not None
    return Plan(model, prompts, best_of, request.n, max_tokens, likeliest, echoes, stops, sent, sources)


def fill_template(
    model: Model, given: Any, max_tokens: int, stops: list[str]
) -> tuple[list[str], list[list[dict[str, Any]]], list[str]]:
    """The texts in the model's prompt template, their sources, and the stop strings. Raises ApiError."""
    if model.template is None:
        return [], [], stops
    texts = [given] if isinstance(given, str) else given
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ApiError(400, f"prompt: {model.id} builds its prompt from text, not from ids", "prompt")
    try:
        built = [model.template.build(text, model.context - max_tokens) for text in texts]
    except UserError as error:
        raise ApiError(400, str(error), "prompt", "context_length_exceeded") from None
    return [prompt for prompt, _ in built], [sources for _, sources in built], stops or [model.template.stop]


def plan_chat(server: Server, request: ChatRequest) -> Plan:
    """Check and encode a conversation. Raises ApiError."""
    model = server.find(request.model)
    if model.template or model.classifier:
        what = "builds its prompt itself" if model.template else "is a classifier"
        raise ApiError(400, f"{model.id} {what}; use /v1/completions", "model")
    ids = encode_messages(model, request)
    if request.top_logprobs is not None and not request.logprobs:
        raise ApiError(422, "top_logprobs needs logprobs = true", "top_logprobs")
    max_tokens = request.max_completion_tokens or request.max_tokens or max(1, model.context - len(ids))
    check_fits(model, [ids], max_tokens)
    likeliest = (request.top_logprobs or 0) if request.logprobs else -1
    stops = stops_of(request)
    return Plan(model, [ids], request.n, request.n, max_tokens, likeliest, False, stops, [], [])
