"""The models that are served: run directories, foundations, exports, and adapters of them."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cli.errors import UserError
from cli.recipes import load
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

    `store` adds the first model with passages of that store before every question, as NAME+STORE;
    `study` what a study has kept. Raises UserError for a model that does not load, and for two of one id.
    """
    kept = find_kept(study) if study else {}
    names = list(dict.fromkeys([*names, *(name for name, _ in kept.values())]))
    found: dict[str, Model] = {}
    folders = dict(_split(each) for each in adapters)
    for number, name in enumerate(names):
        loaded = load_for_generation(name, precision, device, rows, compiles, folders if number == 0 else None)
        engine = Engine(loaded.model, rows, context, loaded.adapters)
        batcher = Batcher(engine, loaded.tokenizer)
        most = engine.cache.capacity - engine.soft
        ids = {model_id(name): ""} | ({each: each for each in folders} if number == 0 else {})
        for each, adapter in ids.items():
            if each in found:
                raise UserError(f'two models are called "{each}"; rename a folder or an adapter')
            found[each] = Model(each, batcher, loaded.tokenizer, most, adapter, int(time.time()))
    for each, (name, prompt) in kept.items():
        base = found[model_id(name)]
        if prompt:
            found[each] = base._replace(id=each, template=kept_template(prompt, base.tokenizer))
    if store:
        first = found[model_id(names[0])]
        each = f"{first.id}+{store.name}"
        found[each] = first._replace(id=each, template=store_template(store, first.tokenizer))
    return found


def find_kept(study: Path) -> dict[str, tuple[str, Path | None]]:
    """What `compare.run --keep` has written, by id: the model, and the recipe of its prompt, if it has one.

    Raises UserError if there is nothing.
    """
    found: dict[str, tuple[str, Path | None]] = {}
    for folder in sorted(path.parent for path in study.glob("kept/*/about.json")):
        prompt = folder / "prompt.toml"
        if (folder / "checkpoints").exists():
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
