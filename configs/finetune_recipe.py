"""The settings of a fine-tuning recipe; configs/schema.py holds the settings that it shares."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from configs.schema import DataConfig, ModelConfig, SampleConfig, Section, TaskConfig, TrainConfig


class LoraConfig(Section):
    """Low-rank adapters on the linear layers (Hu et al. 2021, arXiv:2106.09685)."""

    rank: int = Field(8, ge=1)
    """Rank of the update."""
    alpha: float = Field(16.0, gt=0)
    """The update is scaled by alpha / rank."""
    rank_stabilized: bool = False
    """Scale by alpha / sqrt(rank) instead (rsLoRA; Kalajdzievski 2023, arXiv:2312.03732)."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of an adapter's inputs that is dropped in training."""
    targets: list[str] = Field(["wq", "wk", "wv", "wo", "w1", "w2", "w3"], min_length=1)
    """Which linear layers of every block get an adapter."""


class TopLayersConfig(Section):
    """The last blocks, the last norm and the output projection are trained, the rest is frozen."""

    layers: int = Field(4, ge=0)
    """Blocks that are trained."""


class SoftPromptConfig(Section):
    """Vectors before every text are trained, the model is frozen (Lester et al. 2021)."""

    tokens: int = Field(20, ge=1)
    """How many vectors."""
    init_text: str = ""
    """They start as the embeddings of this text, repeated; empty: of random tokens."""
    hidden_dim: int = Field(0, ge=0)
    """If not 0, they are the output of a trained network of this width (prompt encoder; Liu et al.
    2021, arXiv:2103.10385)."""


class FeaturesConfig(Section):
    """The model is frozen; a classifier is trained on what its layers say of a text."""

    pooling: Literal["mean", "last"] = "mean"
    """A text is the mean of its tokens' features, or the last one's."""
    layers: Literal["best", "last", "all"] = "best"
    """The layer that does best on validation, the last one, or all side by side."""


class FinetuneRecipe(Section):
    """Fine-tune a foundation model or a run on domain text, on a task, or on examples."""

    FORMER_NAMES: ClassVar = {"way": "method"}

    base: str = "smollm2-135m"
    """A foundation model, a .gguf file, a Hugging Face folder or name, or a run directory."""
    method: Literal["full", "top_layers", "lora", "soft_prompt", "features"] = "lora"
    """What is trained: all weights (full), the last layers, LoRA adapters, a soft prompt, or a
    classifier on frozen features (for a task with labels)."""
    data: DataConfig = DataConfig()
    seq_len: int = Field(256, ge=2)
    """Length of a training window of domain text, or of packed examples, in tokens."""
    examples: str = ""
    """A .jsonl file of {"prompt", "completion"} or {"messages"} rows to train on, not text."""
    pack: bool = False
    """Put as many examples into a window as fit; they see nothing of each other."""
    task: TaskConfig | None = None
    lora: LoraConfig = LoraConfig()
    top_layers: TopLayersConfig = TopLayersConfig()
    soft_prompt: SoftPromptConfig = SoftPromptConfig()
    features: FeaturesConfig = FeaturesConfig()
    general: str = "python-stdlib"
    """A corpus that is not trained on: how much worse it is predicted afterwards is forgetting."""
    train: TrainConfig = TrainConfig()
    sample: SampleConfig = SampleConfig()

    @model_validator(mode="after")
    def _one_kind_of_data(self):
        if self.examples and self.task:
            raise ValueError("give examples or a [task], not both")
        if self.method == "features" and not self.task:
            raise ValueError('method = "features" classifies: it needs a [task]')
        own = self.examples or (self.task and self.task.name.endswith(".jsonl"))
        if self.general == self.data.corpus and not own and self.method != "features":
            raise ValueError(f'general = "{self.general}" is what is trained on: name another corpus')
        if self.pack and self.method == "soft_prompt":
            raise ValueError("pack = true: a soft prompt stands before a row, not before each text")
        return self


class MergedModel(Section):
    """What a run directory of merged weights says of itself."""

    base: str
    """What was adapted."""
    trained_on: str = ""
    """In words, if that is known."""
    model: ModelConfig
