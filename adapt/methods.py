"""The fine-tuning methods: what each one trains. Recipes and studies use this one table.

| method        | trained                                             | source                |
| ------------- | --------------------------------------------------- | --------------------- |
| `full`        | all weights                                         |                       |
| `top_layers`  | the last blocks, the last norm, the output          | `adapt/top_layers.py` |
| `lora`        | low-rank adapters                                   | `adapt/lora.py`       |
| `soft_prompt` | vectors before every text                           | `adapt/soft_prompt.py`|
| `features`    | a classifier on frozen features, without the loop   | `adapt/features.py`   |

To add a method, write a function that freezes what is not trained and add it to METHODS; its
settings are a table of that name in configs/finetune_recipe.py.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from adapt.lora import add_lora, merge_lora
from adapt.soft_prompt import add_soft_prompt, fix_soft_prompt
from adapt.top_layers import tune_top_layers
from model.transformer import Transformer
from tokenizer.bpe import Tokenizer


class Method(NamedTuple):
    """How a method prepares a model in place; the training loop does the rest."""

    prepare: Callable[[Transformer, Tokenizer, Any, int], Transformer]
    """(model, tokenizer, settings, seed) -> model, with `requires_grad` set only where it trains."""
    has_adapter: bool
    """Whether what is trained can be stored without the base model."""


METHODS = {
    "full": Method(lambda model, tokenizer, settings, seed: model.requires_grad_(True), False),
    "top_layers": Method(lambda model, tokenizer, settings, seed: tune_top_layers(model, settings), False),
    "lora": Method(lambda model, tokenizer, settings, seed: add_lora(model, settings, seed), True),
    "soft_prompt": Method(add_soft_prompt, True),
}


def prepare_model(model: Transformer, tokenizer: Tokenizer, method: str, recipe: Any, seed: int) -> Transformer:
    """Choose what of `model` is trained, and add what is missing, in place; returns it.

    The settings are the table of the recipe that is called like the method.
    """
    return METHODS[method].prepare(model, tokenizer, getattr(recipe, method, None), seed)


def merge_model(model: Transformer) -> Transformer:
    """Merge adapters into the weights of `model`, in place; returns it."""
    merge_lora(model)
    return fix_soft_prompt(model) if model.config.soft_tokens else model
