"""Serve models over HTTP, OpenAI-compatible.

    python -m serve MODEL [MODEL …] [--port 8000] [--adapter NAME=FOLDER] [--rows 8] [--key KEY]

A model is a run directory, a fine-tuned run's merged/, smollm2-135m, a .gguf file or a Hugging Face
folder; its id is the last part of its name. An adapter is a LoRA adapter of the first model, served
unmerged under its own name. Concurrent requests are decoded in one batch (continuous batching). Only this machine
can connect unless --host says otherwise. SIGTERM and Ctrl-C finish running requests first.
"""

import asyncio
from pathlib import Path
from types import FrameType
from typing import Any

from cli.console import say
from cli.errors import UserError, run_command
from cli.recipes import Parser
from model.inference import PRECISIONS


def main() -> int:
    """Entry point of `python -m serve`."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("models", nargs="*", metavar="MODEL")
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 is all of them")
    add("--port", type=int, default=8000)
    add("--adapter", action="append", default=[], metavar="NAME=FOLDER", help="a LoRA adapter of the first model")
    add("--store", type=Path, metavar="DIR", help="a passage store: MODEL+DIR answers from it, with sources")
    add("--study", type=Path, metavar="RUN", help="a study of compare.run --keep: what it kept")
    add("--rows", type=int, default=8, help="most texts of a model at a time")
    add("--context", type=int, default=2048, help="most tokens of a prompt and its answer")
    add("--queue", type=int, default=512, help="most texts that wait; more are refused with 429")
    add("--seconds", type=float, default=600, help="most time of a request")
    add("--key", action="append", default=[], help="a bearer key that requests need; may be repeated")
    add("--files", type=Path, default=Path("serve-files"), help="folder of /v1/files and /v1/batches")
    add("--precision", choices=PRECISIONS, default="auto", help="of the weights")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--compile", action="store_true", help="on a CPU: compile decode, once per model, for half a minute")
    args = parser.parse_args()
    if not args.models and not args.study:
        raise UserError("no model: name one, or a study with --study")
    for name in ("rows", "context", "queue", "seconds"):
        if getattr(args, name) <= 0:
            raise UserError(f"--{name} {getattr(args, name):g} is not above 0")
    try:
        import uvicorn

        from serve.app import make_app
        from serve.files import add_files
        from serve.server import Server
    except ImportError as error:
        raise UserError(f"{error}; serving needs: pip install -e '.[serve]'") from None
    from serve.models import load_models
    from serve.scheduler import Scheduler
    from serve.templates import held_out_items

    limits = args.rows, args.context, args.precision, args.device, args.compile
    scheduler = Scheduler()
    models = scheduler.start(lambda: load_models(args.models, args.adapter, *limits, args.store, args.study))
    scheduler.schedule(model.batcher for model in models.values())
    server = Server(models, scheduler, args.queue, args.seconds)
    server.items = held_out_items(args.study) if args.study else []

    class GracefulServer(uvicorn.Server):
        """Ends after the requests that run, which a second signal does not wait for."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            if server.is_stopping:
                super().handle_exit(sig, frame)
            server.is_stopping = True

        async def on_tick(self, counter: int) -> Any:
            if server.is_stopping and server.open_requests == 0:
                self.should_exit = True
            return await super().on_tick(counter)

    app = make_app(server, args.key)
    add_files(app, server, args.files)
    config = uvicorn.Config(app, args.host, args.port, log_level="warning", timeout_graceful_shutdown=5)
    web = GracefulServer(config)
    say(f"serving {', '.join(models)} at http://{args.host}:{args.port}")
    try:
        asyncio.run(web.serve())
    finally:
        scheduler.stop()
    return 0 if web.started else 1


if __name__ == "__main__":
    run_command(main)
