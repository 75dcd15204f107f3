"""Training and validation data for fine-tuning: domain text, a labelled task, or examples."""

from collections.abc import Sequence
from pathlib import Path

from cli.errors import UserError
from data.examples import Examples, Row, encode_completions
from data.items import Item, Task
from data.shards import Windows, write_shards
from model.transformer import Transformer
from tokenizer.bpe import Tokenizer


def text_sets(
    folder: Path, model: Transformer, tokenizer: Tokenizer, seq_len: int, max_windows: int = 0
) -> tuple[Windows, Windows]:
    """Train and validation windows of domain text, tokenised for this model.

    `max_windows` limits the validation windows if it is not 0. Raises UserError if a window is
    longer than the model's context or the train split.
    """
    _check_length(model, seq_len)
    shards = write_shards(folder, tokenizer)
    train_set = Windows(shards, "train", seq_len, tokenizer)
    return train_set, Windows(shards, "validation", seq_len, tokenizer, max_windows)


def task_sets(task: Task, model: Transformer, tokenizer: Tokenizer, pack: int = 0) -> tuple[Examples, Examples]:
    """Train and validation examples of a task: prompt and label, scored on the label only.

    `pack` > 0 packs several examples into rows of that many tokens; else a row is one example.
    """

    def rows(items: list[Item]) -> list[Row]:
        pairs = [(task.opening + task.prompt(i.text), task.completion(i.label)) for i in items]
        return encode_completions(pairs, tokenizer)

    return example_sets(rows(task.train), rows(task.validation), model, tokenizer, pack)


def example_sets(
    train_rows: Sequence[Row], validation_rows: Sequence[Row], model: Transformer, tokenizer: Tokenizer, pack: int = 0
) -> tuple[Examples, Examples]:
    """As `task_sets`, from tokenised rows. Raises UserError for one longer than the context."""
    length = pack or model.config.context
    _check_length(model, length)
    train_set, validation_set = (Examples(rows, length, tokenizer, pack > 0) for rows in (train_rows, validation_rows))
    return train_set, validation_set


def _check_length(model: Transformer, length: int) -> None:
    if length > model.config.context:
        raise UserError(f"seq_len = {length} is above the model's context of {model.config.context}")
