"""The settings of a study; shared settings are in configs/schema.py.

The defaults are those of a study on two CPU cores; a recipe needs only what differs.
"""

from typing import Annotated, Any

from pydantic import Field, model_validator

from configs.finetune_recipe import LoraConfig, SoftPromptConfig, TopLayersConfig
from configs.schema import DataConfig, ModelConfig, Section, TaskConfig, TokenizerConfig, TrainConfig

Rate = Annotated[float, Field(gt=0)]
RATE_STEP = 3.0  # factor between two learning rates of a search, for every method


class TunedMethod(Section):
    """One trained method, on a share of the text or on labelled items.

    A study sets the number of steps and the evaluations.
    """

    text_rate: Rate = 3e-4
    """The middle of the learning rates that are tried on text."""
    task_rate: Rate = 3e-4
    """The middle of the learning rates that are tried on the task."""
    text: TrainConfig = TrainConfig(batch_size=1, micro_batch_size=1)
    task: TrainConfig = TrainConfig(batch_size=4, micro_batch_size=4)

    @model_validator(mode="before")
    @classmethod
    def _over_defaults(cls, values: Any) -> Any:
        # A table in a recipe changes the default table, instead of replacing it.
        if not isinstance(values, dict):
            return values
        merged = dict(values)
        for name, field in cls.model_fields.items():
            default = field.get_default()
            if isinstance(default, Section) and isinstance(values.get(name), dict):
                merged[name] = default.model_dump(exclude_unset=True) | values[name]
        return merged


class TunedFull(TunedMethod):
    """Full fine-tuning."""

    task_rate: Rate = 2e-4


class TunedTopLayers(TunedMethod, TopLayersConfig):
    """Top-layer tuning, with the settings of a fine-tuning recipe."""

    text_rate: Rate = 7e-4
    task_rate: Rate = 4e-4


class TunedLora(TunedMethod, LoraConfig):
    """LoRA, with the settings of a fine-tuning recipe."""

    text_rate: Rate = 5e-3
    task_rate: Rate = 2e-3


class TunedSoftPrompt(TunedMethod, SoftPromptConfig):
    """A soft prompt, with the settings of a fine-tuning recipe."""

    tokens: int = Field(16, ge=1)
    text_rate: Rate = 0.1
    task_rate: Rate = 0.1


class ScratchMethod(TunedMethod):
    """A tokenizer and a model trained from scratch on the corpus: by default the recipe of configs/speedrun-1m.toml."""

    text_rate: Rate = 8e-3
    task_rate: Rate = 1e-3
    text: TrainConfig = TrainConfig(
        optimizer="muon", schedule="wsd", batch_size=4, micro_batch_size=4, embedding_lr=16.0, warmup=0.02, cooldown=0.5
    )
    task: TrainConfig = TrainConfig(batch_size=32, micro_batch_size=32)
    tokenizer: TokenizerConfig = TokenizerConfig(vocab_size=1024)
    model: ModelConfig = ModelConfig(
        dim=128,
        n_layers=4,
        n_heads=4,
        n_kv_heads=4,
        head_dim=32,
        hidden_dim=512,
        max_seq_len=256,
        activation="relu2",
        qk_norm=True,
        key_shift=True,
        tie_embeddings=True,
        embedding_norm=True,
        value_embeddings=True,
        bigram_buckets=20480,
        zero_init=True,
    )


class StudyRecipe(Section):
    """A comparison of training from scratch, fine-tuning and prompting on one corpus, task and budget."""

    data: DataConfig = DataConfig()
    task: TaskConfig = TaskConfig()
    """With `name = ""` there is no task, and only text is measured."""
    foundations: list[str] = Field(["smollm2-135m"], min_length=1)
    """The pretrained models for prompting and fine-tuning."""
    general: str = "python-stdlib"
    """A corpus that no method trains on; the rise of its bits per byte measures forgetting. Empty: not measured."""
    text_methods: list[str] = Field([])
    """Methods to measure on held-out text; empty: all that support it."""
    task_methods: list[str] = Field([])
    """Methods to measure on the task; empty: all that support it."""
    shares: list[Annotated[float, Field(gt=0, le=1)]] = Field([1.0], min_length=1)
    """Text sizes: shares of the training documents. Curves are extrapolated from four or more."""
    labels: list[Annotated[int, Field(ge=1)]] = Field([512], min_length=1)
    """Task sizes: numbers of labelled items."""
    seeds: list[Annotated[int, Field(ge=0)]] = Field([0], min_length=1)
    """Every seed draws its own documents, items, shots and initial weights."""
    largest_seeds: list[Annotated[int, Field(ge=0)]] = Field([])
    """Further seeds for the largest size alone, which decides."""
    tries: int = Field(3, ge=1)
    """Hyperparameter search: settings that every method tries, as far apart for each; validation
    chooses. A seed of its own tries them, whose models are not scored on the test split."""
    budget_seconds: float = Field(60.0, gt=0)
    """Training seconds of each cell and try, on text and again on the task. They are spent as steps:
    the speed of every method is measured once, before anything is trained."""
    budget_factors: list[Annotated[float, Field(gt=0)]] = Field([])
    """Other budgets on the largest text, as multiples of budget_seconds."""
    text_margin: float = Field(0.02, ge=0)
    """A method is recommended for the text if it is at most this share worse than the best, in bits per byte."""
    task_margin: float = Field(0.03, ge=0)
    """A method is recommended for the task if it has at most this share of items fewer right than the best."""
    price_per_hour: float = Field(0.1, ge=0)
    """Price of the machine per hour, in any currency."""
    price_per_label: float = Field(0.02, ge=0)
    """Price of one labelled item, in the same currency."""
    requests: int = Field(1000, ge=1)
    """Number of requests that costs are computed for."""
    shots: int = Field(4, ge=1)
    """Examples in a few-shot prompt."""
    test_documents: int = Field(64, ge=1)
    """Held-out documents scored in bits per byte."""
    seq_len: int = Field(256, ge=2)
    """Length of a training window of text for the foundation, in tokens."""
    scratch: ScratchMethod = ScratchMethod()
    full: TunedFull = TunedFull()
    top_layers: TunedTopLayers = TunedTopLayers()
    lora: TunedLora = TunedLora()
    soft_prompt: TunedSoftPrompt = TunedSoftPrompt()

    @model_validator(mode="after")
    def _comparable(self) -> "StudyRecipe":
        for name in ("foundations", "seeds", "shares", "labels", "budget_factors"):
            values = getattr(self, name) + (self.largest_seeds if name == "seeds" else [])
            if len(set(values)) < len(values):
                raise ValueError(f"{name} = {values} holds a value twice")
        if 1.0 in self.budget_factors:
            raise ValueError("budget_factors holds 1.0, which is budget_seconds itself: name other factors")
        if self.general == self.data.corpus:
            raise ValueError(f'general = "{self.general}" is the training corpus: name another corpus')
        return self

    def rates(self, middle: float) -> list[float]:
        """The learning rates of a search around `middle`: as many as `tries`, a factor of RATE_STEP apart."""
        return [middle * RATE_STEP ** (i - (self.tries - 1) / 2) for i in range(self.tries)]
