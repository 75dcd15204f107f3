"""The endpoints of OpenAI's API that apply to local models, over the scheduler."""

import asyncio
import base64
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from pathlib import Path
from typing import Any

import torch
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cli.console import say
from cli.errors import UserError
from model.engine import Engine
from serve import generation
from serve.chat import encode_messages
from serve.errors import ApiError, from_validation
from serve.generation import Choice, Plan, chat_logprobs, check_fits, collect, completion_logprobs, envelope
from serve.limits import Limits
from serve.models import Model
from serve.scheduler import Event, Job, Scheduler
from serve.schema import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    Generation,
    TokenizeRequest,
)

MOST_BYTES, UPLOAD_BYTES = 8 << 20, 512 << 20
PAGE = Path(__file__).with_name("playground.html")
PAGE_POLICY = (
    "default-src 'none'; connect-src 'self'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
)


class Server:
    """What the endpoints share."""

    def __init__(self, models: dict[str, Model], scheduler: Scheduler, queue_limit: int = 512, seconds: float = 600):
        """`queue_limit`: most texts that wait; `seconds`: most time of a request."""
        self.models, self.scheduler = models, scheduler
        self.queue_limit, self.seconds = queue_limit, seconds
        self.items: list[dict[str, str]] = []  # held-out ones of a study, for the playground
        self.is_stopping = False
        self.open_requests = 0
        registry = self.registry = CollectorRegistry()
        self.requests = Counter("homegrown_requests", "Answered requests", ["path", "status"], registry=registry)
        self.tokens = Counter("homegrown_tokens", "Tokens read and written", ["kind"], registry=registry)
        self.first = Histogram("homegrown_first_token_seconds", "Time to the first token", registry=registry)
        for name, what in (("running", scheduler.running), ("waiting", scheduler.waiting)):
            gauge = Gauge(f"homegrown_{name}_texts", f"Texts that are {name}", registry=registry)
            gauge.set_function(what)

    def find(self, name: str | None) -> Model:
        """The model of an id, or the first. Raises ApiError for an unknown id."""
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            known = ", ".join(self.models)
            raise ApiError(404, f'no model "{name}"; the models are: {known}', "model", "model_not_found")
        return self.models[name]

    def check_queue(self, texts: int) -> None:
        """Raise ApiError if so many more texts may not wait."""
        if self.scheduler.waiting() + texts > self.queue_limit:
            raise ApiError(429, f"{self.queue_limit} texts are waiting; try again later", None, "queue_full")

    async def answer(self, request: Request, work: Awaitable[Any]) -> Any:
        """The result of `work`, unless the client leaves or the time is over. Raises ApiError."""
        task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait({task, gone}, timeout=self.seconds, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if gone.done():
                return Response(status_code=499)
            raise ApiError(503, f"the request took more than {self.seconds:g} s", None, "timeout")
        finally:
            task.cancel()
            gone.cancel()


class Counted:
    """ASGI middleware that counts open and answered requests."""

    def __init__(self, app: ASGIApp, server: Server):
        self.app, self.server = app, server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 499  # the client left

        async def noted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        self.server.open_requests += 1
        try:
            await self.app(scope, receive, noted)
        finally:
            self.server.open_requests -= 1
            path = getattr(scope.get("route"), "path", "other")
            self.server.requests.labels(path, status).inc()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


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
    sent, sources, stops = frame_texts(model, request.prompt, max_tokens, generation.stops_of(request))
    prompts = encode_inputs(model, sent or request.prompt)
    check_fits(model, prompts, max_tokens)
    echoes = request.echo and request.logprobs is not None
    return Plan(model, prompts, best_of, request.n, max_tokens, likeliest, echoes, stops, sent, sources)


def frame_texts(
    model: Model, given: Any, max_tokens: int, stops: list[str]
) -> tuple[list[str], list[list[dict[str, Any]]], list[str]]:
    """The prompts that the model's frame builds, their sources, and the stop strings. Raises ApiError."""
    if model.frame is None:
        return [], [], stops
    texts = [given] if isinstance(given, str) else given
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ApiError(400, f"prompt: {model.id} builds its prompt from text, not from ids", "prompt")
    try:
        built = [model.frame.build(text, model.context - max_tokens) for text in texts]
    except UserError as error:
        raise ApiError(400, str(error), "prompt", "context_length_exceeded") from None
    return [prompt for prompt, _ in built], [sources for _, sources in built], stops or [model.frame.stop]


def plan_chat(server: Server, request: ChatRequest) -> Plan:
    """Check and encode a conversation. Raises ApiError."""
    model = server.find(request.model)
    if model.frame:
        raise ApiError(400, f"{model.id} builds its prompt itself; use /v1/completions", "model")
    ids = encode_messages(model, request)
    if request.top_logprobs is not None and not request.logprobs:
        raise ApiError(422, "top_logprobs needs logprobs = true", "top_logprobs")
    max_tokens = request.max_completion_tokens or request.max_tokens or max(1, model.context - len(ids))
    check_fits(model, [ids], max_tokens)
    likeliest = (request.top_logprobs or 0) if request.logprobs else -1
    stops = generation.stops_of(request)
    return Plan(model, [ids], request.n, request.n, max_tokens, likeliest, False, stops, [], [])


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
    choices, started = start_choices(plan, request), time.monotonic()
    async with generation.submitted(server.scheduler, plan, request, is_background) as events:
        is_first = True
        async for _ in collect(events, choices):
            if is_first:
                server.first.observe(time.monotonic() - started)
                is_first = False
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
    """Of a model with a frame: the prompts that were sent, and the sources of each."""
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
            async for index, new in collect(events, choices):
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
    loop = asyncio.get_running_loop()

    def start(ids: Sequence[int]) -> asyncio.Future:
        done: asyncio.Future = loop.create_future()

        def work(engine: Engine) -> list[float]:
            tokens = torch.tensor([ids], device=engine.model.device)
            return [float(x) for x in engine.model.features(tokens)[0].float().mean(0)]

        def deliver(event: Event) -> None:
            loop.call_soon_threadsafe(finish, event)

        def finish(event: Event) -> None:
            if not done.cancelled():
                done.set_result(event)

        server.scheduler.submit(model.lane, Job(list(ids), deliver, compute=work, is_background=is_background))
        return done

    data = []
    for index, event in enumerate(await asyncio.gather(*map(start, prompts))):
        if event.finish == "error":
            raise ApiError(500, "the model failed on this request")
        vector: Any = event.result
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


def make_app(server: Server, keys: Sequence[str] = ()) -> FastAPI:
    """The application; `keys`: bearer keys, of which a request needs one, if there are any."""
    app = FastAPI(title="homegrown", openapi_url="/openapi.json", docs_url=None, redoc_url=None)

    app.add_middleware(
        Limits, keys=list(keys), most_bytes=MOST_BYTES, upload_bytes=UPLOAD_BYTES, stops=lambda: server.is_stopping
    )
    app.add_middleware(Counted, server=server)

    @app.exception_handler(ApiError)
    async def api_error(_: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def validation_error(_: Request, error: RequestValidationError) -> Response:
        return from_validation(error.errors()).response()

    @app.exception_handler(Exception)
    async def unexpected_error(_: Request, error: Exception) -> Response:
        say(f"a request failed: {type(error).__name__}: {error}")
        return ApiError(500, "an error of the server; its log says more").response()

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        return ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}").response()

    def describe(model: Model) -> dict[str, Any]:
        return {"id": model.id, "object": "model", "created": model.created, "owned_by": "homegrown"}

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [describe(model) for model in server.models.values()]}

    @app.get("/v1/models/{name}")
    async def show_model(name: str) -> dict[str, Any]:
        return describe(server.find(name))

    @app.post("/v1/completions")
    async def completions(request: Request, body: CompletionRequest) -> Any:
        return await generate(server, request, plan_completion(server, body), body)

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request, body: ChatRequest) -> Any:
        return await generate(server, request, plan_chat(server, body), body)

    @app.post("/v1/embeddings")
    async def embeddings(request: Request, body: EmbeddingRequest) -> Any:
        server.check_queue(1 if isinstance(body.input, str) else len(body.input))
        return await server.answer(request, embed(server, body))

    @app.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> dict[str, Any]:
        model = server.find(body.model)
        special = model.tokenizer.backend.token_to_id(body.prompt)
        if special in model.tokenizer.special_ids:
            tokens = [special]
        else:
            head = [model.tokenizer.separator_id] if body.add_special_tokens else []
            tokens = head + model.tokenizer.encode(body.prompt)
        return {"tokens": tokens, "count": len(tokens), "max_model_len": model.context}

    @app.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> dict[str, Any]:
        model = server.find(body.model)
        if body.tokens and max(body.tokens) >= model.tokenizer.vocab_size:
            raise ApiError(422, f"tokens: {max(body.tokens)} is not a token id of {model.id}", "tokens")
        return {"prompt": model.tokenizer.decode(body.tokens)}

    @app.get("/tokenizer_info")
    async def tokenizer_info(model: str | None = None) -> dict[str, Any]:
        tokenizer = server.find(model).tokenizer
        separator = tokenizer.backend.id_to_token(tokenizer.separator_id)
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": separator,
            "eos_token": separator,
            "pad_token": separator,
            "vocab_size": tokenizer.vocab_size,
            "chat_template": tokenizer.chat.template if tokenizer.chat else None,
        }

    @app.get("/", include_in_schema=False)
    async def playground() -> FileResponse:
        return FileResponse(PAGE, media_type="text/html", headers={"Content-Security-Policy": PAGE_POLICY})

    @app.get("/items", include_in_schema=False)
    async def items() -> list[dict[str, str]]:
        return server.items

    @app.get("/health")
    async def health() -> JSONResponse:
        is_alive = server.scheduler.thread.is_alive() and not server.is_stopping
        return JSONResponse({"status": "ok" if is_alive else "stopping"}, 200 if is_alive else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(server.registry), media_type=CONTENT_TYPE_LATEST)

    return app
