"""Shared fixtures: real commands as processes, small corpora, the real foundation model."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from texts import words

ROOT = Path(__file__).parent.parent

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tests never use the network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    # With more threads than cores, workers spend most of the time waiting for each other.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))


class Command:
    """Runs `python -m MODULE …` from the checkout, like a user."""

    def __call__(self, module, *args, timeout=300, **options):
        return subprocess.run(
            [sys.executable, "-m", module, *map(str, args)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=timeout,
            **options,
        )

    def start(self, module, *args, **options):
        return subprocess.Popen(
            [sys.executable, "-m", module, *map(str, args)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def torchrun(self, processes, module, *args, timeout=300):
        return self(
            "torch.distributed.run", "--standalone", "--nproc-per-node", processes, "-m", module, *args, timeout=timeout
        )


@pytest.fixture(scope="session")
def command():
    return Command()


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A cache of prepared corpora, shared by all tests of the session."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A text file of about 60 KB."""
    path = tmp_path_factory.mktemp("corpus") / "words.txt"
    path.write_text(words(0, 12_000))
    return path


@pytest.fixture(scope="session")
def recipe(corpus, cache, tmp_path_factory):
    """A recipe that trains in seconds, in float32 on the CPU."""
    path = tmp_path_factory.mktemp("recipe") / "small.toml"
    path.write_text(f"""
[data]
corpus = "{corpus}"
section_chars = 500
cache_dir = "{cache}"

[tokenizer]
vocab_size = 400

[model]
dim = 32
n_layers = 2
n_heads = 4
n_kv_heads = 2
head_dim = 8
hidden_dim = 64
max_seq_len = 64

[train]
steps = 10
batch_size = 8
micro_batch_size = 4
precision = "float32"
device = "cpu"
eval_every = 5
save_every = 5
log_every = 1

[sample]
max_new_tokens = 10
num_samples = 1
""")
    return path


@pytest.fixture(scope="session")
def foundation_path():
    from model.load import foundation_file

    return foundation_file("smollm2-135m")


@pytest.fixture(scope="session")
def foundation(foundation_path):
    """The real SmolLM2-135M and its tokenizer; tests must not change the weights."""
    from model.formats.gguf import load_gguf

    return load_gguf(foundation_path)


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory):
    """A folder with a small Llama checkpoint, written by transformers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from configs.schema import TokenizerConfig
    from tokenizer.train import train_tokenizer

    out = tmp_path_factory.mktemp("llama")
    tokenizer = train_tokenizer([words(3, 2000)], TokenizerConfig(vocab_size=300))
    import torch

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    LlamaForCausalLM(config).save_pretrained(out)
    (out / "tokenizer.json").write_text(tokenizer.to_json())
    return out
