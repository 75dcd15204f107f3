"""Errors in OpenAI's form."""

from collections.abc import Sequence
from typing import Any

from fastapi.responses import JSONResponse

KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
}


class ApiError(Exception):
    """An error that is sent to the client: an HTTP status, what is wrong and, where known, in which field."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def body(self) -> dict[str, Any]:
        """The JSON object."""
        kind = KINDS.get(self.status, "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The whole answer."""
        headers = {"Retry-After": "1"} if self.status in (429, 503) else None
        return JSONResponse(self.body(), self.status, headers)


def from_validation(errors: Sequence[Any]) -> ApiError:
    """The first error of a request that does not fit its schema, with the fields."""
    parts = [error for error in errors if error["type"] != "extra_forbidden"]
    extra = [error for error in errors if error["type"] == "extra_forbidden"]
    if extra:
        name = _place(extra[0])
        return ApiError(400, f'"{name}" is not supported', name, "unsupported_parameter")
    first = parts[0]
    if first["type"] == "json_invalid":
        return ApiError(400, "the body is not JSON", None, "invalid_json")
    name = _place(first)
    return ApiError(422, f"{name or 'the body'}: {first['msg'][:300]}", name or None, first["type"])


def _place(error: Any) -> str:
    # The field, without the branches of a union.
    names = [str(part) for part in error["loc"] if part != "body"]
    return names[0] if names else ""
