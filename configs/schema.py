"""All settings of a recipe.

A recipe is a TOML file with one table per class below; any key can be overridden on the command
line (`--train.steps 200`). `--help` prints the attribute docstrings. Every key is set by at least
one of the included recipes, except those that only foundation models need.
"""

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class Section(BaseModel):
    """A frozen table of settings that rejects unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    FORMER_NAMES: ClassVar[dict[str, str]] = {}
    """Key names of version 0.1, so that run directories of that version still load."""

    @model_validator(mode="before")
    @classmethod
    def _accept_former_names(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {cls.FORMER_NAMES.get(key, key): value for key, value in values.items()}


class CorpusShare(Section):
    """One corpus of a mixture."""

    path: str = Field(min_length=1)
    """What `data.corpus` accepts."""
    weight: float = Field(1.0, gt=0)
    """Share of the training windows, relative to the other weights."""


class DataConfig(Section):
    """The corpus, its cleaning and its split."""

    corpus: str = Field("folk-tunes", min_length=1)
    """A built-in (folk-tunes, aws-api, python-stdlib, molecules), a file, a folder of files, or the name of a
    dataset on the Hugging Face hub, also as name@revision. Files are text or source code, .html
    (its main text), .jsonl, .csv, .tsv or .parquet; all but .parquet may be compressed (.gz, .zst)."""
    corpora: list[CorpusShare] = []
    """Several corpora instead of `corpus`: tables with `path` and `weight`. They are deduplicated
    and split together; training draws windows by weight, whatever the size."""
    on_error: Literal["stop", "skip"] = "stop"
    """What to do with a damaged file in a folder: stop, or skip the rest of it and name it."""
    document: Literal["section", "line", "file"] = "section"
    """One document of a text file: a section of about `section_chars`, cut at line ends, a line, or
    the whole file. In .jsonl, .csv, .tsv and .parquet every row is a document."""
    text_field: str = "text"
    """Column that holds the text in .jsonl, .csv, .tsv, .parquet and hub datasets."""
    group_field: str = ""
    """Column of a group (an author, a project) that stays in one split; "file" keeps each file of a
    folder together; "document" splits document by document; empty uses the corpus's own groups
    (the built-ins have some), else splits by document."""
    section_chars: int = Field(2000, ge=1)
    """Characters per section; at most a twentieth of the text, so that some can be held out."""
    min_chars: int = Field(16, ge=1)
    """Minimum characters of a document after cleaning; shorter ones are dropped."""
    drop_similarity: float = Field(0.8, gt=0, le=1)
    """Near-duplicate removal (MinHash): drop a document whose estimated Jaccard similarity to an
    earlier one reaches this."""
    straddle_similarity: float = Field(0.5, gt=0, le=1)
    """Leak check: drop a held-out document at least this similar to a document of another split."""
    validation_fraction: float = Field(0.05, gt=0, lt=0.5)
    """Share of the characters in the validation split, for model selection."""
    test_fraction: float = Field(0.05, gt=0, lt=0.5)
    """Share of the characters in the test split, for the final score only."""
    held_out_chars: int = Field(2_000_000, ge=1)
    """Maximum characters of each held-out split; more takes longer to score and adds little."""
    split_seed: int = 0
    """Seed of the held-out split and of the order of the documents."""
    cache_dir: str = "cache"
    """Cache folder for prepared documents, tokenizers and token shards, by content hash."""


class TokenizerConfig(Section):
    """A byte-level BPE tokenizer trained on the train split."""

    vocab_size: int = Field(4096, ge=257)
    """Vocabulary size: 256 bytes, the special tokens, and merges."""
    digits: Literal["single", "triple", "any"] = "single"
    """Maximum digits per token: one, three, or any number."""
    newlines: Literal["own", "attach"] = "own"
    """own: line breaks are separate tokens; attach: they may merge with other whitespace."""
    whitespace: Literal["word", "own", "merge"] = "word"
    """word: a space starts the next word's token (GPT-2); own: it is a separate token; merge: it may
    be inside a token, so that tokens span words."""
    sample_megabytes: int = Field(200, ge=1)
    """Train on a random sample of the documents of at most this much text; all of a smaller corpus."""
    strict: bool = False
    """Fail if the corpus does not support `vocab_size`, instead of training a smaller vocabulary."""
    special_tokens: list[str] = Field(["<|endoftext|>"], min_length=1)
    """The first one separates documents and starts every generation."""

    @model_validator(mode="after")
    def _vocabulary_holds_the_bytes(self) -> "TokenizerConfig":
        least = 256 + len(self.special_tokens)
        if self.vocab_size < least:
            raise ValueError(
                f"vocab_size = {self.vocab_size} is below {least}: 256 bytes and "
                f"{len(self.special_tokens)} special tokens"
            )
        return self


class ModelConfig(Section):
    """A decoder-only transformer (with Llama's names and layout)."""

    FORMER_NAMES: ClassVar = {"unrotated_every": "nope_every"}

    dim: int = Field(256, ge=8)
    """Width of the residual stream."""
    n_layers: int = Field(4, ge=1)
    """Number of blocks."""
    n_heads: int = Field(4, ge=1)
    """Query heads."""
    n_kv_heads: int = Field(4, ge=1)
    """Key/value heads; fewer than n_heads is grouped-query attention."""
    head_dim: int = Field(64, ge=2)
    """Width of one head, even (rotary pairs)."""
    hidden_dim: int = Field(768, ge=1)
    """Width inside the feed-forward block."""
    max_seq_len: int = Field(512, ge=2)
    """Context length in tokens; also the length of a training window."""
    window: int = Field(0, ge=0)
    """Sliding window of the local layers, which alternate with global ones: a token sees this many
    tokens, its own included. 0: every layer is global."""
    activation: Literal["swiglu", "relu2", "gelu"] = "swiglu"
    """Feed-forward: gated SiLU (three matrices), squared ReLU or GELU (two)."""
    qk_norm: bool = False
    """RMS-normalise queries and keys per head before the rotary embedding."""
    key_shift: bool = False
    """The first half of the key heads uses the keys of the previous position."""
    tie_embeddings: bool = True
    """Use the input embedding as the output projection."""
    embedding_norm: bool = False
    """RMS-normalise the embedding before the first block."""
    value_embeddings: bool = False
    """Every layer adds an embedding of the token to its attention values."""
    bigram_buckets: int = Field(0, ge=0)
    """Rows of an embedding of hashed token pairs that every block adds to the residual stream; 0:
    none."""
    zero_init: bool = False
    """Initialise the projections into the residual stream with 0, so that every block starts as the
    identity."""
    rope_theta: float = Field(10000.0, gt=0)
    """Base of the rotary frequencies."""
    norm_eps: float = Field(1e-5, gt=0)
    """Added to the mean square inside RMSNorm."""
    base_dim: int = Field(0, ge=0)
    """muP: the width at which nothing is scaled. At other widths the logits and AdamW's learning rate
    for hidden matrices are multiplied by base_dim / dim, so that one learning rate fits all. 0: off."""

    # Only foundation models use the settings below; their files set them, not recipes.
    norm: Literal["rms", "layer"] = "rms"
    """RMSNorm, or GPT-2's LayerNorm with a bias."""
    biases: Literal["none", "qkv", "all"] = "none"
    """Linear layers with a bias: none, queries, keys and values (Qwen2), or all (GPT-2)."""
    positions: Literal["rotary", "learned"] = "rotary"
    """Rotary embeddings, or GPT-2's learned position embeddings."""
    nope_every: int = Field(0, ge=0)
    """NoPE: every n-th layer has no rotary positions (SmolLM3); 0: all layers have them."""
    rope_scaling: list[float] = Field([], max_length=4)
    """RoPE scaling of Llama 3.1: factor, low and high frequency factors (in turns), and original
    context length; empty: none."""
    soft_tokens: int = Field(0, ge=0)
    """Number of soft prompt vectors before every text."""

    @property
    def context(self) -> int:
        """Tokens of text that fit after the soft prompt."""
        return self.max_seq_len - self.soft_tokens

    def window_of(self, layer: int) -> int:
        """The sliding window of a layer: local and global layers alternate, and the last one is global.

        (Gemma 2, arXiv:2408.00118, section 2.)
        """
        return self.window if (self.n_layers - layer) % 2 == 0 else 0

    @property
    def width_ratio(self) -> float:
        """base_dim / dim, or 1 without a base_dim."""
        return self.base_dim / self.dim if self.base_dim else 1.0

    @model_validator(mode="after")
    def _shapes_fit(self) -> "ModelConfig":
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads = {self.n_heads} is not a multiple of n_kv_heads = {self.n_kv_heads}")
        if self.key_shift and self.n_kv_heads < 2:
            raise ValueError("key_shift = true needs n_kv_heads of 2 or more, because half of them shift")
        gpt2 = {"norm": "layer", "positions": "learned", "activation": "gelu", "biases": "all"}
        given = [name for name, value in gpt2.items() if getattr(self, name) == value]
        if given and len(given) < len(gpt2):
            others = ", ".join(f'{name} = "{value}"' for name, value in gpt2.items() if name not in given)
            raise ValueError(f'{given[0]} = "{gpt2[given[0]]}" is GPT-2\'s and needs {others}')
        if self.head_dim % 2:
            raise ValueError(f"head_dim = {self.head_dim} is odd: rotary embeddings need pairs")
        return self


class TrainConfig(Section):
    """One run of the training loop."""

    FORMER_NAMES: ClassVar = {"recompute": "activation_checkpointing", "average": "ema"}

    seed: int = Field(0, ge=0)
    """Seed of the initial weights and the data order."""
    steps: int = Field(1000, ge=1)
    """Optimiser steps."""
    max_seconds: float = Field(0.0, ge=0)
    """If not 0: train for this many seconds instead of `steps`; the schedule follows the clock.
    Evaluation and saving do not count; preflight prints an estimate of the total time."""
    max_flops: float = Field(0.0, ge=0)
    """If not 0, and max_seconds is 0: train for this many FLOPs, as the model counts them, instead
    of `steps`; torch.compile is then off with compile = "auto"."""
    batch_size: int = Field(32, ge=1)
    """Windows (or examples) per optimiser step, over all ranks."""
    micro_batch_size: int = Field(8, ge=0)
    """Windows per forward pass on one rank; gradient accumulation makes up the batch. It changes
    memory and speed, not the result. 0: as many as fit in memory."""
    document_mask: bool = False
    """Document mask: attention in a window of packed documents stays within each document."""
    learning_rate: float = Field(1e-3, gt=0)
    """Peak learning rate."""
    min_lr_ratio: float = Field(0.1, ge=0, le=1)
    """Final learning rate as a share of the peak."""
    schedule: Literal["cosine", "wsd", "linear"] = "cosine"
    """Cosine decay; warm-up, stable, (linear) decay; or linear decay."""
    warmup: float = Field(0.05, ge=0, le=1)
    """Warm-up: share of the run in which the learning rate rises."""
    cooldown: float = Field(0.2, ge=0, le=1)
    """Cool-down: share of the run in which wsd decays."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """AdamW; or Muon for the matrices inside the blocks and AdamW for the rest."""
    embedding_lr: float = Field(1.0, gt=0)
    """Learning rate of the embedding tables, as a multiple of learning_rate."""
    weight_decay: float = Field(0.1, ge=0)
    """Weight decay of matrices; vectors such as norm gains have none."""
    beta2: float = Field(0.95, gt=0, lt=1)
    """AdamW's second-moment decay (beta1 is 0.9)."""
    clip_norm: float = Field(1.0, gt=0)
    """Gradient clipping: maximum global gradient norm."""
    ema: float = Field(0.0, ge=0, lt=1)
    """Decay per step of an exponential moving average (EMA) of the weights. Evaluation and sampling
    then use the EMA. 0: no EMA."""
    on_spike: Literal["warn", "rewind"] = "warn"
    """After a loss spike: print a warning, or rewind to the newest checkpoint and continue with the
    data that follows."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """ddp: every rank holds the whole model; fsdp: parameters, gradients and optimiser moments are
    sharded over ranks."""
    activation_checkpointing: bool = False
    """Activation checkpointing: compute the activations of each block again in the backward pass
    instead of storing them."""
    compile: Literal["auto", "always", "never"] = "auto"
    """torch.compile: the whole model on one device, else each block; auto measures before a run of ten
    minutes or more whether it is faster, and a resumed run repeats the choice."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the matrix products (weights are float32); auto is bfloat16 if the device
    supports it and the model is wide enough to be faster with it, else float32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto is CUDA if there is a GPU, else the CPU; Apple's MPS is not supported."""

    @field_validator("device", mode="before")
    @classmethod
    def _no_mps(cls, value: object) -> object:
        if value == "mps":
            raise ValueError('Apple\'s GPU (MPS) is not supported; use "cpu"')
        return value

    log_every: int = Field(10, ge=1)
    """Steps between printed lines; metrics.jsonl gets every step."""
    eval_every: int = Field(100, ge=1)
    """Steps between evaluations on a fixed subset of the validation split: about 1 % of the time, but
    at least 16,384 tokens. The last step is evaluated too, and at the end the whole split."""
    save_every: int = Field(100, ge=1)
    """Steps between checkpoints; the last step is always saved."""
    patience: int = Field(0, ge=0)
    """Early stopping after this many evaluations without improvement; every improvement is saved.
    0: off."""
    keep_last: int = Field(2, ge=1)
    """Number of newest checkpoints to keep, in addition to the best one by validation."""
    price_per_hour: float = Field(0.0, ge=0)
    """Price of all devices per hour, in any currency; progress then shows the price of the run."""
    hang_seconds: float = Field(1800.0, gt=0)
    """End a run without progress for this long, and report the rank that hangs."""
    wandb: Literal["off", "offline", "online"] = "off"
    """Also log to Weights & Biases."""
    tensorboard: bool = False
    """Also write event files for TensorBoard, which must be installed."""


class SampleConfig(Section):
    """Samples to generate at the end of a run."""

    prompt: str = ""
    """Text to continue; empty starts a new document."""
    max_new_tokens: int = Field(200, ge=1)
    """Maximum number of tokens to generate."""
    num_samples: int = Field(2, ge=1)
    """Number of samples."""
    temperature: float = Field(0.8, ge=0)
    """Sampling temperature; 0 is greedy decoding."""


class Recipe(Section):
    """Pretraining from scratch: a corpus, a tokenizer, a model and a training run."""

    portable: bool = False
    """Refuse options of [model] and [tokenizer] that transformers or llama.cpp does not have, before
    the first step."""
    data: DataConfig = DataConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    sample: SampleConfig = SampleConfig()


class TaskConfig(Section):
    """A labelled task: derived from the corpus, or read from a file."""

    name: str = "tune-key"
    """tune-key (of folk-tunes), api-service (of aws-api), drug-likeness (of molecules), or a .jsonl file
    of {"text", "label"} rows, which may also have a "group" that stays in one split, or a "split"."""
    kind: Literal["classification", "naming", "completion"] = "classification"
    """For a file: labels are a closed set, open answers, or free text. Built-ins define their own."""
    field: str = "Text"
    """For a file: name of an input in the prompt."""
    answer: str = "Label"
    """For a file: name of a label in the prompt."""
    instruction: str = ""
    """Instruction at the start of the prompt."""
    max_chars: int = Field(200, ge=16)
    """Longer inputs are cut to this many characters, for all methods."""
    train_items: int = Field(1000, ge=1)
    """Maximum labelled items for training and retrieval."""
    test_items: int = Field(200, ge=1)
    """Maximum held-out items to score."""
