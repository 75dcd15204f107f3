"""The cases that `kernels.bench` times: our implementation first, then torch's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from kernels.attention import attention, first_keys
from kernels.linear_cross_entropy import linear_cross_entropy
from kernels.mlp import relu2, swiglu
from kernels.norm import rms_norm
from kernels.rope import rope
from kernels.rope.reference import rope_reference

Implementation = Callable[..., torch.Tensor]


@dataclass
class Case:
    """A name, inputs that need gradients, implementations to time, and the minimum cost."""

    name: str
    inputs: Callable[[torch.device, torch.dtype], list[torch.Tensor]]
    implementations: Callable[[torch.device], dict[str, Implementation]]
    cost: Callable[[torch.dtype], tuple[float, float]]
    """FLOPs and bytes of a forward and a backward pass."""


def random_inputs(shapes: list[tuple[int, ...]], device: torch.device, dtype: torch.dtype) -> list[torch.Tensor]:
    """Normally distributed tensors of these shapes that need gradients."""
    return [torch.randn(s, device=device, dtype=dtype).requires_grad_() for s in shapes]


def attention_case(
    name: str,
    T: int,
    D: int,
    *,
    B: int,
    H: int = 4,
    K: int = 4,
    causal: bool = True,
    window: int = 0,
    documents: int = 0,
) -> Case:
    """Attention over T positions; `documents` is the number of packed documents of equal length."""

    def ids(device) -> torch.Tensor | None:
        if not documents:
            return None
        return (torch.arange(T, device=device) * documents // T).expand(B, T).contiguous()

    def implementations(device) -> dict[str, Implementation]:
        first = None
        if window or documents:
            first = first_keys(T, window=window, documents=ids(device), device=device)
            first = first.expand(B, T).contiguous()
        ours = partial(attention, causal=causal, first=first)
        found: dict[str, Implementation] = {"ours": lambda q, k, v: ours(q, k, v)[0]}
        if device.type == "cuda":
            found["flex"] = compile_flex(device, causal, window, ids(device), B, T)
        if first is None:
            found |= sdpa_backends(device, causal)
        else:
            bounds = first

            def masked(q, k, v):  # building the mask is part of the cost of this implementation
                position = torch.arange(T, device=device)
                mask = position[None, :] <= position[:, None]
                mask = mask & (position[None, None, :] >= bounds[:, :, None])
                return sdpa(q, k, v, attn_mask=mask[:, None])

            found["sdpa, mask"] = masked
        return found

    def cost(dtype):
        count, length = max(1, documents), T // max(1, documents)
        pairs = count * sum(min(t + 1, window or length) for t in range(length)) if causal else T * T
        flops = 3.5 * 4 * B * H * D * pairs
        elements = B * T * D * (H * 2 + K * 2)
        return flops, 3 * elements * dtype.itemsize

    return Case(name, partial(random_inputs, [(B, T, H, D), (B, T, K, D), (B, T, K, D)]), implementations, cost)


def sdpa(q, k, v, **settings) -> torch.Tensor:
    """SDPA (scaled_dot_product_attention of torch) on (B, T, H, D)."""
    grouped = q.shape[2] != k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=grouped, **settings).transpose(1, 2)


def sdpa_backends(device: torch.device, causal: bool) -> dict[str, Implementation]:
    """Every SDPA backend that the device supports."""
    if device.type != "cuda":
        return {"sdpa": lambda q, k, v: sdpa(q, k, v, is_causal=causal)}
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def forced(backend):
        def attend(q, k, v):
            with sdpa_kernel(backend):
                return sdpa(q, k, v, is_causal=causal)

        return attend

    return {
        "sdpa flash": forced(SDPBackend.FLASH_ATTENTION),
        "sdpa cuDNN": forced(SDPBackend.CUDNN_ATTENTION),
        "sdpa math": forced(SDPBackend.MATH),
    }


def compile_flex(device, causal, window, documents, B, T) -> Implementation:
    """FlexAttention, compiled, with a block mask for sliding window and documents."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def visible(b, h, q, k):
        seen = (k <= q) if causal else (q >= 0)
        if window:
            seen = seen & (q - k < window)
        if documents is not None:
            seen = seen & (documents[b, q] == documents[b, k])
        return seen

    mask = create_block_mask(visible, B, None, T, T, device=device)
    torch._dynamo.reset()  # after eight shapes of one function, it would not compile further ones
    compiled = torch.compile(flex_attention, dynamic=False)

    def attend(q, k, v):
        return compiled(
            *(x.transpose(1, 2) for x in (q, k, v)), block_mask=mask, enable_gqa=q.shape[2] != k.shape[2]
        ).transpose(1, 2)

    return attend


def loss_case(name: str, N: int, C: int, V: int) -> Case:
    """Projection of N tokens to V logits, and cross entropy."""

    def inputs(device, dtype):
        x = torch.randn(N, C, device=device, dtype=dtype)
        weight = torch.randn(V, C, device=device, dtype=dtype) * C**-0.5
        return [x.requires_grad_(), weight.requires_grad_()]

    def implementations(device) -> dict[str, Implementation]:
        targets = torch.arange(N, device=device) * 7919 % V
        return {
            "ours": lambda x, w: linear_cross_entropy(x, w, targets)[0],
            "plain": lambda x, w: F.cross_entropy(F.linear(x, w).float(), targets, reduction="sum"),
        }

    return Case(name, inputs, implementations, lambda dtype: (6.0 * N * C * V, 3.0 * (N + V) * C * dtype.itemsize))


def elementwise_case(
    name: str,
    shapes: list[tuple[int, ...]],
    implementations: Callable[[torch.device], dict[str, Implementation]],
    passes: int,
) -> Case:
    """A memory-bound kernel that reads and writes its first input `passes` times."""

    def cost(dtype):
        return 0.0, float(passes * torch.Size(shapes[0]).numel() * dtype.itemsize)

    return Case(name, partial(random_inputs, shapes), implementations, cost)


def rope_implementations(device) -> dict[str, Implementation]:
    """QK-norm and rotary positions."""
    table = torch.randn(2, T, 32, device=device)
    return {"ours": lambda x, w: rope(x, table, w), "torch": lambda x, w: rope_reference(x, table, w, 1e-5)}


T = 4096
B = 8 if torch.cuda.is_available() else 1
ROWS = (4 * T, 768)
CASES = [
    attention_case("causal-64", T, 64, B=B),
    attention_case("causal-128", T, 128, B=B),
    attention_case("full-64", T, 64, B=B, causal=False),
    attention_case("grouped-64", T, 64, B=B, K=1),
    attention_case("window", T, 64, B=B, window=T // 8),
    attention_case("documents", T, 64, B=B, documents=8),
    loss_case("loss", T, 576, 49152),
    elementwise_case(
        "norm",
        [ROWS, (768,)],
        lambda device: {
            "ours": lambda x, w: rms_norm(x, w, 1e-5)[0],
            "torch": lambda x, w: F.rms_norm(x, w.shape, w, 1e-5),
        },
        5,
    ),
    elementwise_case("swiglu", [ROWS, ROWS], lambda device: {"ours": swiglu, "torch": lambda a, b: F.silu(a) * b}, 8),
    elementwise_case("relu2", [ROWS], lambda device: {"ours": relu2, "torch": lambda a: F.relu(a).square()}, 5),
    elementwise_case("rope", [(4, T, 8, 64), (64,)], rope_implementations, 5),
]


def length_cases(tokens: int, lengths: Sequence[int]) -> list[Case]:
    """Attention in the shapes of models, at other lengths than that of the tiles' search."""
    cases = [attention_case(f"gpt2-{length}", length, 64, B=tokens // length, H=12, K=12) for length in lengths]
    cases += [attention_case(f"llama-1b-{length}", length, 64, B=tokens // length, H=32, K=8) for length in lengths]
    *_, longest = lengths
    return [*cases, attention_case("gpt2-window", longest, 64, B=tokens // longest, H=12, K=12, window=longest // 8)]


if torch.cuda.is_available():
    CASES += length_cases(32_768, (512, 1024, 2048, 4096, 8192))
