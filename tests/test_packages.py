"""Which package may import which, and which libraries must stay optional (docs/architecture.md)."""

import ast
import graphlib
import subprocess
import tomllib

import pytest
from layout import MAY_IMPORT, OPTIONAL, ROOT, TRITON, module_name, sources

from configs import atlas_recipe, finetune_recipe, prompt_recipe, schema, study_recipe


def imported(nodes):
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_package_imports_only_what_it_may(path):
    package = path.relative_to(ROOT).parts[0]
    tree = ast.parse(path.read_text())
    anywhere = set(imported(ast.walk(tree))) & MAY_IMPORT.keys()
    everywhere = {"cli": set(), "configs": {"cli"}}.get(package, {"cli", "configs"})
    assert anywhere <= MAY_IMPORT[package] | {package} | everywhere
    written_in_triton = package == "kernels" and path.stem in TRITON
    assert not set(imported(tree.body)) & (OPTIONAL - ({"triton"} if written_in_triton else set()))


def test_no_two_files_import_each_other():
    known = {module_name(path): path for path in sources()}
    uses = {}
    for name, path in known.items():
        found = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
        uses[name] = found & known.keys() - {name}
    assert tuple(graphlib.TopologicalSorter(uses).static_order())  # raises CycleError


PRINTS = {"cli/console.py": 1, "cli/errors.py": 3, "cli/recipes.py": 2, "model/sample.py": 1}


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_what_is_printed_is_cleaned_first(path):
    # `show` and `say` write control characters out; only JSON and text of ours may go around them.
    name = str(path.relative_to(ROOT))
    calls = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    if name.startswith("kernels/"):  # its benchmarks print what they have measured
        return
    assert len(calls) <= PRINTS.get(name, 0)


RECIPES = sorted((ROOT / "configs").rglob("*.toml"))
KINDS = {
    "atlas": atlas_recipe.AtlasDomain,
    "study": study_recipe.StudyRecipe,
    "finetune": finetune_recipe.FinetuneRecipe,
    "store": prompt_recipe.StoreRecipe,
    "prompt": prompt_recipe.PromptRecipe,
}


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_shipped_recipes_are_valid(path):
    from cli.recipes import load

    assert load(KINDS.get(path.parent.name, schema.Recipe), path)


# What only files of foundation models and merged ones set (configs/schema.py).
LOADED = {"norm", "biases", "positions", "nope_every", "rope_scaling", "soft_tokens", "trained_on"}


def test_every_setting_is_set_by_some_shipped_recipe():
    def tables(values):
        for key, value in values.items():
            yield key
            for table in value if isinstance(value, list) else [value]:
                if isinstance(table, dict):
                    yield from tables(table)

    used = {key for path in RECIPES for key in tables(tomllib.loads(path.read_text()))}
    settings = {
        name
        for section in (
            vars(schema) | vars(atlas_recipe) | vars(finetune_recipe) | vars(study_recipe) | vars(prompt_recipe)
        ).values()
        if isinstance(section, type) and issubclass(section, schema.Section)
        for name in section.model_fields
    }
    # The defaults of a study are a recipe for two cores, of which its file changes what differs.
    of_studies = {
        name
        for section in vars(study_recipe).values()
        if getattr(section, "__module__", "") == study_recipe.__name__
        for name in vars(section).get("__annotations__", {})
    }
    assert settings - used - of_studies == LOADED


ALL_FILES = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True).stdout.split()


def test_files_and_functions_stay_small():
    for name in ALL_FILES or [str(path.relative_to(ROOT)) for path in sources()]:
        text = (ROOT / name).read_text()
        assert text.count("\n") <= 350, name
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno - node.lineno < 80, f"{name}: {node.name}"
