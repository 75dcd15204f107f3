"""Answer a file of requests, without a server.

    python -m serve.batch IN.jsonl OUT.jsonl --model MODEL [--model MODEL …] [--adapter NAME=FOLDER]

The lines are OpenAI's batch format: {"custom_id", "method": "POST", "url": "/v1/completions", "body"};
other urls: /v1/chat/completions, /v1/embeddings. A request without "model" goes to the first one.
Answers are written to OUT.jsonl as they come, in any order; lines that cannot be answered go to
OUT.errors.jsonl and stop nothing. A killed batch continues with the same command: each custom_id is
answered once.
"""

import asyncio
from pathlib import Path

from cli.console import bar, console, say, show
from cli.errors import UserError, run_command
from cli.recipes import Parser
from model.inference import PRECISIONS
from serve.models import load_models
from serve.scheduler import Scheduler


def main() -> int:
    """Entry point of `python -m serve.batch`."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("source", type=Path, metavar="IN.jsonl")
    add("target", type=Path, metavar="OUT.jsonl")
    add("--model", action="append", required=True, help="as for python -m serve; may be repeated")
    add("--adapter", action="append", default=[], metavar="NAME=FOLDER", help="a LoRA adapter of the first model")
    add("--rows", type=int, default=8, help="texts at a time")
    add("--context", type=int, default=2048, help="most tokens of a prompt and its answer")
    add("--precision", choices=PRECISIONS, default="auto", help="of the weights")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--compile", action="store_true", help="on a CPU: compile decode, once per model, for half a minute")
    args = parser.parse_args()
    try:
        from serve.lines import Batch
        from serve.server import Server
    except ImportError as error:
        raise UserError(f"{error}; batches need: pip install -e '.[serve]'") from None
    if not args.source.is_file():
        raise UserError(f"{args.source}: no such file")
    if args.source.resolve() == args.target.resolve():
        raise UserError(f"{args.target}: is the file of requests; give another one")
    if args.rows <= 0:
        raise UserError(f"--rows {args.rows} is not above 0")
    limits = args.rows, args.context, args.precision, args.device, args.compile
    scheduler = Scheduler()
    models = scheduler.start(lambda: load_models(args.model, args.adapter, *limits))
    scheduler.schedule(model.batcher for model in models.values())
    errors = args.target.with_suffix(".errors.jsonl")
    batch = Batch(Server(models, scheduler), args.source, args.target, errors, next(iter(models)))
    with bar() as progress:
        task = progress.add_task("answering", total=None)

        def update() -> None:
            done = batch.answered + batch.failed
            progress.update(task, completed=done, total=batch.total)
            if not console.is_terminal and done % max(1, batch.total // 20) == 0:
                say(f"{done:,} of {batch.total:,} lines")

        try:
            asyncio.run(batch.run(2 * args.rows, update))
        except KeyboardInterrupt:
            say(f"interrupted; {batch.answered:,} answers are kept, the same command continues")
            return 130
        finally:
            scheduler.stop()
    show(f"{batch.answered:,} answers in {args.target}, {batch.failed:,} errors in {errors}")
    return 0


if __name__ == "__main__":
    run_command(main)
