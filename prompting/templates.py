"""Prompts as plain `Field: value` lines, the pattern that small foundation models follow best."""

from collections.abc import Sequence

from cli.errors import UserError
from data.items import Item, Task
from tokenizer.bpe import Tokenizer


def few_shot(task: Task, text: str, shots: Sequence[Item]) -> str:
    """The instruction, `shots` with their labels in order, and `text` with its label left open."""
    solved = (f"{task.prompt(s.text)}{task.completion(s.label)}\n" for s in shots)
    return task.opening + "".join(solved) + task.prompt(text)


def fitting(task: Task, text: str, shots: Sequence[Item], tokenizer: Tokenizer, room: int) -> tuple[str, int]:
    """A prompt of at most `room` tokens with the separator, and how many shots were left out.

    The first go first: retrieved ones stand nearest last. Raises UserError if not even the input
    alone fits.
    """
    for start in range(len(shots) + 1):
        prompt = few_shot(task, text, shots[start:])
        if 1 + len(tokenizer.encode(prompt)) <= room:
            return prompt, start
    raise UserError(
        f"an input of {1 + len(tokenizer.encode(prompt))} tokens does not fit the {room} that the "
        "context has for it, without any shots; lower task.max_chars"
    )
