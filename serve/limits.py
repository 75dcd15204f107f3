"""Before any endpoint: the size of the body, the key, and whether the server is stopping."""

import hmac
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.errors import ApiError

OPEN = ("/health", "/metrics")  # need no key, and answer until the end


class Limits:
    """ASGI middleware that refuses requests with 401, 413 and 503."""

    def __init__(self, app: ASGIApp, keys: list[str], most_bytes: int, upload_bytes: int, stops: Callable[[], bool]):
        """`upload_bytes` is the limit of /v1/files; `stops`: whether new requests are refused."""
        self.app, self.keys, self.stops = app, [key.encode() for key in keys], stops
        self.most_bytes, self.upload_bytes = most_bytes, upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with an error."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        error = self._refusal(scope["path"], headers)
        most = self.upload_bytes if scope["path"] == "/v1/files" else self.most_bytes
        length = headers.get(b"content-length", b"0")
        too_large = ApiError(413, f"the body exceeds the limit of {most:,} bytes", None, "request_too_large")
        if error is None and (not length.isdigit() or int(length) > most):
            error = too_large
        if error:
            await error.response()(scope, receive, send)
            return
        seen, is_answered = 0, False

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            return {"type": "http.disconnect"} if seen > most else message

        async def noted(message: Any) -> None:
            nonlocal is_answered
            if seen <= most:  # else the application answers that the client has left
                is_answered = True
                await send(message)

        with suppress(ClientDisconnect):  # what `counted` says of a body that is too large
            await self.app(scope, counted, noted)
        if seen > most and not is_answered:
            await too_large.response()(scope, receive, send)

    def _refusal(self, path: str, headers: dict[bytes, bytes]) -> ApiError | None:
        if path in OPEN or not path.startswith(("/v1", "/tokeniz", "/detokenize", "/items")):
            return None
        if self.stops():
            return ApiError(503, "the server is stopping; try again later", None, "stopping")
        given = headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        matches = [hmac.compare_digest(given, key) for key in self.keys]  # each in constant time
        if self.keys and not any(matches):
            return ApiError(401, "a valid key is needed: Authorization: Bearer KEY", None, "invalid_api_key")
        return None
