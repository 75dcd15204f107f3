"""The table of methods: how each one trains, its search settings, its sizes and its data."""

from compare.method import Method
from compare.methods import baselines, prompted, scratch, tuned

BASELINES = ("xz", "zstd", "ngram", "majority", "tfidf")
TEXT = "a share of the training documents"
ITEMS = "labelled items"
SHARES, LABELS = {"text": "share"}, {"task": "labels"}
RANKINGS = {"task": prompted.RANKINGS}

METHODS: dict[str, Method] = {
    "xz": Method(baselines.learn_compressor, SHARES, TEXT),
    "zstd": Method(baselines.learn_compressor, SHARES, TEXT),
    "ngram": Method(baselines.learn_ngram, SHARES, TEXT, {"text": baselines.ORDERS}),
    "majority": Method(baselines.learn_majority, LABELS, "the labels of labelled items, for the majority class"),
    "tfidf": Method(baselines.learn_tfidf, LABELS, ITEMS, {"task": baselines.STRENGTHS}),
    "zero-shot": Method(
        prompted.learn_shots,
        {"text": "none", "task": "none"},
        "no training data, only validation items to choose how labels are compared",
        RANKINGS,
        is_seeded=False,
    ),
    "one-shot": Method(
        prompted.learn_shots,
        {"text": "none", "task": "one"},
        "one training document or one labelled item, in the prompt",
        RANKINGS,
    ),
    "few-shot": Method(
        prompted.learn_shots,
        {"text": "none", "task": "shots"},
        "a few training documents or as many labelled items, in the prompt",
        RANKINGS,
    ),
    "neighbour-shots": Method(
        prompted.learn_shots, LABELS, "the labelled items nearest to each input, in the prompt", RANKINGS
    ),
    "retrieval": Method(
        prompted.learn_retrieval,
        {"task": "none"},
        "the passages of all training documents nearest to each input, in the prompt",
        RANKINGS,
        is_seeded=False,
    ),
    "scratch": Method(scratch.learn_scratch, SHARES, TEXT, recipe_table="scratch"),
    "scratch-supervised": Method(
        scratch.learn_supervised,
        LABELS,
        "all training documents, then labelled items",
        recipe_table="scratch",
        base_method="scratch",
    ),
    "random-supervised": Method(
        scratch.learn_supervised,
        LABELS,
        "labelled items, and all training documents for the tokenizer",
        recipe_table="scratch",
    ),
    **{
        name: Method(tuned.learn_tuned, SHARES | LABELS, f"{TEXT}, or {ITEMS}", recipe_table=name.replace("-", "_"))
        for name in ("full", "top-layers", "lora", "soft-prompt")
    },
    "features": Method(tuned.learn_features, LABELS, ITEMS, {"task": tuned.STRENGTHS}),
    "lora-neighbours": Method(
        tuned.learn_tuned,
        LABELS,
        "labelled items: for training without shots, then those nearest to each input in the prompt",
        recipe_table="lora",
    ),
    "text-then-shots": Method(
        tuned.learn_text_then_shots,
        {"task": "shots"},
        "all training documents for LoRA, and a few labelled items in the prompt",
        RANKINGS,
        recipe_table="lora",
        base_method="lora",
    ),
}
