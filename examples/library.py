"""Use homegrown as a library: prepare a corpus, train a small model, load it, score a text."""

from pathlib import Path

from cli.recipes import load
from configs.schema import Recipe
from model.build import build_model
from model.likelihood import score_texts
from model.load import load_model
from train.distributed import Ranks
from train.loop import Trainer
from train.pretrain import load_data
from train.run_directory import start_run

recipe = load(Recipe, "configs/tiny.toml", ["--train.steps", "50"])
tokenizer, train_set, validation_set = load_data(recipe)
model = build_model(recipe.model, tokenizer.vocab_size).init_weights(seed=0)

run = Path("runs/library")
with start_run(run, recipe, tokenizer, overwrite=True), Ranks("auto") as ranks:
    result = Trainer(model, train_set, validation_set, tokenizer, recipe.train, run, ranks).train()
print(f"{result.progress.step} steps: {result.bits_per_byte:.3f} bits per byte on the validation split")

model, tokenizer = load_model(run)
tune = "M:6/8\nL:1/8\nK:G\nGBd g2d|edB dBG|GBd g2d|edB A2G|"
print(f"one tune: {score_texts(model, tokenizer, [tune])['bits_per_byte']:.3f} bits per byte")
