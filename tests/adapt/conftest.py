"""A small run to adapt, and a task that it learns in a few steps."""

import json

import pytest
from texts import words


@pytest.fixture(scope="session")
def base(command, recipe, tmp_path_factory):
    run = tmp_path_factory.mktemp("base") / "run"
    done = command("train.pretrain", recipe, "--run-dir", run)
    assert done.returncode == 0, done.stderr
    return run


@pytest.fixture(scope="session")
def rows(tmp_path_factory):
    """A task that depends on the first word: learned in a few steps."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = []
    for n in range(120):
        first, *rest = words(n, 4).split()
        row = {"text": " ".join([["red", "blue"][n % 2], first, *rest]), "label": ["warm", "cold"][n % 2]}
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def tune(command, base, corpus, cache, tmp_path):
    """Run adapt.finetune on the small run; returns the process and the run directory."""

    def run(*arguments, name="tuned", general=corpus):
        config = tmp_path / "tune.toml"
        config.write_text(f"""
base = "{base}"
seq_len = 32
general = "{general}"
[data]
corpus = "folk-tunes"
section_chars = 500
cache_dir = "{cache}"
[top_layers]
layers = 1
[lora]
rank = 2
[soft_prompt]
tokens = 3
[train]
steps = 8
batch_size = 8
micro_batch_size = 4
learning_rate = 1e-2
eval_every = 4
save_every = 4
precision = "float32"
[sample]
max_new_tokens = 5
""")
        folder = tmp_path / name
        return command("adapt.finetune", config, "--run-dir", folder, *arguments), folder

    return run
