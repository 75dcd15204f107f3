"""Autoregressive generation with a KV cache."""

from collections.abc import Iterator

import torch

from model.cache import KVCache
from model.transformer import Transformer


def choose(
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
        temperature: 0 takes the likeliest token and ignores the rest.
        top_k: keep exactly the k likeliest tokens; 0 keeps all.
        top_p: keep the fewest likeliest tokens that hold this probability (Holtzman et al. 2020).
        min_p: drop tokens below this share of the likeliest one's probability (Nguyen et al. 2024).
        generator: source of randomness, on the device of `logits`.

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
    **how,
) -> Iterator[torch.Tensor]:
    """Yield the next ids (P * num_samples,), int64, one step at a time.

    Args:
        model: its weights' device is where everything happens.
        prompts: (P, T) int64 ids; the samples of a prompt follow each other in what is yielded.
        max_new_tokens: steps to take; fewer if the context ends.
        num_samples: continuations of each prompt, which is read once.
        use_cache: False runs the whole text at every step: slow, the same tokens.
        prefix: positions before one prompt, of which one sample is drawn; stays as it is.
        seed: of the draws.
        how: arguments of `choose`.
    """
    generator = torch.Generator(model.device).manual_seed(seed)
    length = prompts.shape[1]
    known = model.config.soft_tokens if prefix is None else prefix.length
    steps = min(model.config.max_seq_len - known - length, max_new_tokens)
    cache = KVCache(length + steps) if use_cache else None
    if prefix is not None:
        assert len(prompts) == num_samples == 1
        cache = prefix.fork(1, length + steps)
    tokens = prompts.to(model.device)
    logits = model.output(model.features(tokens, cache)[:, -1]).repeat_interleave(num_samples, 0)
    tokens = tokens.repeat_interleave(num_samples, 0)
    if cache is not None and num_samples > 1:
        cache = cache.expand(len(tokens), steps)
    for step in range(steps):
        if step:
            new = tokens if cache is None else tokens[:, -1:]
            logits = model.output(model.features(new, cache)[:, -1])
        drawn = choose(logits, generator=generator, **how)
        yield drawn
        tokens = torch.cat([tokens, drawn[:, None]], 1)
