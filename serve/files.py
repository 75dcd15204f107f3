"""/v1/files and /v1/batches: batches beside real-time requests, which go first.

Files and the state of batches are on disk, so that a batch continues after a restart.
"""

import asyncio
import shutil
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Form, UploadFile
from fastapi.responses import FileResponse
from pydantic import Field

from cli.atomic import read_json, to_json, write_atomically
from cli.console import say
from serve.errors import ApiError
from serve.lines import ENDPOINTS, Batch
from serve.schema import Body
from serve.server import Server

AT_A_TIME = 16  # requests of a batch that wait in the queue
DAY = 24 * 3600
_ENDED = ("completed", "failed", "cancelled", "expired")


class BatchRequest(Body):
    """/v1/batches."""

    input_file_id: str
    endpoint: str
    completion_window: str = "24h"
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None


class Files:
    """Uploaded and written files with what is known of them, in one folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        """The content of a file, or of the state of a batch. Raises ApiError for an impossible name."""
        if not (name.replace("-", "").replace("_", "").isalnum() and len(name) < 80):
            raise ApiError(404, f"no file {name!r}", None, "not_found")
        return self.folder / name

    def about(self, name: str) -> dict[str, Any]:
        """The object of a file or batch. Raises ApiError if there is none."""
        found = read_json(self.path(name).with_suffix(".json"))
        if not isinstance(found, dict):
            raise ApiError(404, f"no {name!r}", None, "not_found")
        return found

    def save(self, about: dict[str, Any]) -> dict[str, Any]:
        """Write and return an object."""
        write_atomically(self.path(about["id"]).with_suffix(".json"), to_json(about))
        return about

    def register(self, name: str, filename: str, purpose: str) -> dict[str, Any]:
        """The object of a file that is on disk."""
        return self.save(
            {
                "id": name,
                "object": "file",
                "bytes": self.path(name).stat().st_size,
                "created_at": int(time.time()),
                "filename": filename,
                "purpose": purpose,
                "status": "processed",
            }
        )

    def all(self, prefix: str) -> Iterator[dict[str, Any]]:
        """All objects whose id begins like this, newest first."""
        paths = sorted(self.folder.glob(f"{prefix}*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
        yield from (found for path in paths if isinstance(found := read_json(path), dict))


class Batches:
    """The batches that run, one after another."""

    def __init__(self, server: Server, files: Files):
        self.server, self.files = server, files
        self.queue: asyncio.Queue[str] = asyncio.Queue()
        self.current: tuple[str, Batch] | None = None

    async def run(self) -> None:
        """Run the batches until cancelled; those that an earlier process left come first."""
        for about in reversed(list(self.files.all("batch_"))):
            if about["status"] not in _ENDED:
                self.queue.put_nowait(about["id"])
        while True:
            await self._run_one(await self.queue.get())

    async def _run_one(self, name: str) -> None:
        about = self.files.about(name)
        if about["status"] == "cancelling":
            self.files.save(about | {"status": "cancelled", "cancelled_at": int(time.time())})
            return
        source = self.files.path(about["input_file_id"])
        output, errors = f"file-{name}-output", f"file-{name}-errors"
        batch = Batch(self.server, source, self.files.path(output), self.files.path(errors), endpoint=about["endpoint"])
        self.current = name, batch
        about = self.files.save(about | {"status": "in_progress", "in_progress_at": int(time.time())})
        try:
            await batch.run(AT_A_TIME)
        except Exception as error:  # one batch fails, the others continue
            say(f"{name} failed: {error}")
            problem = {"code": "failed", "message": str(error), "line": None, "param": None}
            about |= {"errors": {"object": "list", "data": [problem]}}
            self.files.save(about | {"status": "failed", "failed_at": int(time.time())})
            return
        finally:
            self.current = None
        status = "cancelled" if batch.is_cancelled else "completed"
        about |= {"status": status, f"{status}_at": int(time.time()), "request_counts": _counts(batch)}
        for key, file in (("output_file_id", output), ("error_file_id", errors)):
            if self.files.path(file).stat().st_size:
                self.files.register(file, f"{file}.jsonl", "batch_output")
                about[key] = file
        self.files.save(about)

    def show(self, about: dict[str, Any]) -> dict[str, Any]:
        """The object of a batch, with its present counts."""
        if self.current and self.current[0] == about["id"]:
            about = about | {"request_counts": _counts(self.current[1])}
        return about

    def cancel(self, name: str) -> dict[str, Any]:
        """End a batch; what it has answered is kept. Raises ApiError if it has ended."""
        about = self.files.about(name)
        if about["status"] in _ENDED:
            raise ApiError(400, f"{name} is {about['status']}", None, "batch_ended")
        if self.current and self.current[0] == name:
            self.current[1].is_cancelled = True
        return self.files.save(about | {"status": "cancelling", "cancelling_at": int(time.time())})


def _counts(batch: Batch) -> dict[str, int]:
    return {"total": batch.total, "completed": batch.answered, "failed": batch.failed}


def add_files(app: FastAPI, server: Server, folder: Path) -> None:
    """Add the routes of files and batches to an application."""
    files = Files(folder)
    batches = Batches(server, files)
    router = APIRouter()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(batches.run())
        yield
        task.cancel()

    app.router.lifespan_context = lifespan

    @router.post("/v1/files")
    async def upload(file: UploadFile, purpose: Annotated[str, Form()]) -> dict[str, Any]:
        if purpose != "batch":
            raise ApiError(400, f'purpose "{purpose}" is not supported; "batch" is', "purpose", "unsupported_parameter")
        name = f"file-{uuid.uuid4().hex}"
        with files.path(name).open("wb") as target:
            await asyncio.to_thread(shutil.copyfileobj, file.file, target)
        return files.register(name, file.filename or "upload.jsonl", purpose)

    @router.get("/v1/files")
    async def list_files() -> dict[str, Any]:
        return {"object": "list", "data": list(files.all("file-")), "has_more": False}

    @router.get("/v1/files/{name}")
    async def show_file(name: str) -> dict[str, Any]:
        return files.about(name)

    @router.get("/v1/files/{name}/content")
    async def read_file(name: str) -> FileResponse:
        return FileResponse(files.path(files.about(name)["id"]), media_type="application/jsonl")

    @router.delete("/v1/files/{name}")
    async def delete_file(name: str) -> dict[str, Any]:
        path = files.path(files.about(name)["id"])
        path.unlink(missing_ok=True)
        path.with_suffix(".json").unlink(missing_ok=True)
        return {"id": name, "object": "file", "deleted": True}

    @router.post("/v1/batches")
    async def create_batch(body: BatchRequest) -> dict[str, Any]:
        if body.endpoint not in ENDPOINTS:
            raise ApiError(422, f"endpoint: {body.endpoint!r} is none of {', '.join(ENDPOINTS)}", "endpoint")
        files.about(body.input_file_id)
        now = int(time.time())
        about = {
            "id": f"batch_{uuid.uuid4().hex}",
            "object": "batch",
            "endpoint": body.endpoint,
            "errors": None,
            "input_file_id": body.input_file_id,
            "completion_window": body.completion_window,
            "status": "validating",
            "output_file_id": None,
            "error_file_id": None,
            "created_at": now,
            "expires_at": now + DAY,
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
            "metadata": body.metadata,
        }
        files.save(about)
        batches.queue.put_nowait(str(about["id"]))
        return about

    @router.get("/v1/batches")
    async def list_batches() -> dict[str, Any]:
        return {"object": "list", "data": [batches.show(about) for about in files.all("batch_")], "has_more": False}

    @router.get("/v1/batches/{name}")
    async def show_batch(name: str) -> dict[str, Any]:
        return batches.show(files.about(name))

    @router.post("/v1/batches/{name}/cancel")
    async def cancel_batch(name: str) -> dict[str, Any]:
        return batches.cancel(name)

    app.include_router(router)
