"""What a model answers to a prompt: the likeliest of some completions, or what it writes.

What prompts have in common (instruction, fixed examples) runs through the model once.
"""

from collections.abc import Sequence
from itertools import takewhile
from typing import NamedTuple

import torch

from cli.errors import UserError
from model.cache import KVCache
from model.flops import forward_flops
from model.sample import prompt_ids, sample
from model.transformer import IGNORE, Transformer
from tokenizer.bpe import Tokenizer


class Answer(NamedTuple):
    """Which completion was chosen, and what it cost."""

    choice: int
    scores: list[float]
    """Log-probability of every completion, in nats."""
    prompt_tokens: int
    read_tokens: int
    """Tokens that ran through the model: those after the prefix, and the completions."""
    flops: float


class Prefix(NamedTuple):
    """Token ids that many prompts begin with, and the model's keys and values of them."""

    ids: list[int]
    cache: KVCache

    def begins(self, ids: Sequence[int]) -> bool:
        """Whether these start with the prefix and go on."""
        return len(self.ids) < len(ids) and list(ids[: len(self.ids)]) == self.ids


@torch.no_grad()
def shared_prefix(model: Transformer, tokenizer: Tokenizer, prompts: Sequence[str]) -> Prefix | None:
    """What all prompts begin with, read once; None if they have no two tokens in common.

    At least one token of each is left over, whose output says what comes next.
    """
    encoded = [[tokenizer.separator_id, *ids] for ids in tokenizer.encode_batch(prompts)]
    shortest = min(map(len, encoded))
    pairs = zip(min(encoded), max(encoded), strict=False)  # what these two share, all do
    ids = [a for a, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)][: shortest - 1]
    if len(ids) < 2 or len(ids) >= model.config.context:
        return None
    cache = KVCache(len(ids))
    model.features(torch.tensor([ids], device=model.device), cache)
    return Prefix(ids, cache)


@torch.no_grad()
def rank_completions(
    model: Transformer,
    tokenizer: Tokenizer,
    prompt: str,
    completions: Sequence[str],
    prefix: Prefix | None = None,
    prior: Sequence[float] = (),
    per_token: bool = False,
) -> Answer:
    """The completion with the highest sum of token log-probabilities.

    Args:
        model: in eval mode.
        tokenizer: the model's.
        prompt: its text follows the document separator.
        completions: what may follow.
        prefix: used if the prompt begins with it; changes the cost, not the scores.
        prior: scores of the completions after a prompt without content, which are taken off: what
            the model prefers whatever the input is (contextual calibration; Zhao et al. 2021,
            arXiv:2102.09690).
        per_token: divide by the number of tokens, so that short ones have no advantage (Brown et
            al. 2020, arXiv:2005.14165, section 2.4).

    Raises UserError if the prompt and a completion do not fit the context: nothing is cut off
    silently.
    """
    ids = [tokenizer.separator_id, *tokenizer.encode(prompt)]
    options = tokenizer.encode_batch(completions)
    longest = max(len(option) for option in options)
    if len(ids) + longest > model.config.context:
        raise UserError(
            f"a prompt of {len(ids)} tokens and a label do not fit the model's context of "
            f"{model.config.context}; use fewer shots or a lower task.max_chars"
        )
    if prefix is not None and prefix.begins(ids):
        known = len(prefix.ids)
        cache = prefix.cache.fork(1, len(ids) - known)
    else:
        cache, known = KVCache(len(ids)), 0
    rest = torch.tensor([ids[known:]], device=model.device)
    first = model.output(model.features(rest, cache)[:, -1]).float()
    first = first.log_softmax(-1)[0]
    inputs = torch.zeros(len(options), longest - 1, dtype=torch.int64)
    targets = torch.full_like(inputs, IGNORE)
    for row, option in enumerate(options):
        inputs[row, : len(option) - 1] = torch.tensor(option[:-1])
        targets[row, : len(option) - 1] = torch.tensor(option[1:])
    scores = first[[option[0] for option in options]]
    if longest > 1:
        cache = cache.fork(len(options), longest - 1)
        features = model.features(inputs.to(model.device), cache)
        targets = targets.to(model.device)
        scored = targets != IGNORE  # the output projection is a third of the work: no more of it
        nats = torch.nn.functional.cross_entropy(
            model.output(features[scored]).float(), targets[scored], reduction="none"
        )
        scores = scores - torch.zeros_like(targets, dtype=nats.dtype).masked_scatter(scored, nats).sum(1)
    values = scores.tolist()
    if prior:
        values = [score - before for score, before in zip(values, prior, strict=True)]
    if per_token:
        values = [score / len(option) for score, option in zip(values, options, strict=True)]
    best = max(range(len(values)), key=values.__getitem__)
    whole = len(ids) + model.config.soft_tokens  # which stand before the first token
    before = whole - len(ids) + known if known else 0
    new, more = whole - before, inputs.numel()
    flops = forward_flops(model, new, 1, before + whole)
    flops += forward_flops(model, more, int((targets != IGNORE).sum()), 2 * whole)
    return Answer(best, values, len(ids), new + more, flops)


def write_answer(
    model: Transformer,
    tokenizer: Tokenizer,
    prompt: str,
    stop: str,
    max_new_tokens: int = 64,
    prefix: Prefix | None = None,
) -> str:
    """What the model writes after the prompt up to `stop`, the likeliest token at each step.

    `prefix` is used if the prompt begins with it. Raises UserError if the prompt does not fit the
    context.
    """
    ids = prompt_ids(model.config, tokenizer, prompt)
    *_, (stream,) = sample(
        model,
        tokenizer,
        ids,
        max_new_tokens=max_new_tokens,
        temperature=0,
        stop=[stop],
        prefix=prefix.cache if prefix is not None and prefix.begins(ids) else None,
    )
    return stream.text.strip()
