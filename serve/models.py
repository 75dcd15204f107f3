"""The models that are served: run directories, foundations, exports, and adapters of them."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from adapt.features import Classifier
from cli.errors import UserError
from cli.recipes import load
from configs.finetune_recipe import FinetuneRecipe
from configs.prompt_recipe import PromptRecipe
from model.engine import Engine
from model.inference import load_for_generation
from serve.scheduler import Batcher
from serve.templates import PromptTemplate, kept_template, store_template
from tokenizer.bpe import Tokenizer


class Model(NamedTuple):
    """What a model id stands for."""

    id: str
    batcher: Batcher
    tokenizer: Tokenizer
    context: int
    """Most tokens of a prompt and its answer."""
    adapter: str
    created: int
    template: PromptTemplate | None = None
    """What stands around the text of a request; None: nothing."""
    classifier: Classifier | None = None
    """Answers with a label instead of a text."""


def load_models(
    names: Sequence[str],
    adapters: Sequence[str],
    rows: int,
    context: int,
    precision: str,
    device: str,
    compiles: bool,
    store: Path | None = None,
    study: Path | None = None,
) -> dict[str, Model]:
    """The models by id; `adapters` are "NAME=FOLDER", of the first model.

    A classifier comes with the model that it reads. `store` adds the first model with passages of that
    store before every question, as NAME+STORE; `study` what a study has kept. Raises UserError for a model
    that does not load, and for two of one id.
    """
    kept = find_kept(study) if study else {}
    names = list(dict.fromkeys([*names, *(name for name, _ in kept.values())]))
    bases = {name: load(FinetuneRecipe, Path(name) / "config.toml").base for name in names if is_classifier(Path(name))}
    found: dict[str, Model] = {}
    folders = dict(_split(each) for each in adapters)

    def add(model: Model) -> None:
        if model.id in found:
            raise UserError(f'two models are called "{model.id}"; rename a folder or an adapter')
        found[model.id] = model

    for number, name in enumerate(dict.fromkeys(bases.get(name, name) for name in names)):
        loaded = load_for_generation(name, precision, device, rows, compiles, folders if number == 0 else None)
        engine = Engine(loaded.model, rows, context, loaded.adapters)
        batcher = Batcher(engine, loaded.tokenizer)
        most = engine.cache.capacity - engine.soft
        ids = {model_id(name): ""} | ({each: each for each in folders} if number == 0 else {})
        for each, adapter in ids.items():
            add(Model(each, batcher, loaded.tokenizer, most, adapter, int(time.time())))
    first = next(iter(found.values()))
    for name, base in bases.items():
        add(found[model_id(base)]._replace(id=model_id(name), classifier=Classifier.load(Path(name))))
    for each, (name, prompt) in kept.items():
        if prompt:
            model = found[model_id(name)]
            add(model._replace(id=each, template=kept_template(prompt, model.tokenizer)))
    if store:
        add(first._replace(id=f"{first.id}+{store.name}", template=store_template(store, first.tokenizer)))
    return found


def is_classifier(folder: Path) -> bool:
    """Whether a folder holds a classifier on the features of a model."""
    return (folder / "classifier.json").exists()


def find_kept(study: Path) -> dict[str, tuple[str, Path | None]]:
    """What `compare.run --keep` has written, by id: the model, and the recipe of its prompt, if it has one.

    Raises UserError if there is nothing.
    """
    found: dict[str, tuple[str, Path | None]] = {}
    for folder in sorted(path.parent for path in study.glob("kept/*/about.json")):
        prompt = folder / "prompt.toml"
        if (folder / "checkpoints").exists() or is_classifier(folder):
            found[folder.name] = str(folder), None
        if prompt.exists():  # of the model beside it, wherever the study lies now, or of the foundation
            model = str(folder) if folder.name in found else load(PromptRecipe, prompt).model
            found[f"{folder.name}-prompt"] = model, prompt
    if not found:
        raise UserError(f"{study}: has no kept models; run: python -m compare.run RECIPE --run-dir {study} --keep")
    return found


def model_id(name: str) -> str:
    """The id of a model: the last part of its path, without .gguf."""
    path = Path(name)
    if path.name == "merged":  # of a fine-tuned run
        path = path.parent
    return path.name.removesuffix(".gguf") or name


def _split(adapter: str) -> tuple[str, Path]:
    name, equals, folder = adapter.partition("=")
    if not (name and equals and folder):
        raise UserError(f"--adapter {adapter}: write NAME=FOLDER")
    return name, Path(folder)
