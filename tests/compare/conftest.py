"""A small study of made-up text, in this process, with a calibration that needs no timing."""

import json

import pytest
from texts import words

from cli.recipes import to_toml
from compare.context import Study
from configs.schema import DataConfig
from configs.study_recipe import StudyRecipe

TINY = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "hidden_dim": 64, "max_seq_len": 64}


@pytest.fixture
def study(corpus, cache, tmp_path):
    """A study of made-up text, whose task is a file of labelled rows; the second try cannot learn."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"text": words(1000 + n, 14).strip(), "label": "ab"[n % 2]}) + "\n" for n in range(200))
    )
    data = DataConfig(corpus=str(corpus), section_chars=500, cache_dir=str(cache))
    train = {"optimizer": "adamw", "batch_size": 8, "micro_batch_size": 8, "embedding_lr": 1.0, "schedule": "cosine"}
    scratch = {
        "text_rate": 3.5e-3,
        "task_rate": 3.5e-3,
        "text": train,
        "task": train,
        "tokenizer": {"vocab_size": 400},
        "model": TINY,
    }
    recipe = StudyRecipe(
        data=data,
        general="folk-tunes",
        seeds=[0, 1],
        shares=[0.2, 1.0],
        labels=[8, 64],
        task={"name": str(rows), "train_items": 200, "test_items": 20},
        scratch=scratch,
        tries=2,
        budget_seconds=36,
        budget_factors=[0.5],
    )
    (tmp_path / "config.toml").write_text(to_toml(recipe))
    speed = {"step_seconds": 1.0, "micro_batch_size": 8, "precision": "float32"}
    speeds = {f"{table}-{axis}": speed for table in ("scratch",) for axis in ("text", "task")}
    (tmp_path / "calibration.json").write_text(json.dumps({"threads": 2, "speeds": speeds}))
    (tmp_path / "cells").mkdir()
    return Study(tmp_path)
