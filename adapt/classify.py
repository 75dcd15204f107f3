"""Label texts with a classifier trained with `method = "features"`, or kept by a study (also tf-idf).

    python -m adapt.classify RUN TEXT …
    python -m adapt.classify RUN

Prints the label and its probability for each text; without texts, the accuracy on the test split of
the task.
"""

from pathlib import Path

from adapt.features import Classifier, extract_features
from adapt.tfidf import TfIdfClassifier
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
    is_tfidf = (args.run / "tfidf.json").exists()
    head = TfIdfClassifier.load(args.run) if is_tfidf else Classifier.load(args.run)
    recipe = load(FinetuneRecipe, args.run / "config.toml")
    assert recipe.task is not None  # checked by the schema
    items = [] if args.texts else load_task(recipe.task, recipe.data).test
    texts = args.texts or [item.text for item in items]
    if isinstance(head, TfIdfClassifier):
        probabilities = head.probabilities(texts)
    else:
        model, tokenizer = load_model(recipe.base)
        if uses_bfloat16("auto", model, model.device):  # as in training
            model.bfloat16()
        probabilities = head.probabilities(extract_features(model, tokenizer, texts, head.pooling))
    predictions = [(head.labels[row.argmax()], row.max()) for row in probabilities]
    if args.texts:
        for label, probability in predictions:
            show(f"{label}\t{probability:.3f}")
        return
    correct = [float(label == item.label) for (label, _), item in zip(predictions, items, strict=True)]
    accuracy, low, high = mean_with_interval(correct)
    show(f"{accuracy:.3f} [{low:.3f}, {high:.3f}] accuracy, {len(items)} test items")


if __name__ == "__main__":
    run_command(main)
