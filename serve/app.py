"""The endpoints of OpenAI's API that apply to local models, over the scheduler."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from cli.console import say
from serve.answers import embed, generate
from serve.classify import respond
from serve.errors import ApiError, from_validation
from serve.limits import Limits
from serve.models import Model
from serve.plans import plan_chat, plan_completion
from serve.schema import ChatRequest, CompletionRequest, DetokenizeRequest, EmbeddingRequest, TokenizeRequest
from serve.server import Counted, Server

MOST_BYTES, UPLOAD_BYTES = 8 << 20, 512 << 20
PAGE = Path(__file__).with_name("playground.html")
PAGE_POLICY = (
    "default-src 'none'; connect-src 'self'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
)


def make_app(server: Server, keys: Sequence[str] = ()) -> FastAPI:
    """The application; `keys`: bearer keys, of which a request needs one, if there are any."""
    app = FastAPI(title="homegrown", openapi_url="/openapi.json", docs_url=None, redoc_url=None)

    app.add_middleware(
        Limits, keys=list(keys), most_bytes=MOST_BYTES, upload_bytes=UPLOAD_BYTES, stops=lambda: server.is_stopping
    )
    app.add_middleware(Counted, server=server)

    add_error_handlers(app)
    add_model_routes(app, server)
    add_tokenizer_routes(app, server)
    add_pages(app, server)
    return app


def add_error_handlers(app: FastAPI) -> None:
    """Every error in OpenAI's form."""

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


def add_model_routes(app: FastAPI, server: Server) -> None:
    """Models, completions, conversations, embeddings."""

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
        model = server.find(body.model)
        if model.classifier:
            return await respond(server, request, model, body)
        return await generate(server, request, plan_completion(server, body), body)

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request, body: ChatRequest) -> Any:
        return await generate(server, request, plan_chat(server, body), body)

    @app.post("/v1/embeddings")
    async def embeddings(request: Request, body: EmbeddingRequest) -> Any:
        server.check_queue(1 if isinstance(body.input, str) else len(body.input))
        return await server.answer(request, embed(server, body))


def add_tokenizer_routes(app: FastAPI, server: Server) -> None:
    """Tokenizers, as lm-eval and vLLM have them."""

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


def add_pages(app: FastAPI, server: Server) -> None:
    """The playground, health and metrics."""

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
