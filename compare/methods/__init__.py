"""The table of methods: how each one trains, its search settings, its sizes and its data."""

from compare.method import Method, no_settings
from compare.methods import baselines, prompted, scratch, tuned

BASELINES = ("xz", "zstd", "ngram", "majority", "tfidf")
TEXT = "a share of the training documents"
ITEMS = "labelled items"
EITHER = "a share of the training documents, or labelled items"

METHODS: dict[str, Method] = {
    "xz": Method(baselines.learn_compressor, no_settings, {"text": "share"}, TEXT),
    "zstd": Method(baselines.learn_compressor, no_settings, {"text": "share"}, TEXT),
    "ngram": Method(baselines.learn_ngram, baselines.ngram_orders, {"text": "share"}, TEXT),
    "majority": Method(
        baselines.learn_majority,
        no_settings,
        {"task": "labels"},
        "the labels of labelled items, for the majority class",
    ),
    "tfidf": Method(baselines.learn_tfidf, baselines.regularisation_settings, {"task": "labels"}, ITEMS),
    "zero-shot": Method(
        prompted.learn_zero_shot,
        prompted.ranking_settings,
        {"text": "none", "task": "none"},
        "no training data, only validation items to choose how labels are compared",
        is_seeded=False,
    ),
    "one-shot": Method(
        prompted.learn_one_shot,
        prompted.ranking_settings,
        {"text": "none", "task": "one"},
        "one training document or one labelled item, in the prompt",
    ),
    "few-shot": Method(
        prompted.learn_few_shot,
        prompted.ranking_settings,
        {"text": "none", "task": "shots"},
        "a few training documents or as many labelled items, in the prompt",
    ),
    "neighbour-shots": Method(
        prompted.learn_neighbours,
        prompted.ranking_settings,
        {"task": "labels"},
        "the labelled items nearest to each input, in the prompt",
    ),
    "retrieval": Method(
        prompted.learn_retrieval,
        prompted.ranking_settings,
        {"task": "none"},
        "the passages of all training documents nearest to each input, in the prompt",
        retrieves=True,
        is_seeded=False,
    ),
    "scratch": Method(scratch.learn_scratch, tuned.learning_rates_of("scratch"), {"text": "share"}, TEXT, ("scratch",)),
    "scratch-supervised": Method(
        scratch.learn_scratch_supervised,
        tuned.learning_rates_of("scratch"),
        {"task": "labels"},
        "all training documents, then labelled items",
        ("scratch",),
        "scratch",
    ),
    "random-supervised": Method(
        scratch.learn_random_supervised,
        tuned.learning_rates_of("scratch"),
        {"task": "labels"},
        "labelled items, and all training documents for the tokenizer",
        ("scratch",),
    ),
    "full": Method(
        tuned.learn_tuned, tuned.learning_rates_of("full"), {"text": "share", "task": "labels"}, EITHER, ("full",)
    ),
    "top-layers": Method(
        tuned.learn_tuned,
        tuned.learning_rates_of("top_layers"),
        {"text": "share", "task": "labels"},
        EITHER,
        ("top_layers",),
    ),
    "lora": Method(
        tuned.learn_tuned, tuned.learning_rates_of("lora"), {"text": "share", "task": "labels"}, EITHER, ("lora",)
    ),
    "soft-prompt": Method(
        tuned.learn_tuned,
        tuned.learning_rates_of("soft_prompt"),
        {"text": "share", "task": "labels"},
        EITHER,
        ("soft_prompt",),
    ),
    "features": Method(tuned.learn_features, tuned.regularisation_settings, {"task": "labels"}, ITEMS),
    "lora-neighbours": Method(
        tuned.learn_lora_with_neighbours,
        tuned.learning_rates_of("lora"),
        {"task": "labels"},
        "labelled items: for training without shots, then those nearest to each input in the prompt",
        ("lora",),
    ),
    "text-then-shots": Method(
        tuned.learn_text_then_shots,
        prompted.ranking_settings,
        {"task": "shots"},
        "all training documents for LoRA, and a few labelled items in the prompt",
        ("lora",),
        "lora",
    ),
}
