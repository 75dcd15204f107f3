"""Run tasks of `lm-eval` on any of our models.

    python -m compare.lm_eval MODEL --tasks NAME [NAME …] [--include DIR] [--num-fewshot 4]

MODEL is a run, a foundation model, a .gguf file or a Hugging Face folder or name; DIR holds task
files of your own. Every text follows the document separator, as in training. A request that does
not fit the context is an error: nothing is cut off silently, and an answer that the context
leaves less room for than its task allows is told.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cli.atomic import write_atomically
from cli.console import say, show, track
from cli.errors import UserError, run_command
from cli.recipes import Parser
from model.likelihood import document_bits
from model.load import load_model
from model.sample import sample
from model.transformer import IGNORE, Transformer
from tokenizer.bpe import Tokenizer

BATCH = 8
WRITTEN = 256  # tokens of an answer, where a task sets no limit


def as_lm(model: Transformer, tokenizer: Tokenizer) -> Any:
    """The model as `lm-eval` wants it: an `lm_eval.api.model.LM`.

    Raises UserError if `lm-eval` is not installed.
    """
    try:
        from lm_eval.api.model import LM
    except ImportError:
        raise UserError("this needs: pip install -e '.[eval]'") from None

    class Homegrown(LM):
        """Scores and writes text; the prefix of every request is the document separator."""

        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            """Of each (context, continuation): log-probability, and whether it is the likeliest."""
            return loglikelihoods(model, tokenizer, [request.args for request in requests])

        def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
            """Log-probability of whole texts, in windows that overlap by half."""
            texts = [request.args[0] for request in requests]
            return [-bits * math.log(2) for bits in document_bits(model, tokenizer, texts)]

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            """What follows each context, up to a stop string."""
            found, short = [], 0
            for request in track(requests, "writing", len(requests)):
                context, how = request.args
                until = how.get("until") or []
                *_, (stream,) = sample(
                    model,
                    tokenizer,
                    context,
                    max_new_tokens=how.get("max_gen_toks", WRITTEN),
                    temperature=how.get("temperature", 0.0) if how.get("do_sample") else 0.0,
                    stop=[until] if isinstance(until, str) else list(until),
                )
                found.append(stream.text)
                room = model.config.context - 1 - len(tokenizer.encode(context))
                short += room < how.get("max_gen_toks", WRITTEN)
            if short:
                say(
                    f"WARNING: {short} answers had less room than their task allows: the context "
                    f"is {model.config.context} tokens"
                )
            return found

    return Homegrown()


@torch.no_grad()
def loglikelihoods(
    model: Transformer, tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]
) -> list[tuple[float, bool]]:
    """Log-probability (nats) of each continuation after its context, and whether every token of it

    is the likeliest. Both are tokenised as one text. Raises UserError for what does not fit.
    """
    rows = []
    for context, continuation in pairs:
        spaces = len(context) - len(context.rstrip())  # which begin a word, not end one
        context, continuation = (context[: len(context) - spaces], (context[len(context) - spaces :] + continuation))
        known = 1 + len(tokenizer.encode(context))
        ids = [tokenizer.separator_id, *tokenizer.encode(context + continuation)]
        if len(ids) - 1 > model.config.context:
            raise UserError(
                f"a request of {len(ids)} tokens does not fit the context of "
                f"{model.config.context}; use fewer shots: {context[:60]!r}…"
            )
        rows.append((ids, min(known, len(ids) - 1)))
    found: list[tuple[float, bool]] = [(0.0, True)] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
    batches = [order[i : i + BATCH] for i in range(0, len(order), BATCH)]
    for batch in track(batches, "scoring", len(batches)):
        longest = max(len(rows[i][0]) for i in batch) - 1
        inputs = torch.zeros(len(batch), longest, dtype=torch.int64)
        targets = torch.full_like(inputs, IGNORE)
        for at, i in enumerate(batch):
            ids, known = rows[i]
            inputs[at, : len(ids) - 1] = torch.tensor(ids[:-1])
            targets[at, known - 1 : len(ids) - 1] = torch.tensor(ids[known:])
        targets = targets.to(model.device)
        scored = targets != IGNORE
        logits = model.output(model.features(inputs.to(model.device))[scored]).float()
        wanted = targets[scored][:, None]
        logs = logits.log_softmax(-1).gather(1, wanted)[:, 0].split(scored.sum(1).tolist())
        likeliest = (logits.argmax(-1) == wanted[:, 0]).split(scored.sum(1).tolist())
        for i, nats, best in zip(batch, logs, likeliest, strict=True):
            found[i] = nats.sum().item(), bool(best.all())
    return found


def main() -> None:
    """Entry point of `python -m compare.lm_eval`."""
    parser = Parser(__doc__)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--tasks", nargs="+", required=True, metavar="NAME")
    parser.add_argument("--include", type=Path, help="a folder with task files of your own")
    parser.add_argument("--num-fewshot", type=int, help="solved examples in every prompt")
    parser.add_argument("--limit", type=int, help="items of each task")
    parser.add_argument("--out", type=Path, help="write all results here, as JSON")
    args = parser.parse_args()
    model, tokenizer = load_model(args.model)
    lm = as_lm(model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer)
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import make_table

    manager = TaskManager(include_path=str(args.include) if args.include else None)
    known = set(manager.all_tasks)
    for name in args.tasks:
        if name not in known:
            raise UserError(f'--tasks: lm-eval has no task "{name}"; name it, or --include its folder')
    results = simple_evaluate(
        model=lm,
        tasks=args.tasks,
        num_fewshot=args.num_fewshot,
        limit=args.limit,
        task_manager=manager,
        log_samples=False,
    )
    assert results is not None
    show(make_table(results))
    if args.out:
        shown = {key: results[key] for key in ("results", "n-shot", "versions", "n-samples")}
        write_atomically(args.out, json.dumps(shown, indent=2, default=str) + "\n")


if __name__ == "__main__":
    run_command(main)
