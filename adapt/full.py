"""Full fine-tuning: every weight is trained."""

from model.transformer import Transformer


def tune_all(model: Transformer) -> Transformer:
    """Everything in `model` requires gradients; returns it."""
    return model.requires_grad_(True)
