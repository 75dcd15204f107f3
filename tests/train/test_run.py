"""Hub revisions of a run, and the resume command."""

import pytest

from cli.revisions import resumed_revision
from configs.finetune_recipe import FinetuneRecipe
from configs.schema import Recipe
from configs.study_recipe import StudyRecipe
from train.run_directory import handle_interrupt, pin_recipe

A, B = "a" * 40, "b" * 40


@pytest.mark.parametrize(
    ("given", "saved", "used"),
    [
        ("own/ds", f"own/ds@{A}", f"own/ds@{A}"),
        ("own/ds@main", f"own/ds@{A}", f"own/ds@{A}"),  # a branch may have moved since then
        (f"own/ds@{B}", f"own/ds@{A}", f"own/ds@{B}"),
        ("own/other", f"own/ds@{A}", "own/other"),
        ("own/ds", "", "own/ds"),
        ("notes/", "notes/", "notes/"),
        ("folk-tunes", "aws-api", "folk-tunes"),
    ],
)
def test_a_resumed_run_keeps_its_commit(given, saved, used):
    assert resumed_revision(given, saved) == used


@pytest.mark.parametrize("kind", [Recipe, FinetuneRecipe, StudyRecipe])
def test_hub_names_of_a_recipe_are_pinned_and_kept(kind, monkeypatch):
    monkeypatch.setattr("train.run_directory.pin_dataset", lambda name: name if "@" in name else f"{name}@{B}")
    monkeypatch.setattr("train.run_directory.pin_model", lambda name: name if "@" in name else f"{name}@{B}")
    data = {"corpus": "own/ds"}
    names = {"base": "own/model", "foundations": ["own/model", "own/large"], "general": "own/other"}
    names = {key: name for key, name in names.items() if key in kind.model_fields}

    def at(commit):
        return {
            key: [f"{n}@{commit}" for n in v] if key == "foundations" else f"{v}@{commit}" for key, v in names.items()
        }

    given = kind.model_validate({"data": data, **names})
    fresh = pin_recipe(given, None)
    assert fresh.data.corpus == f"own/ds@{B}"
    assert {key: getattr(fresh, key) for key in names} == at(B)
    saved = kind.model_validate({"data": {"corpus": f"own/ds@{A}"}, **at(A)})
    assert pin_recipe(given, saved) == saved  # although the hub has moved to another commit


def test_an_interrupt_outside_the_loop_prints_the_resume_command(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["pretrain", "a recipe.toml", "--overwrite"])
    with pytest.raises(SystemExit) as ended, handle_interrupt():
        raise KeyboardInterrupt
    assert ended.value.code == 130
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith("interrupted; resume with: python -m ")
    assert said.endswith("'a recipe.toml' --resume")
