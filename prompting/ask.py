"""Answer a question from the passages of a store, and say where they come from.

    python -m prompting.ask [FOUNDATION|RUN] --store DIR --question TEXT [--passages 4 --json]

Passages that do not fit the context are left out, the worst first; nothing is cut off.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from cli.atomic import to_json
from cli.console import say, show
from cli.errors import UserError, run_command
from cli.recipes import Parser
from model.load import load_model
from prompting.likelihood import write_answer
from prompting.store import WAYS, Passage, Store
from tokenizer.bpe import Tokenizer

INSTRUCTION = "Answer the question from the passages."


def grounded(question: str, passages: Sequence[Passage], tokenizer: Tokenizer, room: int) -> tuple[str, list[Passage]]:
    """A prompt of at most `room` tokens with the separator, and the passages that are in it.

    The best stands last, next to the question. Raises UserError if the question alone is too long.
    """
    for count in range(len(passages), -1, -1):
        kept = list(passages[:count])
        told = "".join(f"Passage: {passage.text}\n\n" for passage in reversed(kept))
        prompt = f"{INSTRUCTION}\n\n{told}Question: {question}\nAnswer:"
        if 1 + len(tokenizer.encode(prompt)) <= room:
            return prompt, kept
    raise UserError(f"--question: does not fit the {room} tokens that the context has for it")


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return int(text)


def main() -> None:
    """Entry point of `python -m prompting.ask`."""
    parser = Parser(__doc__)
    parser.add_argument("model", metavar="FOUNDATION|RUN", nargs="?", default="smollm2-135m")
    parser.add_argument("--store", type=Path, required=True, help="made by prompting.store")
    parser.add_argument("--question", required=True)
    parser.add_argument("--passages", type=_positive, default=4, help="how many to retrieve")
    parser.add_argument("--by", choices=WAYS, default="hybrid", help="how they are found")
    parser.add_argument("--max-new-tokens", type=_positive, default=64)
    parser.add_argument("--json", action="store_true", help="one object: answer and sources")
    args = parser.parse_args()
    if not args.question.strip():
        raise UserError("--question: is empty")
    store = Store(args.store)
    found = store.search(args.question, args.passages, args.by)
    model, tokenizer = load_model(args.model)
    room = model.config.context - args.max_new_tokens
    prompt, kept = grounded(args.question, found, tokenizer, room)
    if len(kept) < len(found):
        say(f"{len(found) - len(kept)} of {len(found)} passages do not fit and are left out")
    answer = write_answer(model, tokenizer, prompt, "\n", args.max_new_tokens)
    if args.json:
        sources = [passage._asdict() for passage in kept]
        show(to_json({"question": args.question, "answer": answer, "sources": sources}))
        return
    show(answer)
    for number, passage in enumerate(kept, 1):
        start = " ".join(passage.text.split())[:100]
        show(f"  [{number}] {passage.document} ({passage.score:.3f}): {start}")


if __name__ == "__main__":
    run_command(main)
