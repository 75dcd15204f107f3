"""The settings of a study; shared settings are in configs/schema.py."""

from typing import Annotated

from pydantic import Field, model_validator

from configs.finetune_recipe import LoraConfig, SoftPromptConfig, TopLayersConfig
from configs.schema import DataConfig, ModelConfig, Section, TaskConfig, TokenizerConfig, TrainConfig

Rate = Annotated[float, Field(gt=0)]


class TunedMethod(Section):
    """One fine-tuning method, on a share of the text or on labelled items."""

    text_rates: list[Rate] = Field([3e-4, 1e-3], min_length=1)
    """Hyperparameter search: learning rates to try on text; validation chooses."""
    task_rates: list[Rate] = Field([3e-4, 1e-3], min_length=1)
    """Learning rates to try on the task; validation chooses."""
    text: TrainConfig = TrainConfig()
    task: TrainConfig = TrainConfig()


class TunedTopLayers(TunedMethod, TopLayersConfig):
    """Top-layer tuning, with the settings of a fine-tuning recipe."""


class TunedLora(TunedMethod, LoraConfig):
    """LoRA, with the settings of a fine-tuning recipe."""


class TunedSoftPrompt(TunedMethod, SoftPromptConfig):
    """A soft prompt, with the settings of a fine-tuning recipe."""


class ScratchMethod(TunedMethod):
    """A tokenizer and a model trained from scratch on the corpus."""

    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig = ModelConfig()


class StudyRecipe(Section):
    """A comparison of training from scratch, fine-tuning and prompting on one corpus, task and budget."""

    data: DataConfig = DataConfig()
    task: TaskConfig = TaskConfig()
    """With `name = ""` there is no task, and only text is measured."""
    foundation: str = "smollm2-135m"
    """The pretrained model for prompting and fine-tuning."""
    general: str = "python-stdlib"
    """A corpus that no method trains on; the rise of its bits per byte measures forgetting."""
    text_methods: list[str] = Field([])
    """Methods to measure on held-out text; empty: all that support it."""
    task_methods: list[str] = Field([])
    """Methods to measure on the task; empty: all that support it."""
    shares: list[Annotated[float, Field(gt=0, le=1)]] = Field([1.0], min_length=1)
    """Text sizes: shares of the training documents."""
    labels: list[Annotated[int, Field(ge=1)]] = Field([512], min_length=1)
    """Task sizes: numbers of labelled items."""
    seeds: list[Annotated[int, Field(ge=0)]] = Field([0], min_length=1)
    """Every seed draws its own documents, items, shots and initial weights."""
    tries: int = Field(2, ge=1)
    """Hyperparameter search: settings that every method tries, on the first seed; validation
    chooses."""
    budget_seconds: float = Field(60.0, gt=0)
    """Training seconds of each cell and try, on text and again on the task."""
    budget_flops: float = Field(0.0, ge=0)
    """If not 0: a budget in FLOPs instead of seconds."""
    price_per_hour: float = Field(0.0, ge=0)
    """Price of the machine per hour, in any currency."""
    price_per_label: float = Field(0.0, ge=0)
    """Price of one labelled item, in the same currency."""
    requests: int = Field(1000, ge=1)
    """Number of requests that costs are computed for."""
    shots: int = Field(4, ge=1)
    """Examples in a few-shot prompt."""
    test_documents: int = Field(120, ge=1)
    """Held-out documents scored in bits per byte."""
    seq_len: int = Field(256, ge=2)
    """Length of a training window of text for the foundation, in tokens."""
    scratch: ScratchMethod = ScratchMethod()
    full: TunedMethod = TunedMethod()
    top_layers: TunedTopLayers = TunedTopLayers()
    lora: TunedLora = TunedLora()
    soft_prompt: TunedSoftPrompt = TunedSoftPrompt()

    @model_validator(mode="after")
    def _comparable(self) -> "StudyRecipe":
        for name in ("seeds", "shares", "labels"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} = {values} holds a value twice")
        for name in ("scratch", "full", "top_layers", "lora", "soft_prompt"):
            for kind in ("text_rates", "task_rates"):
                rates = getattr(getattr(self, name), kind)
                if len(rates) != self.tries:
                    raise ValueError(
                        f"{name}.{kind} has {len(rates)} rates, but tries = {self.tries}: every method tries as many"
                    )
        if self.general == self.data.corpus:
            raise ValueError(f'general = "{self.general}" is the training corpus: name another corpus')
        return self
