"""What the endpoints share: models, scheduler, limits and metrics."""

import asyncio
from collections.abc import Awaitable
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.errors import ApiError
from serve.models import Model
from serve.scheduler import Scheduler


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
        self.first = Histogram("homegrown_first_token_seconds", "Time to the first token of streams", registry=registry)
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
