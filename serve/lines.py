"""A batch: requests in OpenAI's JSON lines are answered into one file, and what cannot be into another.

A killed batch continues: whatever stands in a complete line is not asked again, an incomplete last
line is removed.
"""

import asyncio
import json
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import ValidationError

from cli.atomic import to_json, try_lock
from cli.errors import UserError
from serve.answers import complete, embed
from serve.classify import classify
from serve.errors import ApiError, from_validation
from serve.plans import plan_chat, plan_completion
from serve.schema import Body, ChatRequest, CompletionRequest, EmbeddingRequest, Generation
from serve.server import Server

ENDPOINTS: dict[str, type[Body]] = {
    "/v1/completions": CompletionRequest,
    "/v1/chat/completions": ChatRequest,
    "/v1/embeddings": EmbeddingRequest,
}
SYNC_EVERY = 64  # lines that a power cut may cost
MOST_LINE = 8 << 20  # bytes


class Lines:
    """A file of JSON lines that is appended to, by one process at a time."""

    def __init__(self, path: Path):
        """Opens or creates it, and removes an incomplete last line. Raises UserError if another process has it."""
        self.file = path.open("a+b")
        if not try_lock(self.file):
            self.file.close()
            raise UserError(f"{path}: another process writes to it")
        size = self.file.seek(0, os.SEEK_END)
        while size:  # back to the last line end
            start = max(0, size - 4096)
            self.file.seek(start)
            at = self.file.read(size - start).rfind(b"\n")
            size = start + at + 1
            if at >= 0:
                break
        self.file.truncate(size)
        self.count = 0

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()

    def rows(self) -> Iterator[dict]:
        """What it holds. Raises UserError for a line that is not a JSON object."""
        self.file.seek(0)
        for number, line in enumerate(self.file, 1):
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise UserError(f"{self.file.name}, line {number}: not of an earlier batch; choose another file")
            yield row

    def append(self, row: dict) -> None:
        """Add a line with a single write."""
        self.file.write(to_json(row).encode() + b"\n")
        self.file.flush()
        self.count += 1
        if self.count % SYNC_EVERY == 0:
            os.fsync(self.file.fileno())


class Batch:
    """The answers to a file of requests."""

    def __init__(self, server: Server, source: Path, target: Path, errors: Path, model: str = "", endpoint: str = ""):
        """`model` is for requests that name none; `endpoint`: the only one that is allowed."""
        self.server, self.source, self.model, self.endpoint = server, source, model, endpoint
        self.target, self.errors = target, errors
        self.answered = self.failed = self.total = 0
        self.is_cancelled = False

    async def run(self, at_a_time: int, progress: Callable[[], None] = lambda: None) -> None:
        """Answer every line that has no answer yet, `at_a_time` together. Raises UserError as `Lines` does."""
        with Lines(self.target) as answers, Lines(self.errors) as errors:
            done = {row.get("custom_id") for row in answers.rows()}
            bad = {row.get("line") for row in errors.rows()}
            self.answered, self.failed = len(done), len(bad)
            places = asyncio.Semaphore(at_a_time)
            seen: set[str] = set()
            with self.source.open("rb") as source:
                self.total = sum(1 for line in source if line.strip())
                source.seek(0)
                async with asyncio.TaskGroup() as tasks:
                    for number, line in enumerate(source, 1):
                        if self.is_cancelled:
                            break
                        if number in bad or not line.strip():
                            continue
                        try:
                            custom_id, endpoint, body = self._parse(line)
                            if custom_id in seen:
                                raise ApiError(400, f'custom_id "{custom_id}" occurs before', "custom_id")
                        except ApiError as error:
                            self._note_error(errors, number, _custom_id(line), error)
                            progress()
                            continue
                        seen.add(custom_id)
                        if custom_id in done:
                            continue
                        await places.acquire()
                        tasks.create_task(
                            self._answer(custom_id, endpoint, body, number, answers, errors, places, progress)
                        )

    async def _answer(
        self,
        custom_id: str,
        endpoint: str,
        body: Any,
        number: int,
        answers: Lines,
        errors: Lines,
        places: asyncio.Semaphore,
        progress: Callable[[], None],
    ) -> None:
        try:
            found = await self._ask(endpoint, body)
        except ApiError as error:
            self._note_error(errors, number, custom_id, error)
        else:
            response = {"status_code": 200, "request_id": uuid.uuid4().hex, "body": found}
            answers.append({"id": _batch_id(), "custom_id": custom_id, "response": response, "error": None})
            self.answered += 1
        finally:
            places.release()
            progress()

    async def _ask(self, endpoint: str, body: Any) -> dict[str, Any]:
        try:
            request = ENDPOINTS[endpoint].model_validate({"model": self.model, **body} if self.model else body)
        except ValidationError as error:
            raise from_validation(error.errors()) from None
        if isinstance(request, EmbeddingRequest):
            return await embed(self.server, request, is_background=True)
        assert isinstance(request, Generation)
        if request.stream:
            raise ApiError(400, "stream: a batch cannot be streamed", "stream")
        if isinstance(request, ChatRequest):
            plan = plan_chat(self.server, request)
        else:
            assert isinstance(request, CompletionRequest)
            model = self.server.find(request.model)
            if model.classifier:
                return await classify(self.server, model, request, is_background=True)
            plan = plan_completion(self.server, request)
        return await complete(self.server, plan, request, is_background=True)

    def _parse(self, line: bytes) -> tuple[str, str, dict]:
        if len(line) > MOST_LINE:
            raise ApiError(400, f"the line exceeds {MOST_LINE:,} bytes")
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise ApiError(400, "the line is not JSON", None, "invalid_json") from None
        if not isinstance(row, dict) or not isinstance(row.get("custom_id"), str):
            raise ApiError(400, "custom_id is missing, or not a text", "custom_id")
        if row.get("method", "POST") != "POST":
            raise ApiError(400, f'method {row["method"]!r} is not "POST"', "method")
        endpoint = row.get("url")
        if endpoint not in ENDPOINTS or (self.endpoint and endpoint != self.endpoint):
            known = self.endpoint or ", ".join(ENDPOINTS)
            raise ApiError(400, f"url {endpoint!r} is not of this batch: {known}", "url")
        if not isinstance(row.get("body"), dict):
            raise ApiError(400, "body is missing, or not an object", "body")
        return row["custom_id"], endpoint, row["body"]

    def _note_error(self, errors: Lines, number: int, custom_id: str | None, error: ApiError) -> None:
        response = {"status_code": error.status, "request_id": uuid.uuid4().hex, "body": error.body()}
        about = {"code": error.code or "invalid_request", "message": str(error)}
        row = {"id": _batch_id(), "custom_id": custom_id, "response": response, "error": about, "line": number}
        errors.append(row)
        self.failed += 1


def _batch_id() -> str:
    return f"batch_req_{uuid.uuid4().hex}"


def _custom_id(line: bytes) -> str | None:
    try:
        found = json.loads(line)["custom_id"]
    except (ValueError, RecursionError, LookupError, TypeError):
        return None
    return found if isinstance(found, str) else None
