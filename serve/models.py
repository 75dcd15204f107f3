"""The models that are served: run directories, foundations, exports, and adapters of them."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cli.errors import UserError
from model.engine import Engine
from model.inference import load_for_generation
from serve.scheduler import Lane
from tokenizer.bpe import Tokenizer


class Model(NamedTuple):
    """What a model id stands for."""

    id: str
    lane: Lane
    tokenizer: Tokenizer
    context: int
    """Most tokens of a prompt and its answer."""
    adapter: str
    created: int


def load_models(
    names: Sequence[str], adapters: Sequence[str], rows: int, context: int, precision: str, device: str, compiles: bool
) -> dict[str, Model]:
    """The models by id; `adapters` are "NAME=FOLDER", of the first model.

    Raises UserError for a model that does not load, and for two of one id.
    """
    found: dict[str, Model] = {}
    folders = dict(_split(each) for each in adapters)
    for number, name in enumerate(names):
        loaded = load_for_generation(name, precision, device, rows, compiles, folders if number == 0 else None)
        engine = Engine(loaded.model, rows, context, loaded.adapters)
        lane = Lane(engine, loaded.tokenizer)
        most = engine.cache.capacity - engine.soft
        ids = {model_id(name): ""} | ({each: each for each in folders} if number == 0 else {})
        for each, adapter in ids.items():
            if each in found:
                raise UserError(f'two models are called "{each}"; rename a folder or an adapter')
            found[each] = Model(each, lane, loaded.tokenizer, most, adapter, int(time.time()))
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
