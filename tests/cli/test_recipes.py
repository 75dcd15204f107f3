import pytest

from cli.errors import UserError
from cli.recipes import load, to_toml
from configs.finetune_recipe import FinetuneRecipe
from configs.schema import Recipe


@pytest.fixture
def toml(tmp_path):
    def write(text):
        path = tmp_path / "recipe.toml"
        path.write_text(text)
        return path

    return write


def test_overrides_take_precedence_over_file_and_defaults(toml):
    path = toml("[train]\nsteps = 5\nseed = 3\n")
    recipe = load(Recipe, path, ["--train.steps", "7", "--model.qk-norm=true", "--data.corpus", "x"])
    assert (recipe.train.steps, recipe.train.seed, recipe.train.batch_size) == (7, 3, 32)
    assert recipe.model.qk_norm is True
    assert recipe.data.corpus == "x"


def test_lists_take_several_values(toml):
    recipe = load(Recipe, toml(""), ["--tokenizer.special-tokens", "<a>", "<b>"])
    assert recipe.tokenizer.special_tokens == ["<a>", "<b>"]


def test_an_override_creates_a_missing_table(toml):
    assert load(FinetuneRecipe, toml("")).task is None
    assert load(FinetuneRecipe, toml(""), ["--task.max-chars", "50"]).task.max_chars == 50


def test_the_resolved_recipe_round_trips(toml, tmp_path):
    recipe = load(Recipe, toml("[train]\nlearning_rate = 3e-4\n"))
    (tmp_path / "again.toml").write_text(to_toml(recipe))
    assert load(Recipe, tmp_path / "again.toml") == recipe


@pytest.mark.parametrize(
    ("text", "overrides", "said"),
    [
        ("[train]\nstesp = 5", [], 'unknown key "train.stesp"; did you mean "steps"?'),
        ("[trian]\nsteps = 5", [], 'unknown key "trian"; did you mean "train"?'),
        ("[train]\nsteps = 'x'", [], "train.steps = 'x': Input should be a valid integer"),
        ("[train]\nsteps = 0", [], "train.steps = 0: Input should be greater than or equal to 1"),
        ("[train", [], "not valid TOML"),
        ("", ["--train.stesp", "7"], 'unknown option "--train.stesp"; did you mean "--train.steps"'),
        ("", ["--train.steps", "many"], "train.steps = 'many'"),
        ("", ["--train.steps"], "--train.steps takes one value, got no value"),
        ("", ["--train.schedule", "foo"], "should be 'cosine', 'wsd' or 'linear'"),
        ("", ["--model.n-heads", "3", "--model.n-kv-heads", "2"], "not a multiple of n_kv_heads"),
        ("", ["stray"], '"stray" is not an option'),
    ],
)
def test_user_errors_are_one_line_with_place_and_fix(toml, text, overrides, said):
    with pytest.raises(UserError) as caught:
        load(Recipe, toml(text), overrides)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_print_config_shows_the_whole_recipe(command, recipe, tmp_path):
    done = command("train.pretrain", recipe, "--train.steps", "3", "--print-config")
    assert done.returncode == 0
    (tmp_path / "printed.toml").write_text(done.stdout)
    assert load(Recipe, tmp_path / "printed.toml") == load(Recipe, recipe, ["--train.steps", "3"])


def test_help_comes_from_the_docstrings(command):
    done = command("train.pretrain", "--help")
    assert done.returncode == 0
    assert "--train.micro-batch-size" in done.stdout
    assert "Windows per forward pass on one rank" in " ".join(done.stdout.replace("│", "").split())
