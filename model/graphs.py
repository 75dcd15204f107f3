"""Decode steps as captured CUDA graphs: a step is one launch, two copies to the GPU and one back.

A step of a small model is some hundred kernels, which take less time than their launches. A graph
launches them at once. There is one for each number of rows that is a power of two; all read lengths,
positions and sampling settings from tensors on the device, so that rows join, grow and leave without
a new capture. On a CPU the same step runs without a graph, for tests.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from model.adapters import Adapters
from model.cache import RowCache
from model.sampling import Sampling, Samplings, draw_token, draw_tokens
from model.transformer import Transformer

WARM_UP = 3  # steps before a capture: kernels are compiled, libraries allocate their workspaces


class Token(NamedTuple):
    """What a step needs to know of a row."""

    row: int
    position: int
    id: int
    previous: int
    """The id before it."""
    adapter: int
    """0: none."""
    sampling: Sampling
    uniform: float
    """The random number that draws the next token, in [0, 1)."""


class DecodeGraphs:
    """The decode steps of an engine, by number of rows."""

    def __init__(self, model: Transformer, cache: RowCache, rows: int, adapters: Adapters | None):
        """`rows` is the most that a step has."""
        self.model, self.cache, self.rows, self.adapters = model, cache, rows, adapters
        self.captures = model.device.type == "cuda"
        self.steps: dict[tuple[int, bool], _Step] = {}

    def step(self, tokens: Sequence[Token]) -> tuple[list[int], Tensor]:
        """The next id of each row and logits (N, V), in a graph of the next larger size, captured at its first use."""
        size = min(1 << (len(tokens) - 1).bit_length(), self.rows)
        key = size, all(token.sampling.temperature == 0 for token in tokens)
        if key not in self.steps:
            self.steps[key] = _Step(self, *key)
        return self.steps[key].run(tokens)


class _Step:
    """A decode step of `size` rows; all greedy, or with any settings."""

    def __init__(self, graphs: DecodeGraphs, size: int, is_greedy: bool):
        self.model, self.cache, self.adapters = graphs.model, graphs.cache, graphs.adapters
        self.size, self.is_greedy, self.captures = size, is_greedy, graphs.captures
        device = self.model.device
        is_gpu = device.type == "cuda"
        # Rows: the fields of Token up to `adapter`; those of Sampling and `uniform`.
        self.host = [torch.zeros(5, size, dtype=torch.int64, pin_memory=is_gpu)]
        self.host += [torch.zeros(5, size, dtype=torch.float64, pin_memory=is_gpu)]
        self.inputs = [torch.zeros_like(each, device=device) for each in self.host]
        self.graph: torch.cuda.CUDAGraph | None = None

    def run(self, tokens: Sequence[Token]) -> tuple[list[int], Tensor]:
        """The next ids, and logits (N, V) on the device; one host sync."""
        filled = [*tokens, *[tokens[0]] * (self.size - len(tokens))]  # the first row again: writes the same
        self.host[0].copy_(torch.tensor([token[:5] for token in filled]).T)
        settings = [(*token.sampling, token.uniform) for token in filled]
        self.host[1].copy_(torch.tensor(settings, dtype=torch.float64).T)
        for host, device in zip(self.host, self.inputs, strict=True):
            device.copy_(host, non_blocking=True)
        if self.captures:
            if self.graph is None:
                self._capture()
            assert self.graph is not None
            self.graph.replay()
        else:
            self.compute()
        ids, is_exact = self.drawn.tolist()
        drawn = [
            ids[at] if is_exact[at] else draw_token(self.logits[at], token.sampling, token.uniform)
            for at, token in enumerate(tokens)
        ]
        return drawn, self.logits

    def compute(self) -> None:
        """The step on the device: reads `inputs`, extends the cache, leaves `logits` (N, V) and `drawn` (2, N)."""
        rows, positions, ids, previous, numbers = self.inputs[0]
        self.cache.place(rows, positions, previous, self.cache.capacity)
        with self.adapters.numbered(numbers) if self.adapters else nullcontext():
            features = self.model.features(ids[None], self.cache)
        self.logits: Tensor = self.model.output(features[0])
        if self.is_greedy:
            drawn = self.logits.argmax(-1)
            self.drawn = torch.stack([drawn, torch.ones_like(drawn)])
        else:
            *settings, uniform = self.inputs[1]
            found, is_exact = draw_tokens(self.logits, Samplings(*settings), uniform)
            self.drawn = torch.stack([found, is_exact.to(found.dtype)])

    def _capture(self) -> None:
        # Every warm-up step writes the same keys and values as the step itself.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self.compute()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.compute()
