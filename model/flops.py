"""FLOPs of forward and backward passes (Kaplan et al. 2020, arXiv:2001.08361, section 2.1)."""

from torch import nn

from model.transformer import Transformer


def forward_flops(model: Transformer, tokens: int, scored: int, length: int, first: int = 0) -> float:
    """FLOPs of forward passes, counting only the blocks from `first` on.

    2 per weight and token of a matrix product: `tokens` go through the blocks, `scored` of them
    through the output projection. Attention adds 4 H D per layer, token and visible position:
    on average half of `length`, and at most the sliding window in a local layer.
    """
    blocks = sum(p.numel() for p in model.layers[first:].parameters() if p.dim() == 2)
    attention = _attention_flops(model, length, first)
    return tokens * (2 * blocks + attention) + scored * 2 * model.output.weight.numel()


def training_flops(model: Transformer, tokens: int, scored: int, length: int) -> float:
    """FLOPs of forward and backward passes over rows of `length` tokens.

    The backward pass costs one forward pass for the activation gradients (attention: two), down to
    the lowest block with trained weights in or below it, and one for the gradients of the trained
    weights.
    """
    soft = model.config.soft_tokens
    tokens += soft * tokens // length
    length += soft
    trained = [any(p.requires_grad for p in layer.parameters()) for layer in model.layers]
    first = trained.index(True) if any(trained) else len(trained)
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    below = (p for name, p in model.named_parameters() if "embeddings" in name or "soft" in name)
    first = 0 if any(p.requires_grad for p in below) else first
    backward = forward_flops(model, tokens, scored, length, first)
    attention = tokens * _attention_flops(model, length, first)
    weights = sum(
        2 * p.numel() * (scored if p is model.output.weight else tokens)
        for p in model.parameters()
        if p.requires_grad and p.dim() == 2 and id(p) not in tables
    )
    if model.config.tie_embeddings and model.output.weight.requires_grad:
        weights += 2 * model.output.weight.numel() * scored
    return forward_flops(model, tokens, scored, length) + backward + attention + weights


def _attention_flops(model: Transformer, length: int, first: int) -> float:
    # Two products per token: with the keys and with the values. On average a token sees half of
    # the row, and in a local layer the window less what is missing at the start of the row.
    c = model.config
    visible = 0.0
    for layer in range(first, c.n_layers):
        window = min(c.window_of(layer) or length, length)
        visible += window - window**2 / (2 * length)
    return 4 * c.n_heads * c.head_dim * visible
