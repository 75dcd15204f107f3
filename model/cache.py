"""The KV cache of generation, with shared prefixes."""

import torch


class KVCache:
    """Keys and values of the positions so far, one pair of tensors per layer.

    A prefix cache: `fork` starts rows that continue a shared prompt prefix, which is stored once.
    """

    def __init__(self, length: int):
        """Room for `length` positions; the first keys decide batch, dtype and device."""
        self.room = length
        self.length = 0  # positions so far, prefixes included
        self.start = 0  # positions of the prefixes
        self.prefixes: tuple[KVCache, ...] = ()  # caches of one row each, in order
        self.last = torch.zeros(1, 1, dtype=torch.int64)  # (B, 1), ids of the newest position
        self.layers: dict[int, torch.Tensor] = {}
        self.newest: dict[int, torch.Tensor] = {}  # (B, 1, K, D) per layer, before the key shift

    def previous_keys(self, layer: int, k: torch.Tensor) -> torch.Tensor:
        """The (B, 1, K, D) keys before `k` (B, T, K, D), or zeros; the last of `k` are kept."""
        found = self.newest.get(layer, torch.zeros_like(k[:, :1]))
        self.newest[layer] = k[:, -1:]
        return found

    def extend(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Store (B, T, K, D) after its own positions; return all of these, (B, S, K, D)."""
        B, T, K, D = k.shape
        if layer not in self.layers:
            self.layers[layer] = k.new_empty(2, B, self.room, K, D)
        kv, begin = self.layers[layer], self.length - self.start
        kv[0, :, begin : begin + T] = k
        kv[1, :, begin : begin + T] = v
        return kv[0, :, : begin + T], kv[1, :, : begin + T]

    def prefix_keys_values(self, layer: int) -> list[torch.Tensor]:
        """Keys and values, (2, 1, S, K, D), of each shared prefix."""
        return [prefix.layers[layer][:, :, : prefix.length - prefix.start] for prefix in self.prefixes]

    def fork(self, batch: int, room: int) -> "KVCache":
        """An empty cache of `batch` rows that all continue the one row here, without a copy."""
        child = KVCache(room)
        child.length = child.start = self.length
        child.prefixes = (*self.prefixes, self)
        child.last = self.last.expand(batch, 1)
        child.newest = {layer: k.expand(batch, -1, -1, -1) for layer, k in self.newest.items()}
        return child

    def expand(self, batch: int, extra: int) -> "KVCache":
        """A copy with room for `extra` positions, its rows repeated (each in place) to `batch`."""
        assert not self.prefixes
        copy = KVCache(self.length + extra)
        copy.length = self.length
        copy.last = self.last.repeat_interleave(batch // len(self.last), 0)
        for layer, k in self.newest.items():
            copy.newest[layer] = k.repeat_interleave(batch // len(k), 0)
        for layer, kv in self.layers.items():
            two, rows, _, K, D = kv.shape
            seen = kv[:, :, : self.length].repeat_interleave(batch // rows, 1)
            copy.layers[layer] = kv.new_empty(two, batch, copy.room, K, D)
            copy.layers[layer][:, :, : self.length] = seen
        return copy
