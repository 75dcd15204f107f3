"""Validation loss, forgetting and a sample, measured before and after fine-tuning."""

from dataclasses import dataclass
from itertools import islice

import torch

from configs.finetune_recipe import FinetuneRecipe
from data.examples import Examples, Row
from data.prepare import prepare
from data.splits import read_shuffled
from model.sample import sample
from model.transformer import Transformer
from tokenizer.bpe import Tokenizer
from train.distributed import Ranks
from train.evaluate import evaluate
from train.forward import DataSet
from train.preflight import uses_bfloat16

GENERAL_DOCUMENTS, GENERAL_TOKENS = 32, 256  # size of the general text that measures forgetting


@dataclass(frozen=True)
class Probe:
    """Measures a model on the main rank."""

    recipe: FinetuneRecipe
    ranks: Ranks
    validation_set: DataSet
    prompt: list[int]
    """Token ids of the prompt of the sample."""

    def measure(self, model: Transformer, tokenizer: Tokenizer) -> dict:
        """Validation loss (nats per token), bits per byte of general text, and a sample."""
        recipe = self.recipe
        bfloat16 = uses_bfloat16(recipe.train.precision, model, model.device)
        autocast = torch.autocast(model.device.type, torch.bfloat16, enabled=bfloat16)
        settings = recipe.train.model_copy(update={"parallel": "ddp", "micro_batch_size": 4})
        alone = self.ranks.single_rank(model.device)
        validation, general = (
            evaluate(model, model, data_set, settings, alone, autocast)
            for data_set in (self.validation_set, self.general_set(model, tokenizer))
        )
        model.eval()
        options = recipe.sample.model_dump(exclude={"prompt", "num_samples"})
        *_, (stream,) = sample(model, tokenizer, self.prompt, seed=recipe.train.seed, **options)
        model.train()
        return {
            "loss": validation["validation_loss"],
            "general_bits_per_byte": general["bits_per_byte"],
            "sample": stream.text,
        }

    def general_set(self, model: Transformer, tokenizer: Tokenizer) -> Examples:
        """Held-out documents of the recipe's general corpus, truncated to GENERAL_TOKENS."""
        data = self.recipe.data.model_copy(update={"corpus": self.recipe.general, "group_field": ""})
        texts = [row["text"] for row in islice(read_shuffled(prepare(data), "test"), GENERAL_DOCUMENTS)]
        length = min(GENERAL_TOKENS, model.config.context)
        encoded = ([tokenizer.separator_id, *ids][:length] for ids in tokenizer.encode_batch(texts))
        return Examples([Row(ids, [True] * len(ids)) for ids in encoded], length, tokenizer)
