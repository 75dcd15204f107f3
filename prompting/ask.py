"""Answer a question from retrieved passages of a store, and list the sources.

    python -m prompting.ask [FOUNDATION|RUN] --store DIR --question TEXT [--passages 4 --json]

Passages that do not fit the context are left out, the lowest score first; none is truncated.
"""

from collections.abc import Sequence
from pathlib import Path

from cli.atomic import to_json
from cli.console import say, show
from cli.errors import UserError, run_command
from cli.recipes import Parser
from model.load import load_model
from prompting.likelihood import generate_answer
from prompting.store import SEARCH_METHODS, Passage, Store
from tokenizer.bpe import Tokenizer

INSTRUCTION = "Answer the question from the passages."


def build_prompt(
    question: str, passages: Sequence[Passage], tokenizer: Tokenizer, max_tokens: int
) -> tuple[str, list[Passage]]:
    """A prompt of at most `max_tokens` tokens with the separator, and the passages that it contains.

    The best passage comes last, next to the question. Raises UserError if the question alone is too
    long.
    """
    for count in range(len(passages), -1, -1):
        kept = list(passages[:count])
        context = "".join(f"Passage: {passage.text}\n\n" for passage in reversed(kept))
        prompt = f"{INSTRUCTION}\n\n{context}Question: {question}\nAnswer:"
        if 1 + len(tokenizer.encode(prompt)) <= max_tokens:
            return prompt, kept
    raise UserError(f"--question: does not fit the {max_tokens} tokens of the context; shorten it")


def main() -> None:
    """Entry point of `python -m prompting.ask`."""
    parser = Parser(__doc__)
    parser.add_argument("model", metavar="FOUNDATION|RUN", nargs="?", default="smollm2-135m")
    parser.add_argument("--store", type=Path, required=True, help="folder written by prompting.store")
    parser.add_argument("--question", required=True)
    parser.add_argument("--passages", type=int, default=4, help="number of passages to retrieve")
    parser.add_argument("--by", choices=SEARCH_METHODS, default="hybrid", help="search method")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--json", action="store_true", help="one JSON object: answer and sources")
    args = parser.parse_args()
    if not args.question.strip():
        raise UserError("--question: is empty")
    for option, number in (("--passages", args.passages), ("--max-new-tokens", args.max_new_tokens)):
        if number < 1:
            raise UserError(f"{option}: {number} is not 1 or more")
    store = Store(args.store)
    found = store.search(args.question, args.passages, args.by)
    model, tokenizer = load_model(args.model)
    max_tokens = model.config.context - args.max_new_tokens
    prompt, kept = build_prompt(args.question, found, tokenizer, max_tokens)
    if len(kept) < len(found):
        say(f"{len(found) - len(kept)} of {len(found)} passages do not fit the context and are left out")
    answer = generate_answer(model, tokenizer, prompt, "\n", args.max_new_tokens)
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
