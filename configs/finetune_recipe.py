"""The settings of a fine-tuning recipe; shared settings are in configs/schema.py."""

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
    """Dropout probability on the inputs of an adapter."""
    targets: list[str] = Field(["wq", "wk", "wv", "wo", "w1", "w2", "w3"], min_length=1)
    """Which linear layers of every block get an adapter."""

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / self.rank ** (0.5 if self.rank_stabilized else 1.0)


class TopLayersConfig(Section):
    """Train the last blocks, the final norm and the output projection; freeze the rest."""

    layers: int = Field(4, ge=0)
    """Number of trained blocks."""


class SoftPromptConfig(Section):
    """Train vectors before every text; freeze the model (Lester et al. 2021)."""

    tokens: int = Field(20, ge=1)
    """Number of vectors."""
    init_text: str = ""
    """Initialise them with the embeddings of this text, repeated; empty: of random tokens."""
    hidden_dim: int = Field(0, ge=0)
    """If not 0, compute them with a trained network of this width (prompt encoder; Liu et al. 2021,
    arXiv:2103.10385)."""


class FeaturesConfig(Section):
    """Train a classifier on the hidden states of the frozen model."""

    pooling: Literal["mean", "last"] = "mean"
    """The feature vector of a text: the mean over its tokens, or the last token."""
    layers: Literal["best", "last", "all"] = "best"
    """The layer with the best validation score, the last one, or all concatenated."""


class FinetuneRecipe(Section):
    """Fine-tune a foundation model or a run on domain text, on a task, or on examples."""

    FORMER_NAMES: ClassVar = {"way": "method"}

    base: str = "smollm2-135m"
    """A foundation model, a .gguf file, a Hugging Face folder or name, or a run directory."""
    method: Literal["full", "top_layers", "lora", "soft_prompt", "features"] = "lora"
    """What to train: all weights (full), the top layers, LoRA adapters, a soft prompt, or a classifier
    on frozen features (for a task with labels)."""
    data: DataConfig = DataConfig()
    seq_len: int = Field(256, ge=2)
    """Length of a training window of domain text, or of packed examples, in tokens."""
    examples: str = ""
    """A .jsonl file of {"prompt", "completion"} or {"messages"} rows to train on instead of text."""
    pack: bool = False
    """Pack several examples into a window; a document mask separates them."""
    task: TaskConfig | None = None
    lora: LoraConfig = LoraConfig()
    top_layers: TopLayersConfig = TopLayersConfig()
    soft_prompt: SoftPromptConfig = SoftPromptConfig()
    features: FeaturesConfig = FeaturesConfig()
    general: str = "python-stdlib"
    """A corpus that is not trained on; the rise of its bits per byte measures forgetting."""
    train: TrainConfig = TrainConfig()
    sample: SampleConfig = SampleConfig()

    @model_validator(mode="after")
    def _one_kind_of_data(self) -> "FinetuneRecipe":
        if self.examples and self.task:
            raise ValueError("give examples or a [task], not both")
        if self.method == "features" and not self.task:
            raise ValueError('method = "features" classifies: it needs a [task]')
        own = self.examples or (self.task and self.task.name.endswith(".jsonl"))
        if self.general == self.data.corpus and not own and self.method != "features":
            raise ValueError(f'general = "{self.general}" is the training corpus: name another corpus')
        if self.pack and self.method == "soft_prompt":
            raise ValueError("pack = true: a soft prompt precedes a window, not each text in it; use pack = false")
        return self


class MergedModel(Section):
    """config.toml in a run directory of merged weights."""

    base: str
    """The base model that was adapted."""
    trained_on: str = ""
    """A description of the training data, if known."""
    model: ModelConfig
