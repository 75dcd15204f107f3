"""KV caches: of one sequence of positions, with shared prefixes, and of rows of any length."""

import torch

from configs.schema import ModelConfig
from model.fused import attend, decode_attention


class KVCache:
    """Keys and values of all earlier positions, one tensor per layer.

    It is also a prefix cache: `fork` starts rows that continue a shared prompt prefix, which is
    stored once.
    """

    def __init__(self, capacity: int):
        """An empty cache of `capacity` positions; the first keys set batch, dtype and device."""
        self.capacity = capacity
        self.length = 0  # positions so far, prefixes included
        self.prefix_length = 0  # positions that `prefixes` hold
        self.prefixes: tuple[KVCache, ...] = ()  # caches with one row each, in order
        self.last_tokens = torch.zeros(1, 1, dtype=torch.int64)  # (B, 1) ids, for bigram embeddings
        self.layers: dict[int, torch.Tensor] = {}  # (2, B, capacity, K, D) per layer
        self.last_keys: dict[int, torch.Tensor] = {}  # (B, 1, K, D) per layer, before the key shift
        self.raw_keys: list[torch.Tensor] = []  # (B, capacity, K, D) per layer: where a `RowCache` keeps them

    def end_after(self, T: int) -> int:
        """Number of positions after T more."""
        return self.length + T

    def positions(self, T: int) -> slice:
        """The positions of the next T tokens."""
        return slice(self.length, self.length + T)

    def advance(self, tokens: torch.Tensor, T: int) -> None:
        """Count T positions more, the last of which are `tokens` (B, T)."""
        self.length, self.last_tokens = self.length + T, tokens[:, -1:]

    def previous_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, T): the id before each of the next `tokens`; 0 at the start."""
        last = self.last_tokens.to(tokens.device).expand(len(tokens), 1)
        return torch.cat([last, tokens[:, :-1]], 1)

    def shift_keys(self, layer: int, k: torch.Tensor) -> torch.Tensor:
        """(B, T, K, D): the keys of the position before each of `k`; zeros at the start."""
        if self.raw_keys:
            self.raw_keys[layer][:, self.length : self.length + k.shape[1]] = k
        previous = self.last_keys.get(layer, torch.zeros_like(k[:, :1]))
        self.last_keys[layer] = k[:, -1:]
        return torch.cat([previous, k[:, :-1]], 1)

    def extend(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Append (B, T, K, D) keys and values; return all of this cache's own, (B, S, K, D)."""
        B, T, K, D = k.shape
        if layer not in self.layers:
            self.layers[layer] = k.new_empty(2, B, self.capacity, K, D)
        kv, start = self.layers[layer], self.length - self.prefix_length
        kv[0, :, start : start + T] = k
        kv[1, :, start : start + T] = v
        return kv[0, :, : start + T], kv[1, :, : start + T]

    def attend(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        document_starts: torch.Tensor | None,
        window: int,
    ) -> torch.Tensor:
        """Append keys and values; attention of q (B, T, H, D) over all of them -> (B, T, H, D)."""
        k, v = self.extend(layer, k, v)
        o = attend(q.to(k.dtype), k, v, document_starts, self.prefix_keys_values(layer), window)
        return o.to(q.dtype)

    def prefix_keys_values(self, layer: int) -> list[torch.Tensor]:
        """Keys and values, (2, 1, S, K, D), of each shared prefix."""
        return [prefix.layers[layer][:, :, : prefix.length - prefix.prefix_length] for prefix in self.prefixes]

    def fork(self, batch: int, capacity: int) -> "KVCache":
        """An empty cache of `batch` rows that all continue the one row of this one, without a copy."""
        child = KVCache(capacity)
        child.length = child.prefix_length = self.length
        child.prefixes = (*self.prefixes, self)
        child.last_tokens = self.last_tokens.expand(batch, 1)
        child.last_keys = {layer: k.expand(batch, -1, -1, -1) for layer, k in self.last_keys.items()}
        return child

    def expand(self, batch: int, extra: int) -> "KVCache":
        """A copy with capacity for `extra` more positions and each row repeated, `batch` rows in all."""
        assert not self.prefixes
        copy = KVCache(self.length + extra)
        copy.length = self.length
        copy.last_tokens = self.last_tokens.repeat_interleave(batch // len(self.last_tokens), 0)
        for layer, k in self.last_keys.items():
            copy.last_keys[layer] = k.repeat_interleave(batch // len(k), 0)
        for layer, kv in self.layers.items():
            two, rows, _, K, D = kv.shape
            used = kv[:, :, : self.length].repeat_interleave(batch // rows, 1)
            copy.layers[layer] = kv.new_empty(two, batch, copy.capacity, K, D)
            copy.layers[layer][:, :, : self.length] = used
        return copy


class RowCache:
    """The static KV cache of decode: rows that join, grow and leave independently; allocated once.

    The model sees the next tokens of all rows as one sequence (1, N); `place` says to which row and
    position each belongs.
    """

    def __init__(
        self, config: ModelConfig, rows: int, capacity: int, device: torch.device, dtype: torch.dtype = torch.float32
    ):
        """`rows` of `capacity` positions."""
        self.count, self.capacity = rows, capacity
        shape = 2, rows * capacity, config.n_kv_heads, config.head_dim
        # Zeros: a position without a key has no weight, but NaN times zero is NaN.
        self.layers = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.n_layers)]
        half = rows * capacity, config.n_kv_heads // 2, config.head_dim
        layers = range(config.n_layers if config.key_shift else 0)
        self.raw_keys = [torch.zeros(half, device=device, dtype=dtype) for _ in layers]

    def view(self, rows: slice, length: int) -> KVCache:
        """A cache for prefill whose keys and values are those of `rows`, which hold `length` positions."""
        cache = KVCache(self.capacity)
        cache.length = length
        for layer, kv in enumerate(self.layers):
            cache.layers[layer] = kv.unflatten(1, (self.count, self.capacity))[:, rows]
        cache.raw_keys = [raw.unflatten(0, (self.count, self.capacity))[rows] for raw in self.raw_keys]
        return cache

    def copy_start(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of row `source` to row `target`."""
        if source == target:
            return
        for kv in (*self.layers, *(raw[None] for raw in self.raw_keys)):
            rows = kv.unflatten(1, (self.count, self.capacity))
            rows[:, target, :length] = rows[:, source, :length]

    def resume(self, row: int, length: int, last_id: int) -> KVCache:
        """A cache for prefill of `row` after its first `length` positions, the last of which is of token `last_id`."""
        cache = self.view(slice(row, row + 1), length)
        if length:
            cache.last_tokens = torch.full((1, 1), last_id)
            for layer, raw in enumerate(self.raw_keys):
                cache.last_keys[layer] = raw[row * self.capacity + length - 1][None, None]
        return cache

    def finish_prefill(self, rows: slice, copies: int, cache: KVCache) -> None:
        """Copy each row that was read to the `copies` - 1 rows after it."""
        for kv in (*self.layers, *(raw[None] for raw in self.raw_keys)):
            row = kv.unflatten(1, (self.count, self.capacity))[:, rows.start : rows.stop, : cache.length]
            groups = row.unflatten(1, (-1, copies))
            groups[:, :, 1:] = groups[:, :, :1]

    def place(self, rows: torch.Tensor, positions: torch.Tensor, previous: torch.Tensor, longest: int) -> None:
        """The next N tokens: their rows and positions, and the ids before them; (N,) int64 each.

        `longest`: length of the longest row with them, or more; to read it from a GPU would be a host sync.
        """
        self.at, self.previous = positions, previous
        self.slots = torch.arange(longest, device=positions.device)
        self.starts: torch.Tensor | None = rows * self.capacity
        self.own = slice(None)
        if rows.device.type == "cpu" and bool((rows == rows[0]).all()):  # one row is a slice: nothing to gather
            start = int(rows[0]) * self.capacity
            self.starts, self.own = None, slice(start, start + len(self.slots))

    def keys_values(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(P, K, D) each: of all rows, or the positions of the one that has tokens."""
        keys, values = self.layers[layer]
        return keys[self.own], values[self.own]

    def places(self) -> torch.Tensor:
        """(N,): where the tokens are among the keys that they see."""
        return self.at if self.starts is None else self.starts + self.at

    def positions(self, T: int) -> torch.Tensor:
        """(N,) positions of the tokens."""
        return self.at

    def end_after(self, T: int) -> int:
        """The longest row after these tokens."""
        return len(self.slots)

    def advance(self, tokens: torch.Tensor, T: int) -> None:
        """Nothing: whoever calls `place` counts."""

    def previous_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """As `KVCache.previous_tokens`."""
        return self.previous[None]

    def shift_keys(self, layer: int, k: torch.Tensor) -> torch.Tensor:
        """As `KVCache.shift_keys`."""
        raw, at = self.raw_keys[layer][self.own], self.places()
        raw[at] = k[0].to(raw.dtype)
        before = torch.where((self.at > 0)[:, None, None], raw[(at - 1).clamp(min=0)], 0)
        return before[None].to(k.dtype)

    def attend(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        document_starts: torch.Tensor | None,
        window: int,
    ) -> torch.Tensor:
        """As `KVCache.attend`: q (1, N, H, D), each token over the keys of its row."""
        (keys, values), at = self.keys_values(layer), self.places()
        keys[at] = k[0].to(keys.dtype)
        values[at] = v[0].to(values.dtype)
        return decode_attention(q[0], keys, values, self.starts, self.at, self.slots, window)[None]


Cache = KVCache | RowCache
