"""The winners of a study as files that other commands load: `python -m compare.run STUDY --keep`.

A winner is trained again. With the calibration of the study a cell gives the same weights on a CPU, so
what is kept is what was measured. Models are run directories for model.sample, prompting.evaluate and
serve; a prompt is a recipe for prompting.evaluate, a classifier a folder for adapt.classify.
"""

from pathlib import Path

from adapt.merge import save_merged
from cli.atomic import to_json, write_atomically
from cli.console import say
from cli.recipes import to_toml
from compare.analysis.ledger import Ledger, name_of
from compare.context import Cell, Study
from compare.measure import chosen_setting, learn
from compare.method import Learned
from compare.methods import METHODS
from compare.methods.baselines import TfIdf
from compare.methods.prompted import LanguageModel, PromptedModel
from compare.methods.tuned import FeatureClassifier
from compare.plan import AXES
from configs.finetune_recipe import FinetuneRecipe
from configs.prompt_recipe import PromptRecipe
from train.run_directory import write_config


def keep_winners(folder: Path) -> None:
    """Write kept/AXIS-SIZE-METHOD of the best network and of tf-idf at each size, and of the best prompt.

    What is there already stays. Retrieval is not kept: its store is in the study's folder.
    """
    ledger, study = Ledger.read(folder), Study(folder)
    for cell in find_winners(ledger):
        target = folder / "kept" / f"{cell.axis}-{cell.size:g}-{cell.method}"
        if (target / "about.json").exists():
            continue
        say(f"training {cell.name} again, for {target}")
        study.start_cell(cell)
        learned = learn(study, cell, chosen_setting(study, cell))
        target.mkdir(parents=True, exist_ok=True)
        write_model(study, cell, learned, target)
        score = ledger.score(cell.axis, cell.method + (f" @ {cell.foundation}" if cell.foundation else ""), cell.size)
        about = {**cell._asdict(), "score": score.value}
        write_atomically(target / "about.json", to_json(about, 1) + "\n")


def find_winners(ledger: Ledger) -> list[Cell]:
    """The cells that are kept: of each axis and size the best network and tf-idf, and of each axis the best prompt."""
    found: list[Cell] = []
    for axis in AXES:
        sign = -1.0 if axis == "task" else 1.0  # bits per byte are better if lower
        groups: dict[tuple[str, float], list[tuple[float, Cell]]] = {}
        for method in ledger.methods(axis):
            family = METHODS[name_of(method)].family
            if (family == "baseline" and name_of(method) != "tfidf") or name_of(method) == "retrieval":
                continue
            for size in ledger.sizes(axis, method):
                row = ledger.at(axis, method, size)[0]
                cell = Cell(row["method"], axis, size, row["seed"], row["factor"], row["foundation"])
                kind = {"prompted": "prompted", "baseline": "tf-idf"}.get(family, "trained")
                key = kind, 0.0 if family == "prompted" else size
                groups.setdefault(key, []).append((sign * ledger.score(axis, method, size).value, cell))
        found += [min(group)[1] for group in groups.values()]
    return found


def write_model(study: Study, cell: Cell, learned: Learned, target: Path) -> None:
    """Write what a cell has learned to a folder, in the form that fits its kind."""
    model, recipe, setting = learned.model, study.recipe, chosen_setting(study, cell)
    is_trained = METHODS[cell.method].is_trained or METHODS[cell.method].base_method != ""
    name = study.foundation_name(cell)
    if isinstance(model, FeatureClassifier | TfIdf):
        # tf-idf needs no foundation model.
        head, base = (model.classifier, "") if isinstance(model, TfIdf) else (model.head, name)
        head.save(target)
        write_config(target, FinetuneRecipe(base=base, method="features", data=recipe.data, task=recipe.task))
    if isinstance(model, LanguageModel | PromptedModel) and is_trained:
        base = "random weights" if METHODS[cell.method].family == "scratch" else name
        save_merged(target, model.model, model.tokenizer, base)
        name = str(target)
    if isinstance(model, LanguageModel) and model.prefix:
        write_atomically(target / "prompt.txt", "\n\n".join(model.prefix) + "\n\n")
    if isinstance(model, PromptedModel):
        is_nearest = cell.method in ("neighbour-shots", "lora-neighbours")
        shown = [] if is_nearest else [item.id for item in model.shots("")]
        prompt = PromptRecipe(
            model=name,
            data=recipe.data,
            task=recipe.task,
            shots=recipe.shots if is_nearest else len(shown),
            choose="nearest" if is_nearest else "drawn",
            chosen=shown,
            calibrate=bool(setting.get("calibrate", False)),
            per_token=bool(setting.get("per_token", False)),
        )
        write_atomically(target / "prompt.toml", to_toml(prompt))
