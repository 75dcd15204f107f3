"""Every setting of a recipe, on one page.

A recipe is a TOML file with one table per class below; any key can be overridden on the command
line (`--train.steps 200`). The attribute docstrings are what `--help` prints. A key that no
shipped recipe sets is not here.
"""

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class Section(BaseModel):
    """A frozen table of settings that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    FORMER_NAMES: ClassVar[dict[str, str]] = {}
    """Names that keys had in version 0.1: run directories of that version still load."""

    @model_validator(mode="before")
    @classmethod
    def _accept_former_names(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {cls.FORMER_NAMES.get(key, key): value for key, value in values.items()}


class DataConfig(Section):
    """Where the text comes from, how it is cleaned and how it is split."""

    corpus: str = Field("folk-tunes", min_length=1)
    """A built-in (folk-tunes, aws-api, python-stdlib), a file, a folder of files, or the name of a
    dataset on the Hugging Face hub, also as name@revision. Files are text or source code, .jsonl,
    .csv, .tsv or .parquet; all but the last may be packed (.gz, .zst)."""
    document: Literal["section", "line", "file"] = "section"
    """What one document of a text file is: a section of about `section_chars`, cut at line ends, a
    line, or the file. In .jsonl, .csv, .tsv and .parquet every row is one."""
    text_field: str = "text"
    """Column that holds the text in .jsonl, .csv, .tsv, .parquet and hub datasets."""
    group_field: str = ""
    """Column whose equal values stay together in one split (an author, a project); "file" keeps
    each file of a folder together; "document" splits document by document, as empty does where a
    corpus has no groups of its own (the built-ins have)."""
    section_chars: int = Field(2000, ge=1)
    """Characters of a section of text; a twentieth of all text if that is less, so that some can be
    held out."""
    min_chars: int = Field(16, ge=1)
    """Documents with fewer characters after cleaning are dropped."""
    drop_similarity: float = Field(0.8, gt=0, le=1)
    """A document whose estimated Jaccard similarity to an earlier one reaches this is dropped."""
    straddle_similarity: float = Field(0.5, gt=0, le=1)
    """A held-out document at least this similar to a document of another split is dropped."""
    validation_fraction: float = Field(0.05, gt=0, lt=0.5)
    """Share of the characters held out to make choices on."""
    test_fraction: float = Field(0.05, gt=0, lt=0.5)
    """Share of the characters held out to be read once."""
    held_out_chars: int = Field(2_000_000, ge=1)
    """Most characters of each held-out split, however large the corpus: more takes longer to score
    and tells no more."""
    split_seed: int = 0
    """Changes which documents are held out."""
    cache_dir: str = "cache"
    """Where prepared documents, tokenizers and token shards are kept, by content hash."""


class TokenizerConfig(Section):
    """A byte-level BPE tokenizer trained on the train split."""

    vocab_size: int = Field(4096, ge=257)
    """Entries in the vocabulary: 256 bytes, the special tokens, and merges."""
    digits: Literal["single", "triple", "any"] = "single"
    """How many digits may share a token: one, up to three, or any number."""
    newlines: Literal["own", "attach"] = "own"
    """Whether line breaks are tokens of their own or may merge with other whitespace."""
    whitespace: Literal["word", "own", "merge"] = "word"
    """A space leads the next word (GPT-2), is a token of its own, or may stand inside a token, so
    that tokens span words."""
    strict: bool = False
    """Refuse a corpus that does not support `vocab_size`, instead of training a smaller one."""
    special_tokens: list[str] = Field(["<|endoftext|>"], min_length=1)
    """The first one separates documents and starts every generation."""

    @model_validator(mode="after")
    def _vocabulary_holds_the_bytes(self):
        least = 256 + len(self.special_tokens)
        if self.vocab_size < least:
            raise ValueError(
                f"vocab_size = {self.vocab_size} is below {least}: 256 bytes and "
                f"{len(self.special_tokens)} special tokens"
            )
        return self


class ModelConfig(Section):
    """A decoder-only transformer (Llama's names and layout)."""

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
    activation: Literal["swiglu", "relu2", "gelu"] = "swiglu"
    """Feed-forward: gated SiLU (three matrices), squared ReLU or GELU (two)."""
    qk_norm: bool = False
    """RMS-normalise queries and keys per head before the rotary embedding."""
    key_shift: bool = False
    """The first half of the key heads holds the keys of the position before."""
    tie_embeddings: bool = True
    """Use the input embedding as the output projection."""
    embedding_norm: bool = False
    """RMS-normalise the embedding before the first block."""
    value_embeddings: bool = False
    """Every layer adds an embedding of the token to its values."""
    bigram_buckets: int = Field(0, ge=0)
    """Rows of an embedding of hashed token pairs that every block adds to the stream; 0 is none."""
    zero_init: bool = False
    """The projections back into the stream start at 0: at first every block does nothing."""
    rope_theta: float = Field(10000.0, gt=0)
    """Base of the rotary frequencies."""
    norm_eps: float = Field(1e-5, gt=0)
    """Added to the mean square inside RMSNorm."""
    base_dim: int = Field(0, ge=0)
    """The width at which nothing is scaled (muP). At others logits, and AdamW's rate for matrices
    inside the blocks, are times base_dim / dim, so that one learning rate serves all. 0: never."""

    # What foundation models have and training from scratch does not need; files that hold such a
    # model set these, recipes need not.
    norm: Literal["rms", "layer"] = "rms"
    """RMSNorm, or GPT-2's LayerNorm with a bias."""
    biases: Literal["none", "qkv", "all"] = "none"
    """Of the linear layers: none, those of queries, keys and values (Qwen2), or all (GPT-2)."""
    positions: Literal["rotary", "learned"] = "rotary"
    """Rotary angles, or GPT-2's embedding of every position."""
    nope_every: int = Field(0, ge=0)
    """NoPE: every n-th layer has no rotary positions (SmolLM3); 0: all layers have them."""
    rope_scaling: list[float] = Field([], max_length=4)
    """Factor, low and high number of turns and first context length of Llama 3.1; empty: none."""
    soft_tokens: int = Field(0, ge=0)
    """Learnt vectors that stand before every text: a tuned soft prompt."""

    @property
    def context(self) -> int:
        """Tokens of text that fit, beside the vectors of a soft prompt."""
        return self.max_seq_len - self.soft_tokens

    @property
    def width_ratio(self) -> float:
        """base_dim / dim, or 1 without a base_dim."""
        return self.base_dim / self.dim if self.base_dim else 1.0

    @model_validator(mode="after")
    def _shapes_fit(self):
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads = {self.n_heads} is not a multiple of n_kv_heads = {self.n_kv_heads}")
        if self.key_shift and self.n_kv_heads < 2:
            raise ValueError("key_shift = true needs n_kv_heads of 2 or more: half of them shift")
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
    """Seeds the weights and the order of the data."""
    steps: int = Field(1000, ge=1)
    """Optimiser steps."""
    max_seconds: float = Field(0.0, ge=0)
    """If not 0: train for this many seconds instead of `steps`; the schedule follows the clock.
    Evaluation and saving do not count; how long it takes in all is said first."""
    max_flops: float = Field(0.0, ge=0)
    """If not 0 (and max_seconds is): train for this many FLOPs, as the model counts them, instead
    of `steps`; never compiled."""
    batch_size: int = Field(32, ge=1)
    """Windows (or examples) per optimiser step, over all ranks."""
    micro_batch_size: int = Field(8, ge=0)
    """Windows per forward pass on one rank; changes memory and speed, never the result. 0 takes as
    many as fit in memory."""
    learning_rate: float = Field(1e-3, gt=0)
    """Peak learning rate."""
    min_lr_ratio: float = Field(0.1, ge=0, le=1)
    """Final learning rate as a share of the peak."""
    schedule: Literal["cosine", "wsd", "linear"] = "cosine"
    """Cosine decay; warm-up, stable, (linear) decay; or linear decay."""
    warmup: float = Field(0.05, ge=0, le=1)
    """Share of the run in which the learning rate rises."""
    cooldown: float = Field(0.2, ge=0, le=1)
    """Share of the run in which wsd decays."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """AdamW; or Muon for the matrices inside the blocks and AdamW for the rest."""
    embedding_lr: float = Field(1.0, gt=0)
    """Rate of the embedding tables, as a multiple of learning_rate."""
    weight_decay: float = Field(0.1, ge=0)
    """Decay of matrices; gains are not decayed."""
    beta2: float = Field(0.95, gt=0, lt=1)
    """AdamW's second-moment decay (beta1 is 0.9)."""
    clip_norm: float = Field(1.0, gt=0)
    """Largest global gradient norm."""
    ema: float = Field(0.0, ge=0, lt=1)
    """Decay per step of an exponential moving average (EMA) of the weights. Evaluation and sampling
    then use the average. 0: no EMA."""
    on_spike: Literal["warn", "rewind"] = "warn"
    """What to do about a loss far above the recent ones: say so, or go back to the newest
    checkpoint and on with other data."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """What ranks share: the gradients (every rank holds the model), or also the model itself."""
    activation_checkpointing: bool = False
    """Compute the activations of each block again in the backward pass instead of storing them."""
    compile: Literal["auto", "always", "never"] = "auto"
    """torch.compile for the blocks; auto tries it once before a run of ten minutes or more and
    remembers whether it paid."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the matrix products (weights stay float32); auto is bfloat16 where the device
    computes in it and the model is wide enough for it to pay, else float32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto is CUDA where there is a GPU, else the CPU; Apple's MPS is not supported."""

    @field_validator("device", mode="before")
    @classmethod
    def _no_mps(cls, value: object) -> object:
        if value == "mps":
            raise ValueError('Apple\'s GPU (MPS) is not supported; use "cpu"')
        return value

    log_every: int = Field(10, ge=1)
    """Steps between printed lines; metrics.jsonl gets every step."""
    eval_every: int = Field(100, ge=1)
    """Steps between evaluations on a fixed subset of the validation split: about 1 % of the time,
    but 16,384 tokens at least. The last step is evaluated too, and at the end all of the split."""
    save_every: int = Field(100, ge=1)
    """Steps between checkpoints; the last step is always saved."""
    patience: int = Field(0, ge=0)
    """End after so many evaluations without a better one, and save every better one; 0: never."""
    keep_last: int = Field(2, ge=1)
    """Newest checkpoints kept, beside the best one by validation."""
    price_per_hour: float = Field(0.0, ge=0)
    """What all devices together cost per hour, in any currency: progress then shows the price of
    the whole run."""
    hang_seconds: float = Field(1800.0, gt=0)
    """A run in which nothing moves for so long is ended, and the rank that hangs is named."""
    wandb: Literal["off", "offline", "online"] = "off"
    """Also log to Weights & Biases."""
    tensorboard: bool = False
    """Also write event files for TensorBoard, which must be installed."""


class SampleConfig(Section):
    """What to generate when a run ends."""

    prompt: str = ""
    """Text to continue; empty starts a new document."""
    max_new_tokens: int = Field(200, ge=1)
    """Tokens to generate at most."""
    num_samples: int = Field(2, ge=1)
    """How many continuations."""
    temperature: float = Field(0.8, ge=0)
    """0 takes the likeliest token."""


class Recipe(Section):
    """Pretraining from scratch: a corpus, a tokenizer, a model and a training run."""

    data: DataConfig = DataConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    sample: SampleConfig = SampleConfig()


class TaskConfig(Section):
    """A labelled task: made from the corpus, or a file of its own."""

    name: str = "tune-key"
    """tune-key, tune-rhythm, tune-meter (of folk-tunes), api-operation, api-service (of aws-api),
    docstring-name (of python-stdlib), or a .jsonl file of {"text", "label"} rows, which may also
    have a "group" that stays in one split, or a "split"."""
    kind: Literal["classification", "naming", "completion"] = "classification"
    """Of a file: its labels are a closed set, open answers, or free text. Built-ins know theirs."""
    field: str = "Text"
    """What an input of a file is called in a prompt."""
    answer: str = "Label"
    """What a label of a file is called in a prompt."""
    instruction: str = ""
    """Stands before everything else in a prompt."""
    max_chars: int = Field(200, ge=16)
    """Longer inputs are cut to this many characters, for every arm alike."""
    train_items: int = Field(1000, ge=1)
    """Labelled items that may be trained on or retrieved."""
    test_items: int = Field(200, ge=1)
    """Held-out items that are scored."""
