"""The table of methods: how each one trains, its search settings, its sizes and its data."""

from compare.method import Method
from compare.methods import baselines, prompted, scratch, tuned

TEXT = "a share of the training documents"
ITEMS = "labelled items"
SHARES, LABELS = {"text": "share"}, {"task": "labels"}
RANKINGS = {"task": prompted.RANKINGS}

METHODS: dict[str, Method] = {
    "xz": Method(baselines.learn_compressor, SHARES, TEXT, "baseline"),
    "zstd": Method(baselines.learn_compressor, SHARES, TEXT, "baseline"),
    "ngram": Method(baselines.learn_ngram, SHARES, TEXT, "baseline", {"text": baselines.ORDERS}),
    "majority": Method(
        baselines.learn_majority, LABELS, "the labels of labelled items, for the majority class", "baseline"
    ),
    "tfidf": Method(baselines.learn_tfidf, LABELS, ITEMS, "baseline", {"task": baselines.STRENGTHS}),
    "zero-shot": Method(
        prompted.learn_shots,
        {"text": "none", "task": "none"},
        "no training data, only validation items to choose how labels are compared",
        "prompted",
        RANKINGS,
        is_seeded=False,
    ),
    "one-shot": Method(
        prompted.learn_shots,
        {"text": "none", "task": "one"},
        "one training document or one labelled item, in the prompt",
        "prompted",
        RANKINGS,
    ),
    "few-shot": Method(
        prompted.learn_shots,
        {"text": "none", "task": "shots"},
        "a few training documents or as many labelled items, in the prompt",
        "prompted",
        RANKINGS,
    ),
    "neighbour-shots": Method(
        prompted.learn_shots, LABELS, "the labelled items nearest to each input, in the prompt", "prompted", RANKINGS
    ),
    "retrieval": Method(
        prompted.learn_retrieval,
        {"task": "none"},
        "the passages of all training documents nearest to each input, in the prompt",
        "prompted",
        RANKINGS,
        is_seeded=False,
    ),
    "scratch": Method(scratch.learn_scratch, SHARES, TEXT, "scratch", recipe_table="scratch", is_trained=True),
    "scratch-supervised": Method(
        scratch.learn_supervised,
        LABELS,
        "all training documents, then labelled items",
        "scratch",
        recipe_table="scratch",
        base_method="scratch",
        is_trained=True,
    ),
    "random-supervised": Method(
        scratch.learn_supervised,
        LABELS,
        "labelled items, and all training documents for the tokenizer",
        "scratch",
        recipe_table="scratch",
        is_trained=True,
    ),
    **{
        name: Method(
            tuned.learn_tuned,
            SHARES | LABELS,
            f"{TEXT}, or {ITEMS}",
            "tuned",
            recipe_table=name.replace("-", "_"),
            is_trained=True,
        )
        for name in ("full", "top-layers", "lora", "soft-prompt")
    },
    "features": Method(tuned.learn_features, LABELS, ITEMS, "tuned", {"task": tuned.STRENGTHS}),
    "lora-neighbours": Method(
        tuned.learn_tuned,
        LABELS,
        "labelled items: for training without shots, then those nearest to each input in the prompt",
        "tuned",
        recipe_table="lora",
        is_trained=True,
    ),
    "text-then-shots": Method(
        tuned.learn_text_then_shots,
        {"task": "shots"},
        "all training documents for LoRA, and a few labelled items in the prompt",
        "tuned",
        RANKINGS,
        recipe_table="lora",
        base_method="lora",
    ),
}

COMPUTE_METHODS = ("scratch", "full", "lora")  # measured with other budgets too
SHORT_METHODS = ("scratch", "lora")  # with less than the study's own: full fine-tuning has hardly fewer steps then
