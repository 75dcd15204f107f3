"""The arms of a study: what each learns, tries, and may see."""

from compare.arm import Arm, nothing
from compare.arms import floors, prompted, scratch, tuned

FLOORS = ("xz", "zstd", "ngram", "majority", "tfidf")
TEXT = "the training documents of its share"
ITEMS = "its labelled items"
EITHER = "the training documents of its share, or its labelled items"

ARMS: dict[str, Arm] = {
    "xz": Arm(floors.learn_compressor, nothing, {"text": "share"}, TEXT),
    "zstd": Arm(floors.learn_compressor, nothing, {"text": "share"}, TEXT),
    "ngram": Arm(floors.learn_ngram, floors.ngram_orders, {"text": "share"}, TEXT),
    "majority": Arm(floors.learn_majority, nothing, {"task": "labels"}, "the labels of its items"),
    "tfidf": Arm(floors.learn_tfidf, floors.strengths, {"task": "labels"}, ITEMS),
    "zero-shot": Arm(
        prompted.learn_zero_shot,
        prompted.ways_to_rank,
        {"text": "none", "task": "none"},
        "nothing of the domain but what chooses how labels are compared",
        seeded=False,
    ),
    "one-shot": Arm(
        prompted.learn_one_shot,
        prompted.ways_to_rank,
        {"text": "none", "task": "one"},
        "one training document, or one labelled item",
    ),
    "few-shot": Arm(
        prompted.learn_few_shot,
        prompted.ways_to_rank,
        {"text": "none", "task": "shots"},
        "a few training documents, or as many labelled items",
    ),
    "neighbour-shots": Arm(
        prompted.learn_neighbours,
        prompted.ways_to_rank,
        {"task": "labels"},
        "of its labelled items those nearest to each input",
    ),
    "retrieval": Arm(
        prompted.learn_retrieval,
        prompted.ways_to_rank,
        {"task": "none"},
        "of all training documents the passages nearest to each input",
        looks_up=True,
        seeded=False,
    ),
    "scratch": Arm(scratch.learn_scratch, tuned.rates_of("scratch"), {"text": "share"}, TEXT, ("scratch",)),
    "scratch-supervised": Arm(
        scratch.learn_scratch_supervised,
        tuned.rates_of("scratch"),
        {"task": "labels"},
        "all training documents, then its labelled items",
        ("scratch",),
        "scratch",
    ),
    "random-supervised": Arm(
        scratch.learn_random_supervised,
        tuned.rates_of("scratch"),
        {"task": "labels"},
        "its labelled items, with a tokenizer of all training documents",
        ("scratch",),
    ),
    "full": Arm(tuned.learn_tuned, tuned.rates_of("full"), {"text": "share", "task": "labels"}, EITHER, ("full",)),
    "top-layers": Arm(
        tuned.learn_tuned,
        tuned.rates_of("top_layers"),
        {"text": "share", "task": "labels"},
        EITHER,
        ("top_layers", "top"),
    ),
    "lora": Arm(
        tuned.learn_tuned, tuned.rates_of("lora"), {"text": "share", "task": "labels"}, EITHER, ("lora", "adapter")
    ),
    "soft-prompt": Arm(
        tuned.learn_tuned,
        tuned.rates_of("soft_prompt"),
        {"text": "share", "task": "labels"},
        EITHER,
        ("soft_prompt", "vectors"),
    ),
    "features": Arm(tuned.learn_features, tuned.strengths, {"task": "labels"}, ITEMS),
    "lora-neighbours": Arm(
        tuned.learn_lora_with_neighbours,
        tuned.rates_of("lora"),
        {"task": "labels"},
        "its labelled items: learnt without shots, then those nearest to each input shown",
        ("lora", "adapter"),
    ),
    "text-then-shots": Arm(
        tuned.learn_text_then_shots,
        prompted.ways_to_rank,
        {"task": "shots"},
        "all training documents, learnt by LoRA, and a few labelled items, shown",
        ("lora", "adapter"),
        "lora",
    ),
}
