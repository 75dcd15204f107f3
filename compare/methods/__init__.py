"""The methods of a study: what each learns, tries, and may see."""

from compare.method import Method, nothing
from compare.methods import baselines, prompted, scratch, tuned

BASELINES = ("xz", "zstd", "ngram", "majority", "tfidf")
TEXT = "the training documents of its share"
ITEMS = "its labelled items"
EITHER = "the training documents of its share, or its labelled items"

METHODS: dict[str, Method] = {
    "xz": Method(baselines.learn_compressor, nothing, {"text": "share"}, TEXT),
    "zstd": Method(baselines.learn_compressor, nothing, {"text": "share"}, TEXT),
    "ngram": Method(baselines.learn_ngram, baselines.ngram_orders, {"text": "share"}, TEXT),
    "majority": Method(baselines.learn_majority, nothing, {"task": "labels"}, "the labels of its items"),
    "tfidf": Method(baselines.learn_tfidf, baselines.strengths, {"task": "labels"}, ITEMS),
    "zero-shot": Method(
        prompted.learn_zero_shot,
        prompted.ways_to_rank,
        {"text": "none", "task": "none"},
        "nothing of the domain but what chooses how labels are compared",
        seeded=False,
    ),
    "one-shot": Method(
        prompted.learn_one_shot,
        prompted.ways_to_rank,
        {"text": "none", "task": "one"},
        "one training document, or one labelled item",
    ),
    "few-shot": Method(
        prompted.learn_few_shot,
        prompted.ways_to_rank,
        {"text": "none", "task": "shots"},
        "a few training documents, or as many labelled items",
    ),
    "neighbour-shots": Method(
        prompted.learn_neighbours,
        prompted.ways_to_rank,
        {"task": "labels"},
        "of its labelled items those nearest to each input",
    ),
    "retrieval": Method(
        prompted.learn_retrieval,
        prompted.ways_to_rank,
        {"task": "none"},
        "of all training documents the passages nearest to each input",
        looks_up=True,
        seeded=False,
    ),
    "scratch": Method(scratch.learn_scratch, tuned.rates_of("scratch"), {"text": "share"}, TEXT, ("scratch",)),
    "scratch-supervised": Method(
        scratch.learn_scratch_supervised,
        tuned.rates_of("scratch"),
        {"task": "labels"},
        "all training documents, then its labelled items",
        ("scratch",),
        "scratch",
    ),
    "random-supervised": Method(
        scratch.learn_random_supervised,
        tuned.rates_of("scratch"),
        {"task": "labels"},
        "its labelled items, with a tokenizer of all training documents",
        ("scratch",),
    ),
    "full": Method(tuned.learn_tuned, tuned.rates_of("full"), {"text": "share", "task": "labels"}, EITHER, ("full",)),
    "top-layers": Method(
        tuned.learn_tuned, tuned.rates_of("top_layers"), {"text": "share", "task": "labels"}, EITHER, ("top_layers",)
    ),
    "lora": Method(tuned.learn_tuned, tuned.rates_of("lora"), {"text": "share", "task": "labels"}, EITHER, ("lora",)),
    "soft-prompt": Method(
        tuned.learn_tuned, tuned.rates_of("soft_prompt"), {"text": "share", "task": "labels"}, EITHER, ("soft_prompt",)
    ),
    "features": Method(tuned.learn_features, tuned.strengths, {"task": "labels"}, ITEMS),
    "lora-neighbours": Method(
        tuned.learn_lora_with_neighbours,
        tuned.rates_of("lora"),
        {"task": "labels"},
        "its labelled items: learnt without shots, then those nearest to each input shown",
        ("lora",),
    ),
    "text-then-shots": Method(
        tuned.learn_text_then_shots,
        prompted.ways_to_rank,
        {"task": "shots"},
        "all training documents, learnt by LoRA, and a few labelled items, shown",
        ("lora",),
        "lora",
    ),
}
