"""Label texts with a classifier that `method = "features"` has fitted.

    python -m adapt.classify RUN TEXT …
    python -m adapt.classify RUN

Prints the label and its probability for each text; without a text, the accuracy on the test items
of the task.
"""

from pathlib import Path

from adapt.features import Classifier, extract
from cli.console import show
from cli.errors import run_command
from cli.recipes import Parser, load
from configs.finetune_recipe import FinetuneRecipe
from data.metrics import mean_with_interval
from data.tasks import load_task
from model.load import load_model
from train.preflight import uses_bfloat16


def main() -> None:
    """Entry point of `python -m adapt.classify`."""
    parser = Parser(__doc__)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("texts", nargs="*", metavar="TEXT")
    args = parser.parse_args()
    head = Classifier.load(args.run)
    recipe = load(FinetuneRecipe, args.run / "config.toml")
    assert recipe.task is not None  # the schema sees to it
    items = [] if args.texts else load_task(recipe.task, recipe.data).test
    model, tokenizer = load_model(recipe.base)
    if uses_bfloat16("auto", model, model.device):  # as when it was fitted
        model.bfloat16()
    texts = args.texts or [item.text for item in items]
    shares = head.probabilities(extract(model, tokenizer, texts, head.pooling))
    found = [(head.labels[row.argmax()], row.max()) for row in shares]
    if args.texts:
        for label, share in found:
            show(f"{label}\t{share:.3f}")
        return
    right = [float(label == item.label) for (label, _), item in zip(found, items, strict=True)]
    value, low, high = mean_with_interval(right)
    show(f"{value:.3f} [{low:.3f}, {high:.3f}] right, {len(items)} test items")


if __name__ == "__main__":
    run_command(main)
