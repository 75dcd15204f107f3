"""The variants of the step that benchmarks/mfu.py times, each with one thing changed."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

import kernels.linear_cross_entropy.ops
import model.norm
import model.transformer
from kernels.mlp.reference import swiglu_reference
from kernels.norm.reference import rms_norm_reference
from kernels.rope.reference import rope_reference
from model.transformer import IGNORE, Transformer


@dataclass(frozen=True)
class Variant:
    """One implementation of the step; the defaults are ours."""

    attention: str = "ours"  # ours, sdpa, cudnn, flex
    loss: str = "ours"  # ours, torch
    masked: bool = False  # scored rows are selected by a boolean index, which is a host sync
    extent: str = "model"  # what is compiled as one graph: model, blocks, "" (nothing)
    graph: bool = False  # torch.compile captures CUDA graphs
    one_product: bool = False  # one for q, k and v, one for w1 and w3; the weights are joined each time
    torch_elementwise: bool = False  # norm, rope and SwiGLU in plain torch
    clip_in_update: bool = False  # AdamW divides the gradients as it reads them
    bfloat16_residual: bool = False
    chunk_bytes: int = 0  # logits of one chunk of the loss; 0 is our default
    rows_factor: float = 1.0  # rows per pass, relative to --rows


VARIANTS = {
    "ours": Variant(),
    "ours, blocks": Variant(extent="blocks"),
    "ours, eager": Variant(extent=""),
    "ours, masked loss": Variant(masked=True, extent="blocks"),  # compare with "ours, blocks"
    "ours, torch's loss": Variant(loss="torch"),
    "ours, SDPA": Variant("sdpa"),
    "ours, cuDNN": Variant("cudnn"),
    "ours, FlexAttention": Variant("flex"),
    "torch": Variant("sdpa", "torch"),
    "torch, blocks": Variant("sdpa", "torch", extent="blocks"),
    "torch, cuDNN": Variant("cudnn", "torch"),
    "torch, masked loss": Variant("sdpa", "torch", masked=True, extent="blocks"),
    "torch, graph": Variant("sdpa", "torch", graph=True),
    "ours, graph": Variant(graph=True),
    "ours, half the rows": Variant(rows_factor=0.5),
    "ours, twice the rows": Variant(rows_factor=2),
    "ours, joined products": Variant(one_product=True),
    "ours, clipping in AdamW": Variant(clip_in_update=True),
    "ours, torch's norm, rope, SwiGLU": Variant(torch_elementwise=True),
    "ours, eager, torch's norm, rope, SwiGLU": Variant(torch_elementwise=True, extent=""),
    "ours, bfloat16 residual stream": Variant(bfloat16_residual=True),
    "ours, chunks of 64 MiB": Variant(chunk_bytes=1 << 26),
    "ours, chunks of 1 GiB": Variant(chunk_bytes=1 << 30),
}
GROUPS = {  # each takes 5 to 7 minutes on an H100
    "anatomy": ["ours", "ours, blocks", "ours, masked loss", "torch", "torch, blocks", "torch, masked loss"],
    "attention": ["ours", "ours, SDPA", "ours, cuDNN", "ours, FlexAttention", "torch", "torch, cuDNN"],
    "graph": ["ours", "ours, graph", "ours, eager", "torch", "torch, graph"],
    "changes": [
        "ours",
        "ours, torch's loss",
        "torch",
        "ours, joined products",
        "ours, bfloat16 residual stream",
        "ours, clipping in AdamW",
    ],
    "elementwise": [
        "ours",
        "ours, torch's norm, rope, SwiGLU",
        "ours, eager",
        "ours, eager, torch's norm, rope, SwiGLU",
    ],
    "sizes": ["ours", "ours, half the rows", "ours, twice the rows", "ours, chunks of 64 MiB", "ours, chunks of 1 GiB"],
}

MASKS: dict[int, BlockMask] = {}  # of `flex`, by length


def sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: object) -> torch.Tensor:
    """`model.fused.attend` without a cache or mask, with torch's SDPA, which selects the backend."""
    heads = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True).transpose(1, 2)


def cudnn(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: object) -> torch.Tensor:
    """Same as `sdpa`, by cuDNN. The choice is part of the compiled code, as torch.compile guards no choice outside."""
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return sdpa(q, k, v)


def flex(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: object) -> torch.Tensor:
    """Same as `sdpa`, with FlexAttention (no training on a CPU); the mask is made by `prepare_mask`."""
    heads = (x.transpose(1, 2) for x in (q, k, v))
    return flex_attention(*heads, block_mask=MASKS[q.shape[1]], enable_gqa=True).transpose(1, 2)


def prepare_mask(length: int, device: torch.device) -> None:
    """Make the causal mask that `flex` uses at this length."""
    MASKS[length] = create_block_mask(lambda b, h, i, j: i >= j, None, None, length, length, device=device)


def torch_loss(x: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """`model.fused.project_and_score` with all logits in memory."""
    return F.cross_entropy(F.linear(x, weight).float(), targets, reduction="sum", ignore_index=IGNORE)


def masked(loss: Callable) -> Callable:
    """`loss` of the scored rows alone, selected by a boolean index."""

    def compute(x: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        scored = targets != IGNORE
        return loss(x[scored], weight, targets[scored])

    return compute


def project_at_once(self: model.transformer.Attention, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """`Attention.project` with one matrix product."""
    layers = (self.wq, self.wk, self.wv)
    weight = torch.cat([layer.weight for layer in layers])
    return F.linear(x, weight).split([layer.out_features for layer in layers], -1)


def activate_at_once(self: model.transformer.FeedForward, x: torch.Tensor) -> torch.Tensor:
    """`FeedForward.activate` with one matrix product."""
    weight = torch.cat([self.w1.weight, self.w3.weight])
    return model.transformer.swiglu(*F.linear(x, weight).chunk(2, -1))


def embed_in_bfloat16(self: Transformer, tokens: torch.Tensor, *_: object) -> torch.Tensor:
    """`Transformer.embed` without a soft prompt, in bfloat16, which the residual stream keeps."""
    return self.tok_embeddings(tokens).bfloat16()


@contextmanager
def applied(variant: Variant) -> Iterator[None]:
    """Make every model compute as `variant` says inside the `with` block."""
    transformer, ours = model.transformer, model.transformer.project_and_score
    with ExitStack() as stack:
        if variant.attention != "ours":
            attend = {"sdpa": sdpa, "cudnn": cudnn, "flex": flex}[variant.attention]
            stack.enter_context(patch.object(transformer, "attend", attend))
        loss = torch_loss if variant.loss == "torch" else ours
        loss = masked(loss) if variant.masked else loss
        stack.enter_context(patch.object(transformer, "project_and_score", loss))
        if variant.one_product:
            stack.enter_context(patch.object(transformer.Attention, "project", project_at_once))
            stack.enter_context(patch.object(transformer.FeedForward, "activate", activate_at_once))
        if variant.torch_elementwise:
            stack.enter_context(patch.object(model.norm, "rms_norm", rms_norm_reference))
            stack.enter_context(patch.object(transformer, "rope", rope_reference))
            stack.enter_context(patch.object(transformer, "swiglu", swiglu_reference))
        if variant.bfloat16_residual:
            stack.enter_context(patch.object(Transformer, "embed", embed_in_bfloat16))
        if variant.chunk_bytes:
            operators = kernels.linear_cross_entropy.ops
            stack.enter_context(patch.object(operators, "CHUNK_BYTES", variant.chunk_bytes))
        yield
