"""The types Item and Task: labelled items in three splits, and their prompt format."""

from typing import Literal, NamedTuple

Kind = Literal["classification", "naming", "completion"]


class Item(NamedTuple):
    """One labelled example; `id` names its document or line."""

    id: str
    text: str
    label: str
    group: str = ""
    """Items of a group depend on each other, as those of one document; "": the item is alone."""


class Task(NamedTuple):
    """The train, validation and test items of a task, and the words of its prompts."""

    field: str
    """Name of the input in a prompt."""
    answer: str
    """Name of the label in a prompt."""
    labels: list[str]
    """The closed set of labels; empty for open answers."""
    train: list[Item]
    validation: list[Item]
    test: list[Item]
    kind: Kind = "classification"
    instruction: str = ""
    """Text at the start of every prompt."""

    @property
    def opening(self) -> str:
        """The start of every prompt: the instruction and an empty line, or an empty string."""
        return f"{self.instruction}\n\n" if self.instruction else ""

    def prompt(self, text: str) -> str:
        """Format the input as `Field: value` lines; the answer is left open."""
        return f"{self.field}: {text}\n{self.answer}:"

    def completion(self, label: str) -> str:
        """Format the answer to a prompt: a space, the label and the stop string."""
        return f" {label}{self.stop}"

    @property
    def stop(self) -> str:
        """The end of an answer: a newline, or an empty line if the answer can have several lines."""
        return "\n\n" if self.kind == "completion" else "\n"
