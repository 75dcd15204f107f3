"""Prompts as plain `Field: value` lines, the pattern that small foundation models follow best."""

from collections.abc import Sequence

from data.tasks import Item, Task


def few_shot(task: Task, text: str, shots: Sequence[Item]) -> str:
    """The instruction, `shots` with their labels in order, and `text` with its label left open."""
    solved = (f"{task.prompt(s.text)}{task.completion(s.label)}\n" for s in shots)
    return task.opening + "".join(solved) + task.prompt(text)
