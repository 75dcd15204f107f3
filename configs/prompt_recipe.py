"""The settings of prompts and of the passage store; shared settings are in configs/schema.py."""

from typing import Literal

from pydantic import Field

from configs.schema import DataConfig, Section, TaskConfig


class PromptRecipe(Section):
    """Evaluate a prompted model on a task, zero-shot or with solved examples (few-shot).

    The instruction comes from the task.
    """

    model: str = "smollm2-135m"
    """A foundation model, a .gguf file, a Hugging Face folder or name, or a run directory."""
    data: DataConfig = DataConfig()
    task: TaskConfig = TaskConfig()
    shots: int = Field(4, ge=0)
    """Number of solved examples before every input; 0: zero-shot."""
    choose: Literal["drawn", "nearest"] = "drawn"
    """drawn: the same random examples for every input; nearest: the training items most similar to
    each input."""
    chosen: list[str] = Field([])
    """Ids of training items to show instead, in this order; a line of a file is FILE:NUMBER."""
    seed: int = Field(0, ge=0)
    """Seed for drawing the examples."""
    calibrate: bool = False
    """Calibration: subtract the model's preference for each label that is independent of the input."""
    per_token: bool = False
    """Rank labels by log-likelihood per token, so that short labels have no advantage."""


class StoreRecipe(Section):
    """A store of passages for retrieval."""

    data: DataConfig = DataConfig()
    chunk_chars: int = Field(600, ge=50)
    """Maximum length of a passage in characters."""
