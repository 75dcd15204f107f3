"""The KV cache of generation, with shared prefixes (prefix cache)."""

import torch


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

    def previous_keys(self, layer: int, k: torch.Tensor) -> torch.Tensor:
        """The (B, 1, K, D) keys before `k` (B, T, K, D), or zeros; stores the last keys of `k`."""
        previous = self.last_keys.get(layer, torch.zeros_like(k[:, :1]))
        self.last_keys[layer] = k[:, -1:]
        return previous

    def extend(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Append (B, T, K, D) keys and values; return all of this cache's own, (B, S, K, D)."""
        B, T, K, D = k.shape
        if layer not in self.layers:
            self.layers[layer] = k.new_empty(2, B, self.capacity, K, D)
        kv, start = self.layers[layer], self.length - self.prefix_length
        kv[0, :, start : start + T] = k
        kv[1, :, start : start + T] = v
        return kv[0, :, : start + T], kv[1, :, : start + T]

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
