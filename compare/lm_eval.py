"""Run tasks of `lm-eval` on a model of this project.

    python -m compare.lm_eval MODEL --tasks NAME [NAME …] [--include DIR] [--num-fewshot 4]

MODEL is a run, a foundation model, a .gguf file or a Hugging Face folder or name; DIR contains your
own task files. Every text follows the document separator, as in training. A request that does not
fit the context is an error, never truncated; a warning counts the answers for which the context
leaves fewer tokens than their task allows.
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
from model.likelihood import document_bits, score_continuations
from model.load import load_model
from model.sample import sample
from model.transformer import Transformer
from tokenizer.bpe import Tokenizer

BATCH = 64  # continuations of one context that are scored at a time
MAX_NEW_TOKENS = 256  # where a task sets no limit


def as_lm(model: Transformer, tokenizer: Tokenizer) -> Any:
    """The model as an `lm_eval.api.model.LM`.

    Raises UserError if `lm-eval` is not installed.
    """
    try:
        from lm_eval.api.model import LM
    except ImportError:
        raise UserError("this needs: pip install -e '.[eval]'") from None

    class Homegrown(LM):
        """Scores and generates text; every request starts with the document separator."""

        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            """For each (context, continuation): log-likelihood in nats, and whether it is greedy."""
            return loglikelihoods(model, tokenizer, [request.args for request in requests])

        def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
            """Log-likelihood of whole texts in nats, in windows that overlap by half."""
            texts = [request.args[0] for request in requests]
            return [-bits * math.log(2) for bits in document_bits(model, tokenizer, texts)]

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            """The generated text after each context, up to a stop string."""
            texts, shortened = [], 0
            for request in track(requests, "writing", len(requests)):
                context, settings = request.args
                until = settings.get("until") or []
                *_, (stream,) = sample(
                    model,
                    tokenizer,
                    context,
                    max_new_tokens=settings.get("max_gen_toks", MAX_NEW_TOKENS),
                    temperature=settings.get("temperature", 0.0) if settings.get("do_sample") else 0.0,
                    stop=[until] if isinstance(until, str) else list(until),
                )
                texts.append(stream.text)
                room = model.config.context - 1 - len(tokenizer.encode(context))
                shortened += room < settings.get("max_gen_toks", MAX_NEW_TOKENS)
            if shortened:
                say(
                    f"WARNING: {shortened} answers had fewer tokens than their task allows: the context "
                    f"is {model.config.context} tokens"
                )
            return texts

    return Homegrown()


@torch.no_grad()
def loglikelihoods(
    model: Transformer, tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]
) -> list[tuple[float, bool]]:
    """Log-likelihood (nats) of each continuation after its context, and whether it is greedy.

    Greedy means that every token is the most likely one. Context and continuation are tokenised as
    one text. Raises UserError for a pair that does not fit the context.
    """
    grouped: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}  # continuations by what precedes them
    for number, (context, continuation) in enumerate(pairs):
        spaces = len(context) - len(context.rstrip())  # tokens have the space before a word, not after
        context, continuation = (context[: len(context) - spaces], (context[len(context) - spaces :] + continuation))
        known = 1 + len(tokenizer.encode(context))
        ids = [tokenizer.separator_id, *tokenizer.encode(context + continuation)]
        if len(ids) - 1 > model.config.context:
            raise UserError(
                f"a request of {len(ids)} tokens does not fit the context of "
                f"{model.config.context}; use fewer shots: {context[:60]!r}…"
            )
        known = min(known, len(ids) - 1)
        grouped.setdefault(tuple(ids[:known]), []).append((number, ids[known:]))
    results: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
    for prompt, rows in track(grouped.items(), "scoring", len(grouped)):
        for start in range(0, len(rows), BATCH):
            part = rows[start : start + BATCH]
            scores = score_continuations(model, prompt, [ids for _, ids in part])
            for (number, _), score in zip(part, scores, strict=True):
                results[number] = score
    return results


def main() -> None:
    """Entry point of `python -m compare.lm_eval`."""
    parser = Parser(__doc__)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--tasks", nargs="+", required=True, metavar="NAME")
    parser.add_argument("--include", type=Path, help="a folder with your own task files")
    parser.add_argument("--num-fewshot", type=int, help="solved examples in every prompt")
    parser.add_argument("--limit", type=int, help="number of items per task")
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
        written = {key: results[key] for key in ("results", "n-shot", "versions", "n-samples")}
        write_atomically(args.out, json.dumps(written, indent=2, default=str) + "\n")


if __name__ == "__main__":
    run_command(main)
