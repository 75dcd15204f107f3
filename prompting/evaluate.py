"""Evaluate a model on the test items of a task, zero-shot or few-shot.

    python -m prompting.evaluate RECIPE [--shots 4 --choose nearest --task.instruction TEXT …]
    python -m prompting.evaluate RECIPE --model runs/tuned/merged --shots 0

No weights are trained. Shots that do not fit the context are left out, from the first on.
"""

from collections import Counter

import torch

from cli.atomic import to_json
from cli.console import say, show
from cli.errors import run_command
from cli.recipes import Parser, parse
from configs.prompt_recipe import PromptRecipe
from data.items import Task
from data.metrics import mean_with_interval
from data.tasks import load_task
from model.load import load_model
from prompting.answers import answer_task
from prompting.shots import ShotSelector, chosen_shots, few_shot, fixed_shots, neighbour_shots


def select_shots(recipe: PromptRecipe, task: Task) -> ShotSelector:
    """The shot selector of a recipe. Raises UserError for an unknown id in `chosen`."""
    if recipe.chosen:
        return chosen_shots(task, recipe.chosen)
    if recipe.choose == "nearest":
        return neighbour_shots(task, recipe.shots)
    return fixed_shots(task, recipe.shots, recipe.seed)


def main() -> None:
    """Entry point of `python -m prompting.evaluate`."""
    parser = Parser(__doc__, add_help=False)
    parser.add_argument("--json", action="store_true", help="one JSON object with all results")
    recipe, own = parse(PromptRecipe, parser)
    task = load_task(recipe.task, recipe.data)
    shots = select_shots(recipe, task)
    model, tokenizer = load_model(recipe.model)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    first = task.test[0]
    say(f"the first prompt, with the label {first.label!r}:")
    say(few_shot(task, first.text, shots(first.text)))
    results = answer_task(model, tokenizer, task, shots, calibrate=recipe.calibrate, per_token=recipe.per_token)
    score, low, high = mean_with_interval(results["correct"])
    majority, count = Counter(item.label for item in task.test).most_common(1)[0]
    if own.json:
        show(to_json({"score": score, "low": low, "high": high, **results}))
        return
    metric = "mean word F1" if task.kind == "completion" else "accuracy"
    show(f"{score:.3f} [{low:.3f}, {high:.3f}] {metric}, {len(task.test)} test items")
    if task.labels:
        show(f'{count / len(task.test):.3f} majority class, "{majority}"')
    show(
        f"{results['prompt_tokens']:.0f} tokens and {results['seconds_per_request']:.3f} s per "
        f"request; {results['shots_left_out']} shots left out"
    )


if __name__ == "__main__":
    run_command(main)
