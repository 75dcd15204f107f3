"""What a task is: labelled items in three splits, and how a prompt shows them."""

from typing import Literal, NamedTuple

Kind = Literal["classification", "naming", "completion"]


class Item(NamedTuple):
    """One labelled example; `id` is its document's."""

    id: str
    text: str
    label: str


class Task(NamedTuple):
    """Items to learn from, to choose on and to be tested on."""

    field: str
    """What an input is called in a prompt."""
    answer: str
    """What a label is called in a prompt."""
    labels: list[str]
    """The closed set to choose from; empty where the answer is open."""
    train: list[Item]
    validation: list[Item]
    test: list[Item]
    kind: Kind = "classification"
    instruction: str = ""
    """Stands before everything else in a prompt."""

    @property
    def opening(self) -> str:
        """What every prompt begins with: the instruction and an empty line, or nothing."""
        return f"{self.instruction}\n\n" if self.instruction else ""

    def prompt(self, text: str) -> str:
        """The input as `Field: value` lines with the answer left open."""
        return f"{self.field}: {text}\n{self.answer}:"

    def completion(self, label: str) -> str:
        """What follows a prompt: a space, the label, and what closes it."""
        return f" {label}{self.stop}"

    @property
    def stop(self) -> str:
        """Closes an answer: a line end, or an empty line where the answer may have lines."""
        return "\n\n" if self.kind == "completion" else "\n"
