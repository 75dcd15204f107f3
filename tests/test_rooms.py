"""The table of rooms in DESIGN: who may import whom, and what may not be imported at the top."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from configs import prompting, schema, study

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "configs": set(),
    "data": {"tokenizer"},
    "tokenizer": set(),
    "kernels": set(),
    "model": {"kernels", "tokenizer"},
    "train": {"model", "data", "tokenizer"},
    "adapt": {"model", "train", "data", "tokenizer"},
    "prompting": {"model", "data", "tokenizer"},
    "compare": {"model", "train", "data", "tokenizer", "adapt", "prompting"},
}
# Two commands open a corpus inside their main(); the room behind them stays free of it.
COMMANDS = {"tokenizer/train.py": {"data"}, "tokenizer/inspect.py": {"data", "model"}}
OPTIONAL = {
    "triton", "wandb", "transformers", "peft", "lancedb", "matplotlib", "sklearn", "scipy", "gguf",
    "zstandard", "wordllama", "jinja2", "lm_eval", "ray",
}  # fmt: skip


# What is written in Triton is imported only inside the functions that launch it.
TRITON = {"elementwise", "tiles", "forward", "backward", "launch", "kernel"}


def sources():
    return [p for room in MAY_IMPORT for p in sorted((ROOT / room).rglob("*.py"))]


def imported(nodes):
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_imports_only_what_it_may(path):
    name = str(path.relative_to(ROOT))
    room = name.split("/")[0]
    tree = ast.parse(path.read_text())
    top = set(imported(tree.body)) & MAY_IMPORT.keys()
    anywhere = set(imported(ast.walk(tree))) & MAY_IMPORT.keys()
    allowed = MAY_IMPORT[room] | {room, "configs"}
    assert top <= allowed
    assert anywhere <= allowed | COMMANDS.get(name, set())
    written_in_triton = room == "kernels" and path.stem in TRITON
    assert not set(imported(tree.body)) & (OPTIONAL - ({"triton"} if written_in_triton else set()))


def test_everything_imports_without_the_optional_packages():
    modules = [
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for p in sources()
        if not (p.is_relative_to(ROOT / "kernels") and p.stem in TRITON)
    ]
    code = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {OPTIONAL!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
import importlib
for name in {modules!r}:
    importlib.import_module(name)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_transformers_imports_beside_our_kernels_folder():
    # `kernels` is also the name of a library that transformers probes for.
    code = "import kernels, transformers; from transformers import LlamaForCausalLM"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


RECIPES = sorted((ROOT / "configs").rglob("*.toml"))
KINDS = {
    "study": study.StudyRecipe,
    "finetune": schema.FinetuneRecipe,
    "store": prompting.StoreRecipe,
    "prompt": prompting.PromptRecipe,
}


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_shipped_recipes_are_valid(path):
    from configs.cli import load

    assert load(KINDS.get(path.parent.name, schema.Recipe), path)


# What only files of foundation models and merged ones set (configs/schema.py).
LOADED = {"norm", "biases", "positions", "unrotated_every", "rope_scaling", "soft_tokens",
          "trained_on"}  # fmt: skip


def test_every_setting_is_set_by_some_shipped_recipe():
    def tables(values):
        for key, value in values.items():
            yield key
            if isinstance(value, dict):
                yield from tables(value)

    used = {key for path in RECIPES for key in tables(tomllib.loads(path.read_text()))}
    settings = {
        name
        for section in (vars(schema) | vars(study) | vars(prompting)).values()
        if isinstance(section, type) and issubclass(section, schema.Section)
        for name in section.model_fields
    }
    assert settings - used == LOADED


def test_files_stay_small():
    for path in sources():
        assert len(path.read_text().splitlines()) <= 400, path
