"""Autoregressive generation with a KV cache: prefill of the prompt, then decode."""

from collections.abc import Iterator
from typing import Any

import torch

from model.cache import KVCache
from model.transformer import Transformer


def sample_tokens(
    logits: torch.Tensor,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Draw one token per row.

    Args:
        logits: (B, V), any float dtype.
        temperature: 0 takes the likeliest token (greedy) and ignores the other arguments.
        top_k: keep exactly the k likeliest tokens, even among ties; 0 keeps all.
        top_p: keep the smallest set of likeliest tokens with this probability mass (nucleus
            sampling; Holtzman et al. 2020).
        min_p: drop tokens below this fraction of the highest probability (Nguyen et al. 2024).
        generator: random generator on the device of `logits`.

    Returns:
        (B,) int64 ids.
    """
    if temperature == 0:
        return logits.argmax(-1)
    probabilities, ids = torch.softmax(logits.float() / temperature, -1).sort(-1, descending=True)
    keep = torch.ones_like(probabilities, dtype=torch.bool)
    if top_k:
        keep[:, top_k:] = False
    keep &= probabilities.cumsum(-1) - probabilities < top_p
    keep &= probabilities >= min_p * probabilities[:, :1]
    keep[:, 0] = True
    drawn = torch.multinomial(probabilities * keep, 1, generator=generator)
    return ids.gather(1, drawn)[:, 0]


@torch.no_grad()
def generate(
    model: Transformer,
    prompts: torch.Tensor,
    *,
    max_new_tokens: int,
    num_samples: int = 1,
    use_cache: bool = True,
    prefix: KVCache | None = None,
    seed: int = 0,
    **sampling: Any,
) -> Iterator[torch.Tensor]:
    """Yield the next ids (P * num_samples,), int64, one step at a time.

    Args:
        model: generation runs on the device of its weights.
        prompts: (P, T) int64 ids; the samples of one prompt are adjacent in the output.
        max_new_tokens: number of decode steps; fewer at the end of the context.
        num_samples: continuations of each prompt; the prefill runs once per prompt.
        use_cache: False recomputes all positions at every step: slow, same tokens.
        prefix: prefix cache with the positions before the prompt, not modified; only for a single
            prompt and sample.
        seed: seeds the sampling.
        sampling: arguments of `sample_tokens`.
    """
    generator = torch.Generator(model.device).manual_seed(seed)
    length = prompts.shape[1]
    before = model.config.soft_tokens if prefix is None else prefix.length
    steps = min(model.config.max_seq_len - before - length, max_new_tokens)
    cache = KVCache(length + steps) if use_cache else None
    if prefix is not None:
        assert len(prompts) == num_samples == 1
        cache = prefix.fork(1, length + steps)
    tokens = prompts.to(model.device)
    # Prefill: one pass over the prompt.
    logits = model.output(model.features(tokens, cache)[:, -1]).repeat_interleave(num_samples, 0)
    tokens = tokens.repeat_interleave(num_samples, 0)
    if cache is not None and num_samples > 1:
        cache = cache.expand(len(tokens), steps)
    for step in range(steps):  # decode: one token per pass
        if step:
            new = tokens if cache is None else tokens[:, -1:]
            logits = model.output(model.features(new, cache)[:, -1])
        drawn = sample_tokens(logits, generator=generator, **sampling)
        yield drawn
        tokens = torch.cat([tokens, drawn[:, None]], 1)
