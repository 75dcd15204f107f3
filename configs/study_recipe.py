"""Every setting of a study, on one page: see configs/schema.py for the rest."""

from typing import Annotated

from pydantic import Field, model_validator

from configs.finetune_recipe import LoraConfig, SoftPromptConfig, TopLayersConfig
from configs.schema import DataConfig, ModelConfig, Section, TaskConfig, TokenizerConfig, TrainConfig

Rate = Annotated[float, Field(gt=0)]


class TunedMethod(Section):
    """One way to tune the foundation: on a share of the text, or on labelled items."""

    text_rates: list[Rate] = Field([3e-4, 1e-3], min_length=1)
    """Learning rates that are tried on text; validation chooses."""
    task_rates: list[Rate] = Field([3e-4, 1e-3], min_length=1)
    """Learning rates that are tried on the task."""
    text: TrainConfig = TrainConfig()
    task: TrainConfig = TrainConfig()


class TunedTopLayers(TunedMethod, TopLayersConfig):
    """The top layers, with the settings of a fine-tuning recipe."""


class TunedLora(TunedMethod, LoraConfig):
    """LoRA, with the settings of a fine-tuning recipe."""


class TunedSoftPrompt(TunedMethod, SoftPromptConfig):
    """A soft prompt, with the settings of a fine-tuning recipe."""


class ScratchMethod(TunedMethod):
    """An own tokenizer and model, trained from random weights."""

    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig = ModelConfig()


class StudyRecipe(Section):
    """From scratch, fine-tune or prompt: the same corpus, task and budget for every method."""

    data: DataConfig = DataConfig()
    task: TaskConfig = TaskConfig()
    """With `name = ""` there is none, and text alone is measured."""
    foundation: str = "smollm2-135m"
    """The pretrained model that is prompted and tuned."""
    general: str = "python-stdlib"
    """A corpus that no method learns: how much worse it is predicted afterwards is forgetting."""
    text_methods: list[str] = Field([])
    """Arms that are measured on held-out text; empty: all that can be."""
    task_methods: list[str] = Field([])
    """Arms that are measured on the task; empty: all that can be."""
    shares: list[Annotated[float, Field(gt=0, le=1)]] = Field([1.0], min_length=1)
    """Sizes of the text: shares of the training documents."""
    labels: list[Annotated[int, Field(ge=1)]] = Field([512], min_length=1)
    """Sizes of the task: numbers of labelled items."""
    seeds: list[Annotated[int, Field(ge=0)]] = Field([0], min_length=1)
    """What is drawn (documents, items, shots, weights) is drawn once per seed."""
    tries: int = Field(2, ge=1)
    """Settings that every method may try, on its first seed; validation chooses."""
    budget_seconds: float = Field(60.0, gt=0)
    """Seconds of training on text, and as many on the task, of each cell and try."""
    budget_flops: float = Field(0.0, ge=0)
    """If not 0: FLOPs instead of seconds."""
    price_per_hour: float = Field(0.0, ge=0)
    """What the machine costs, in any currency."""
    price_per_label: float = Field(0.0, ge=0)
    """What one labelled item costs, in the same currency."""
    requests: int = Field(1000, ge=1)
    """How many requests costs are given for."""
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
    def _comparable(self):
        for name in ("seeds", "shares", "labels"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} = {values} holds a value twice")
        for name in ("scratch", "full", "top_layers", "lora", "soft_prompt"):
            for kind in ("text_rates", "task_rates"):
                rates = getattr(getattr(self, name), kind)
                if len(rates) != self.tries:
                    raise ValueError(
                        f"{name}.{kind} has {len(rates)} rates; every method tries {self.tries} settings (tries)"
                    )
        if self.general == self.data.corpus:
            raise ValueError(f'general = "{self.general}" is what is learnt: name another corpus')
        return self
