"""Fixtures for training in this process."""

import pytest

from cli.recipes import load
from configs.schema import Recipe
from model.build import build_model
from train.distributed import Ranks
from train.loop import Trainer
from train.pretrain import load_data
from train.run_directory import start_run


@pytest.fixture
def fit(recipe, tmp_path):
    """Train the small recipe with changed [train] settings; returns result, run and model."""

    def run(sets=None, model=None, name="run", resume=False, device="cpu", **changes):
        config = load(Recipe, recipe)
        settings = config.train.model_copy(update={"log_every": 10**6} | changes)
        tokenizer, *text = load_data(config)
        model = model or build_model(config.model, tokenizer.vocab_size).init_weights(settings.seed)
        folder = tmp_path / name
        start_run(folder, config.model_copy(update={"train": settings}), tokenizer, resume=resume)
        with Ranks(device) as ranks:
            model = model.to(ranks.device)
            result = Trainer(model, *(sets or text), tokenizer, settings, folder, ranks, resume=resume).train()
        return result, folder, model

    return run
