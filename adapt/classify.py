"""Label texts with the classifier that way = "features" has fitted.

    python -m adapt.classify RUN TEXT …
    python -m adapt.classify RUN

Prints label and probability of each text; without a text, how many of the task's test items are
labelled right.
"""

from pathlib import Path

from adapt.features import Classifier, extract
from configs.cli import Parser, load, run_command
from configs.console import show
from configs.schema import FinetuneRecipe
from data.metrics import mean_with_interval
from data.tasks import load_task
from model.load import load_model
from train.foresight import uses_bfloat16


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
