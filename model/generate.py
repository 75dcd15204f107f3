"""Generate from prompts of one length: the engine's rows in lockstep."""

import random
from collections import deque
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch

from model.adapters import Adapters
from model.cache import KVCache
from model.engine import Engine
from model.sampling import Sampling, draw_token
from model.transformer import Transformer


@torch.no_grad()
def generate(
    model: Transformer,
    prompts: torch.Tensor,
    *,
    max_new_tokens: int,
    num_samples: int = 1,
    use_cache: bool = True,
    prefix: KVCache | None = None,
    adapters: Adapters | None = None,
    adapter: str = "",
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
        prefix: prefix cache with the positions before the prompt, not modified.
        adapters: unmerged adapters that are attached to the model.
        adapter: name of the one that these texts use.
        seed: seeds the sampling; every continuation has random numbers of its own.
        sampling: fields of `model.sampling.Sampling`.
    """
    count, length = len(prompts) * num_samples, prompts.shape[1]
    before = model.config.soft_tokens if prefix is None else prefix.length
    steps = min(model.config.max_seq_len - before - length, max_new_tokens)
    samplings, seeds = [Sampling(**sampling)] * count, [f"{seed}:{row}" for row in range(count)]
    if not use_cache:
        with adapters.of_rows([adapter] * count) if adapters else nullcontext():
            yield from _without_cache(model, prompts.repeat_interleave(num_samples, 0), samplings, seeds, steps)
        return
    if steps < 1:
        return
    engine = Engine(model, count, before + length + steps, adapters)
    joined = engine.join(prompts.tolist(), samplings, seeds, steps, prefix, adapter)
    waiting = [deque([token]) for _, token in joined]
    for _ in range(steps):
        while not all(waiting):
            for row, tokens in engine.step().items():
                waiting[row].extend(tokens)
        yield torch.tensor([row.popleft() for row in waiting])


def _without_cache(
    model: Transformer, tokens: torch.Tensor, samplings: list[Sampling], seeds: list[str], steps: int
) -> Iterator[torch.Tensor]:
    draws = [random.Random(seed).random for seed in seeds]
    tokens = tokens.to(model.device)
    for _ in range(steps):
        logits = model.output(model.features(tokens)[:, -1])
        drawn = [draw_token(row, each, draw()) for row, each, draw in zip(logits, samplings, draws, strict=True)]
        yield torch.tensor(drawn)
        tokens = torch.cat([tokens, torch.tensor(drawn, device=tokens.device)[:, None]], 1)
