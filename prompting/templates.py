"""Zero-shot and few-shot prompts of `Field: value` lines, which small foundation models follow best."""

from collections.abc import Sequence

from cli.errors import UserError
from data.items import Item, Task
from tokenizer.bpe import Tokenizer


def few_shot(task: Task, text: str, shots: Sequence[Item]) -> str:
    """The instruction, the labelled `shots` in order, and `text` without its label."""
    examples = (f"{task.prompt(s.text)}{task.completion(s.label)}\n" for s in shots)
    return task.opening + "".join(examples) + task.prompt(text)


def fit_prompt(task: Task, text: str, shots: Sequence[Item], tokenizer: Tokenizer, max_tokens: int) -> tuple[str, int]:
    """A prompt of at most `max_tokens` tokens with the separator, and the number of shots left out.

    The first shots are left out first, because the nearest ones come last. Raises UserError if the
    input does not fit without shots.
    """
    for start in range(len(shots) + 1):
        prompt = few_shot(task, text, shots[start:])
        if 1 + len(tokenizer.encode(prompt)) <= max_tokens:
            return prompt, start
    raise UserError(
        f"an input of {1 + len(tokenizer.encode(prompt))} tokens does not fit the {max_tokens} tokens "
        "of the context, even without shots; lower task.max_chars"
    )
