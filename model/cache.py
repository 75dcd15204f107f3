"""What generation keeps of the positions it has seen."""

import torch


class KVCache:
    """Keys and values of the positions seen so far, one pair of tensors per layer."""

    def __init__(self, length: int):
        """Room for `length` positions; the first keys decide batch, dtype and device."""
        self.room = length
        self.length = 0
        self.last = torch.zeros(1, 1, dtype=torch.int64)  # (B, 1), ids of the newest position
        self.layers: dict[int, torch.Tensor] = {}
        self.newest: dict[int, torch.Tensor] = {}  # (B, 1, K, D) per layer, not shifted

    def before(self, layer: int, k: torch.Tensor) -> torch.Tensor:
        """The (B, 1, K, D) keys before `k` (B, T, K, D), or zeros; the last of `k` are kept."""
        found = self.newest.get(layer, torch.zeros_like(k[:, :1]))
        self.newest[layer] = k[:, -1:]
        return found

    def extend(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Store (B, T, K, D) after the cached positions; return all of both, (B, S, K, D)."""
        B, T, K, D = k.shape
        if layer not in self.layers:
            self.layers[layer] = k.new_empty(2, B, self.room, K, D)
        kv, end = self.layers[layer], self.length + T
        kv[0, :, self.length : end] = k
        kv[1, :, self.length : end] = v
        return kv[0, :, :end], kv[1, :, :end]

    def expand(self, batch: int, extra: int) -> "KVCache":
        """A copy with room for `extra` positions, its rows repeated (each in place) to `batch`."""
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
