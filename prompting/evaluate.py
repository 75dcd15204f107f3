"""Put a task to a model by prompt, and say how many of its test items are answered right.

    python -m prompting.evaluate RECIPE [--shots 4 --choose nearest --task.instruction TEXT …]
    python -m prompting.evaluate RECIPE --model runs/tuned/merged --shots 0

No weight is changed. Shots that do not fit the context are left out, the first ones first.
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
from prompting.answers import task_answers
from prompting.shots import Choose, chosen_shots, fixed_shots, neighbour_shots
from prompting.templates import few_shot


def shots_of(recipe: PromptRecipe, task: Task) -> Choose:
    """Which examples stand before an input. Raises UserError for an id that is not there."""
    if recipe.chosen:
        return chosen_shots(task, recipe.chosen)
    if recipe.choose == "nearest":
        return neighbour_shots(task, recipe.shots)
    return fixed_shots(task, recipe.shots, recipe.seed)


def main() -> None:
    """Entry point of `python -m prompting.evaluate`."""
    parser = Parser(__doc__, add_help=False)
    parser.add_argument("--json", action="store_true", help="one object: what was measured")
    recipe, own = parse(PromptRecipe, parser)
    task = load_task(recipe.task, recipe.data)
    shots = shots_of(recipe, task)
    model, tokenizer = load_model(recipe.model)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    first = task.test[0]
    say(f"the first prompt, whose answer is {first.label!r}:")
    say(few_shot(task, first.text, shots(first.text)))
    found = task_answers(
        model, tokenizer, task, shots, calibrate=recipe.calibrate, per_token=recipe.per_token, write=recipe.write
    )
    value, low, high = mean_with_interval(found["correct"])
    common, count = Counter(item.label for item in task.test).most_common(1)[0]
    if own.json:
        show(to_json({"score": value, "low": low, "high": high, **found}))
        return
    kind = "mean F1 of the words" if task.kind == "completion" else "right"
    show(f"{value:.3f} [{low:.3f}, {high:.3f}] {kind}, {len(task.test)} test items")
    if task.labels:
        show(f'{count / len(task.test):.3f} have the commonest label, "{common}"')
    show(
        f"{found['prompt_tokens']:.0f} tokens and {found['seconds_per_request']:.3f} s per "
        f"request; {found['shots_left_out']} shots left out"
    )


if __name__ == "__main__":
    run_command(main)
