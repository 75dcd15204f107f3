"""Every setting of a study, on one page: see configs/schema.py for the rest."""

from typing import Annotated

from pydantic import Field, model_validator

from configs.schema import (
    DataConfig,
    LoraConfig,
    ModelConfig,
    Section,
    TaskConfig,
    TokenizerConfig,
    TrainConfig,
)


class ScratchArm(Section):
    """From scratch: own tokenizer and model; pretrained on the text, then tuned on the task."""

    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig = ModelConfig()
    text: TrainConfig = TrainConfig()
    task: TrainConfig = TrainConfig()


class LoraArm(Section):
    """Fine-tuning: an adapter tuned on the text, then further on the task."""

    lora: LoraConfig = LoraConfig()
    seq_len: int = Field(256, ge=2)
    """Length of a training window of domain text, in tokens."""
    text: TrainConfig = TrainConfig()
    task: TrainConfig = TrainConfig()


class StudyRecipe(Section):
    """From scratch, fine-tune or prompt: the same corpus, task and seconds for every arm."""

    data: DataConfig = DataConfig()
    task: TaskConfig = TaskConfig()
    foundation: str = "smollm2-135m"
    """The pretrained model that is prompted and fine-tuned."""
    seeds: list[Annotated[int, Field(ge=0)]] = Field([0], min_length=1)
    """Trained arms and few-shot prompts run once per seed."""
    budget_seconds: float = Field(240.0, gt=0)
    """Wall-clock seconds of training per trained arm, text and task together."""
    task_share: float = Field(0.4, gt=0, lt=1)
    """Share of the budget spent on the task's items."""
    shots: int = Field(4, ge=1)
    """Examples in a few-shot prompt."""
    test_documents: int = Field(120, ge=1)
    """Held-out documents scored in bits per byte."""
    scratch: ScratchArm = ScratchArm()
    lora: LoraArm = LoraArm()

    @model_validator(mode="after")
    def _seeds_differ(self):
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds = {self.seeds} holds a seed twice")
        return self
