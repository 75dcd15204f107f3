"""Every setting of prompts and of the store, on one page: see configs/schema.py for the rest."""

from typing import Literal

from pydantic import Field, model_validator

from configs.schema import DataConfig, Section, TaskConfig


class PromptRecipe(Section):
    """A task put to a model by prompt: with an instruction or none, with solved examples or none.

    The instruction is the task's.
    """

    model: str = "smollm2-135m"
    """A foundation model, a .gguf file, a Hugging Face folder or name, or a run directory."""
    data: DataConfig = DataConfig()
    task: TaskConfig = TaskConfig()
    shots: int = Field(4, ge=0)
    """Solved examples before every input; 0: none."""
    choose: Literal["drawn", "nearest"] = "drawn"
    """The same ones for every input, drawn by `seed`, or each input's nearest in the training
    items."""
    chosen: list[str] = Field([])
    """Ids of training items to show instead, in this order; a line of a file is FILE:NUMBER."""
    seed: int = Field(0, ge=0)
    """Draws the examples."""
    calibrate: bool = False
    """Take off what the model prefers to answer whatever the input is."""
    per_token: bool = False
    """Compare labels by log-likelihood per token, so that short ones have no advantage."""
    write: bool = False
    """Let the model write the label instead of ranking the labels there are."""

    @model_validator(mode="after")
    def _ranked_or_written(self):
        if self.write and (self.calibrate or self.per_token):
            raise ValueError("write = true ranks nothing: leave out calibrate and per_token")
        return self


class StoreRecipe(Section):
    """A store of passages to retrieve from."""

    data: DataConfig = DataConfig()
    encoder: str = "wordllama"
    """What makes vectors of texts: wordllama, or a foundation model, a file or a run."""
    chunk_chars: int = Field(600, ge=50)
    """A document is cut into passages of at most so many characters."""
