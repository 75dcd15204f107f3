"""Answer a prompt: the completion with the highest log-likelihood, or generated text.

The part that all prompts share (instruction, few-shot examples) is computed once: prefix cache.
"""

from collections.abc import Sequence
from itertools import takewhile
from typing import NamedTuple

import torch

from cli.errors import UserError
from model.cache import KVCache
from model.flops import forward_flops
from model.likelihood import score_continuations
from model.sample import encode_prompt, sample
from model.transformer import Transformer
from tokenizer.bpe import Tokenizer


class Answer(NamedTuple):
    """The chosen completion and its cost."""

    choice: int
    scores: list[float]
    """Log-probability of every completion, in nats."""
    prompt_tokens: int
    read_tokens: int
    """Tokens computed by the model: those after the cached prefix, and the completions."""
    flops: float


class Prefix(NamedTuple):
    """Prefix cache: token ids that many prompts start with, and their keys and values."""

    ids: list[int]
    cache: KVCache

    def is_prefix_of(self, ids: Sequence[int]) -> bool:
        """Whether `ids` start with this prefix and are longer."""
        return len(self.ids) < len(ids) and list(ids[: len(self.ids)]) == self.ids


@torch.no_grad()
def shared_prefix(model: Transformer, tokenizer: Tokenizer, prompts: Sequence[str]) -> Prefix | None:
    """Prefill the longest common prefix of all prompts; None if it has fewer than two tokens.

    It leaves at least one token of every prompt, whose logits predict the next token.
    """
    encoded = [[tokenizer.separator_id, *ids] for ids in tokenizer.encode_batch(prompts)]
    shortest = min(map(len, encoded))
    pairs = zip(min(encoded), max(encoded), strict=False)  # all prompts share what these two share
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
        prompt: text, encoded after the document separator.
        completions: candidate continuations.
        prefix: prefix cache, used if the prompt starts with it; the scores do not change.
        prior: scores of the completions after a content-free prompt, subtracted from the scores:
            contextual calibration (Zhao et al. 2021, arXiv:2102.09690).
        per_token: divide each score by the number of tokens, so that short completions have no
            advantage (Brown et al. 2020, arXiv:2005.14165, section 2.4).

    Raises UserError if the prompt and a completion do not fit the context; nothing is truncated.
    """
    ids = [tokenizer.separator_id, *tokenizer.encode(prompt)]
    options = tokenizer.encode_batch(completions)
    longest = max(len(option) for option in options)
    if len(ids) + longest > model.config.context:
        raise UserError(
            f"a prompt of {len(ids)} tokens and a label do not fit the model's context of "
            f"{model.config.context}; use fewer shots or a lower task.max_chars"
        )
    cached = len(prefix.ids) if prefix is not None and prefix.is_prefix_of(ids) else 0
    scored = score_continuations(model, ids[cached:], options, prefix.cache if prefix is not None and cached else None)
    values = [nats for nats, _ in scored]
    if prior:
        values = [score - before for score, before in zip(values, prior, strict=True)]
    if per_token:
        values = [score / len(option) for score, option in zip(values, options, strict=True)]
    best = max(range(len(values)), key=values.__getitem__)
    whole = len(ids) + model.config.soft_tokens  # soft tokens precede the first token
    before = whole - len(ids) + cached if cached else 0
    new, more = whole - before, len(options) * (longest - 1)  # with padding
    flops = forward_flops(model, new, 1, before + whole)
    flops += forward_flops(model, more, sum(len(option) - 1 for option in options), 2 * whole)
    return Answer(best, values, len(ids), new + more, flops)


def generate_answer(
    model: Transformer,
    tokenizer: Tokenizer,
    prompt: str,
    stop: str,
    max_new_tokens: int = 64,
    prefix: Prefix | None = None,
) -> str:
    """Generate greedily after the prompt, up to `stop`.

    The prefix cache `prefix` is used if the prompt starts with it. Raises UserError if the prompt
    does not fit the context.
    """
    ids = encode_prompt(model.config, tokenizer, prompt)
    *_, (stream,) = sample(
        model,
        tokenizer,
        ids,
        max_new_tokens=max_new_tokens,
        temperature=0,
        stop=[stop],
        prefix=prefix.cache if prefix is not None and prefix.is_prefix_of(ids) else None,
    )
    return stream.text.strip()
