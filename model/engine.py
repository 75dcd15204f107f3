"""The inference engine: rows of a batch that join, decode and leave independently.

All rows share one read of the weights per step. A row's text does not depend on its neighbours, nor
on the order in which they came: it has its own random numbers, and the cache its own positions.
model/generate.py, and through it model/sample.py and prompts with open answers, use it. On a GPU a step
is a captured graph (model/graphs.py); on a CPU it checks drafts too.
"""

import random
from collections.abc import Sequence
from itertools import count, takewhile
from typing import NamedTuple

import torch
from torch import Tensor

from model.adapters import Adapters
from model.cache import Cache, KVCache, RowCache
from model.graphs import DecodeGraphs, Token
from model.quantized import cache_dtype
from model.sampling import Sampling, draw_token
from model.transformer import Transformer

CHUNK = 512  # tokens of a prompt that are read at a time
LEAST_SHARED = 16  # tokens of a prompt that are taken from another row instead of being read
DRAFT = 3  # tokens that prompt lookup proposes
NGRAM = 3  # last tokens that are looked up
MOST_DRAFTING = 2  # rows: of more rows at a time, drafts would cost more than they save
PATIENCE, LEAST_RIGHT, FORGET = 12, 0.4, 0.97  # drafted tokens; share of right ones; per step without a draft


class Score(NamedTuple):
    """The log-probability of a token before sampling settings, in nats, and the likeliest tokens at its place."""

    id: int
    logprob: float
    likeliest: list[tuple[int, float]]


def score_tokens(logits: Tensor, ids: Sequence[int], likeliest: int) -> list[Score]:
    """The scores of N tokens by logits (N, V)."""
    logprobs = torch.log_softmax(logits.float(), -1)
    own = logprobs[torch.arange(len(ids)), torch.tensor(ids)].tolist()
    top = logprobs.topk(likeliest, -1)
    pairs = (list(zip(*each, strict=True)) for each in zip(top.indices.tolist(), top.values.tolist(), strict=True))
    return [Score(*each) for each in zip(ids, own, pairs, strict=True)]


class Row:
    """A text that grows: a row of the engine's cache."""

    def __init__(self, ids: Sequence[int], sampling: Sampling, seed: str | int, limit: int, adapter: str = ""):
        self.ids, self.sampling, self.limit = list(ids), sampling, limit  # all ids so far, and most of them
        self.adapter = adapter
        self.is_read = False  # whether the whole prompt is in the cache
        self.likeliest = -1  # number of likeliest tokens that are recorded with each score; -1: no scores
        self.scores: list[Score] = []  # of the drawn tokens
        self.draw = random.Random(seed).random
        self.length = 0  # positions in the cache
        self.drafted = self.accepted = 0.0
        self.places: dict[tuple[int, ...], int] = {}  # n-gram -> where its latest occurrence ends
        self.indexed = NGRAM

    @property
    def is_full(self) -> bool:
        """Whether it has as many tokens as it may have."""
        return len(self.ids) >= self.limit

    def draft(self) -> list[int]:
        """Prompt lookup (Saxena 2023): what followed the last tokens when they occurred before.

        Nothing while too few drafts are right to pay for the wrong ones.
        """
        for end in range(self.indexed, len(self.ids)):
            self.places[tuple(self.ids[end - NGRAM : end])] = end
        self.indexed = max(self.indexed, len(self.ids))
        if self.drafted > PATIENCE and self.accepted < LEAST_RIGHT * self.drafted:
            self.drafted, self.accepted = self.drafted * FORGET, self.accepted * FORGET
            return []
        start = self.places.get(tuple(self.ids[-NGRAM:]))
        return [] if start is None else self.ids[start : start + DRAFT]

    @property
    def previous(self) -> int:
        """The id before the last one; 0 if there is none."""
        return self.ids[-2] if len(self.ids) > 1 else 0

    def uniform(self) -> float:
        """The random number of the next token, in [0, 1)."""
        return 0.0 if self.sampling.temperature == 0 else self.draw()

    def append(self, logits: Tensor) -> int:
        """Draw the next token from logits (V,)."""
        return self.take(draw_token(logits, self.sampling, self.uniform()), logits)

    def take(self, token: int, logits: Tensor) -> int:
        """Append a token that was drawn from logits (V,)."""
        self.ids.append(token)
        if self.likeliest >= 0:
            self.scores += score_tokens(logits[None], [token], self.likeliest)
        return token


class Prefill:
    """Prompts of one length that an engine reads, in parts; their rows are reserved."""

    def __init__(self, rows: slice, copies: int, prompts: Sequence[Sequence[int]], cache: KVCache, adapter: str):
        self.rows, self.copies, self.prompts, self.cache, self.adapter = rows, copies, prompts, cache, adapter
        self.at = 0  # of the prompts, what was read or taken from another row
        self.likeliest = -1  # as `Row.likeliest`, for the tokens of a single prompt
        self.scores: list[Score] = []  # of its tokens after the first


class Engine:
    """Generates for at most `rows` texts at a time, each of at most `capacity` tokens."""

    def __init__(self, model: Transformer, rows: int, capacity: int, adapters: Adapters | None = None):
        """`model` is in eval mode, in any precision; generation runs on its device.

        `adapters` are attached to the model; rows may have different ones.
        """
        self.model, self.adapters = model, adapters
        self.soft = model.config.soft_tokens
        capacity = min(capacity + self.soft, model.config.max_seq_len)
        self.cache = RowCache(model.config, rows, capacity, model.device, cache_dtype(model))
        self.rows: list[Row | None] = [None] * rows
        self.held: list[tuple[str, list[int]]] = [("", [])] * rows  # adapter and ids of what each free row still holds
        self.used = [0] * rows  # when each free row was last used
        self.clock = count(1)
        self.graphs = DecodeGraphs(model, self.cache, rows, adapters) if model.device.type == "cuda" else None

    def join(
        self,
        prompts: Sequence[Sequence[int]],
        samplings: Sequence[Sampling],
        seeds: Sequence[str | int],
        max_new_tokens: int,
        prefix: KVCache | None = None,
        adapter: str = "",
    ) -> list[tuple[int, int]]:
        """`begin`, and `read` to the end: returns (row, first token) of each continuation."""
        prefill = self.begin(prompts, samplings, seeds, max_new_tokens, prefix, adapter)
        while not (found := self.read(prefill)):
            pass
        return found

    def begin(
        self,
        prompts: Sequence[Sequence[int]],
        samplings: Sequence[Sampling],
        seeds: Sequence[str | int],
        max_new_tokens: int,
        prefix: KVCache | None = None,
        adapter: str = "",
        shares: bool = False,
    ) -> Prefill:
        """Reserve rows for prompts of one length.

        `samplings` and `seeds` have as many entries per prompt, for as many continuations, which are
        adjacent. `prefix` is a prefix cache of what precedes every prompt, with the same `adapter`, a
        name of the engine's adapters. `shares`: a single prompt may take its start from another row,
        active or not, that begins with the same tokens (prefix cache). Raises ValueError if there are
        not as many consecutive rows free.
        """
        wanted, copies = len(samplings), len(samplings) // len(prompts)
        first = self._find_free(wanted)
        shared = 0
        if shares and len(prompts) == 1 and not self.soft:
            shared, source = self._find_shared(prompts[0], adapter)
            self.cache.copy_start(source, first, shared)
            self.used[source] = next(self.clock)
            cache = self.cache.resume(first, shared, prompts[0][shared - 1])
        else:
            cache = self.cache.view(slice(first, first + wanted, copies), 0)
        if prefix is not None:
            _copy_prefix(prefix, cache)
        prefill = Prefill(slice(first, first + wanted), copies, prompts, cache, adapter)
        prefill.at = shared
        length = cache.length - shared + len(prompts[0]) + (self.soft if prefix is None else 0)
        for number, (sampling, seed) in enumerate(zip(samplings, seeds, strict=True)):
            ids = prompts[number // copies]
            limit = len(ids) + min(max_new_tokens, self.cache.capacity - length)
            self.rows[first + number] = Row(ids, sampling, seed, limit, adapter)
            self.held[first + number] = "", []
        return prefill

    @torch.no_grad()
    def read(self, prefill: Prefill, most: int = CHUNK) -> list[tuple[int, int]]:
        """Read at most this many tokens more; at the end (row, first token) of each continuation."""
        parts = [list(prompt[prefill.at : prefill.at + most]) for prompt in prefill.prompts]
        tokens = torch.tensor(parts, device=self.model.device)
        features = self._features(tokens, prefill.cache, [prefill.adapter] * len(parts))
        start, prefill.at = prefill.at, prefill.at + len(parts[0])
        if prefill.likeliest >= 0:
            following = prefill.prompts[0][start + 1 : prefill.at + 1]
            logits = self.model.output(features[0, : len(following)])
            prefill.scores += score_tokens(logits, following, prefill.likeliest)
        if prefill.at < len(prefill.prompts[0]):
            return []
        logits = self.model.output(features[:, -1])
        self.cache.finish_prefill(prefill.rows, prefill.copies, prefill.cache)
        found = []
        for number, place in enumerate(range(prefill.rows.start, prefill.rows.stop)):
            if (row := self.rows[place]) is not None:  # it may have left
                row.length, row.is_read = prefill.cache.length, True
                found.append((place, row.append(logits[number // prefill.copies])))
        return found

    def _find_shared(self, prompt: Sequence[int], adapter: str) -> tuple[int, int]:
        # How many tokens at the start of a prompt a row holds, and which row.
        best = 0, 0
        for place, row in enumerate(self.rows):
            held = self.held[place] if row is None else _held(row)
            if held[0] == adapter:
                pairs = zip(prompt[:-1], held[1], strict=False)
                same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
                best = max(best, (same, place))
        return best if best[0] >= LEAST_SHARED else (0, 0)

    def _features(self, tokens: Tensor, cache: Cache, adapters: Sequence[str]) -> Tensor:
        if self.adapters is None:
            return self.model.features(tokens, cache)
        with self.adapters.of_rows(adapters):
            return self.model.features(tokens, cache)

    def _find_free(self, wanted: int) -> int:
        starts = range(len(self.rows) - wanted + 1)
        free = [first for first in starts if not any(self.rows[first : first + wanted])]
        if not free:
            raise ValueError(f"no {wanted} consecutive rows of {len(self.rows)} are free")
        return min(free, key=lambda first: self.used[first])  # the one whose start is least likely to be shared

    def leave(self, row: int) -> None:
        """Free a row. What it holds may start another text, until a third one takes its place."""
        left = self.rows[row]
        assert left
        self.held[row] = _held(left)
        self.used[row] = next(self.clock)
        self.rows[row] = None

    @torch.no_grad()
    def step(self) -> dict[int, list[int]]:
        """The next tokens of every row that is not full: one, or more where a draft was right."""
        active = {number: row for number, row in enumerate(self.rows) if row and row.is_read and not row.is_full}
        if not active:
            return {}
        return self._step_with_drafts(active) if self.graphs is None else self._step_in_graph(self.graphs, active)

    def _step_in_graph(self, graphs: DecodeGraphs, active: dict[int, Row]) -> dict[int, list[int]]:
        numbers = {"": 0} if self.adapters is None else self.adapters.numbers_of
        tokens = [
            Token(number, row.length, row.ids[-1], row.previous, numbers[row.adapter], row.sampling, row.uniform())
            for number, row in active.items()
        ]
        drawn, logits = graphs.step(tokens)
        for at, (row, token) in enumerate(zip(active.values(), drawn, strict=True)):
            row.length += 1
            row.take(token, logits[at])
        return {number: [token] for number, token in zip(active, drawn, strict=True)}

    def _step_with_drafts(self, active: dict[int, Row]) -> dict[int, list[int]]:
        tokens: list[int] = []
        places: list[int] = []
        positions: list[int] = []
        previous: list[int] = []
        drafts: dict[int, list[int]] = {}
        for number, row in active.items():
            draft = row.draft() if len(active) <= MOST_DRAFTING else []
            drafts[number] = draft[: row.limit - len(row.ids) - 1]
            fed = [row.ids[-1], *drafts[number]]
            tokens += fed
            places += [number] * len(fed)
            positions += range(row.length, row.length + len(fed))
            previous += [row.previous, *fed[:-1]]
        device, longest = self.model.device, max(positions) + 1
        placed = [torch.tensor(each, device=device) for each in (places, positions, previous)]
        self.cache.place(placed[0], placed[1], placed[2], longest)
        adapters = [row.adapter for number, row in active.items() for _ in range(1 + len(drafts[number]))]
        features = self._features(torch.tensor([tokens], device=device), self.cache, adapters)
        logits, at, new = self.model.output(features[0]), 0, {}
        for number, row in active.items():
            new[number] = self._accept(row, drafts[number], logits[at:])
            at += 1 + len(drafts[number])
        return new

    def _accept(self, row: Row, draft: list[int], logits: Tensor) -> list[int]:
        # Draws from the model at each position; a drafted token that was drawn costs no further step.
        drawn = []
        for i in range(len(draft) + 1):
            row.length += 1
            drawn.append(row.append(logits[i]))
            if i == len(draft) or drawn[-1] != draft[i]:
                break
        row.drafted += len(draft)
        row.accepted += len(drawn) - 1
        return drawn


def _held(row: Row) -> tuple[str, list[int]]:
    # Adapter and ids of the positions that a row has in the cache; none after a prefix, whose ids are unknown.
    return row.adapter, row.ids[: row.length] if row.length <= len(row.ids) else []


def _copy_prefix(prefix: KVCache, cache: KVCache) -> None:
    # The positions of a prefix cache, which may itself continue others, to all rows of a view.
    start = 0
    for part in (*prefix.prefixes, prefix):
        size = part.length - part.prefix_length
        for layer, kv in part.layers.items():
            cache.layers[layer][:, :, start : start + size] = kv[:, :, :size]
        start += size
    cache.length, cache.last_tokens = prefix.length, prefix.last_tokens
    cache.last_keys = dict(prefix.last_keys)
