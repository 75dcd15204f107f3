"""Chooses a label by log-likelihood: the one whose text the model finds likeliest after the prompt.

The prompt runs through the model once; its keys and values are then shared by all labels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from configs.cli import UserError
from model.cache import KVCache
from model.transformer import IGNORE, Transformer
from tokenizer.bpe import Tokenizer


class Answer(NamedTuple):
    """Which completion was chosen, and what it cost."""

    choice: int
    scores: list[float]
    """Log-probability of every completion, in nats."""
    prompt_tokens: int


@torch.no_grad()
def rank_completions(
    model: Transformer, tokenizer: Tokenizer, prompt: str, completions: Sequence[str]
) -> Answer:
    """The completion with the highest sum of token log-probabilities.

    Raises UserError if the prompt and a label do not fit the context: nothing is cut off silently.
    """
    ids = [tokenizer.separator_id, *tokenizer.encode(prompt)]
    options = tokenizer.encode_batch(completions)
    longest = max(len(option) for option in options)
    if len(ids) + longest > model.config.max_seq_len:
        raise UserError(
            f"a prompt of {len(ids)} tokens and a label do not fit the model's context of "
            f"{model.config.max_seq_len}; use fewer shots or a lower task.max_chars"
        )
    cache = KVCache(len(ids))
    first = model.output(
        model.features(torch.tensor([ids], device=model.device), cache)[:, -1]
    ).float()
    first = first.log_softmax(-1)[0]
    inputs = torch.zeros(len(options), longest - 1, dtype=torch.int64)
    targets = torch.full_like(inputs, IGNORE)
    for row, option in enumerate(options):
        inputs[row, : len(option) - 1] = torch.tensor(option[:-1])
        targets[row, : len(option) - 1] = torch.tensor(option[1:])
    scores = first[[option[0] for option in options]]
    if longest > 1:
        cache = cache.expand(len(options), longest - 1)
        logits = model(inputs.to(model.device), cache=cache).float()
        rest = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), targets.to(model.device), ignore_index=IGNORE, reduction="none"
        )
        scores = scores - rest.sum(1)
    return Answer(int(scores.argmax()), scores.tolist(), len(ids))
