"""The training loop, called as a function."""

import json
import math
import shutil
from itertools import pairwise

import pytest
import torch

from cli.errors import UserError
from cli.recipes import load
from configs.schema import Recipe, TrainConfig
from data.examples import Examples, encode_completions
from data.loader import build_loader
from model.build import build_model
from model.formats.native import checkpoints, latest_checkpoint, load_run, read_manifest
from train.batches import Batches
from train.distributed import Ranks
from train.metrics import read_metrics
from train.optim import build_adamw, learning_rate
from train.pretrain import load_data


def losses(run):
    return [row["loss"] for row in read_metrics(run) if "loss" in row]


def test_gradient_accumulation_with_unequal_masks_gives_the_same_losses(fit, recipe):
    tokenizer, *_ = load_data(load(Recipe, recipe))
    pairs = [("a b c d " * n, " e" * (1 + 3 * (n % 4))) for n in range(1, 9)]
    examples = Examples(encode_completions(pairs, tokenizer), 64, tokenizer)
    runs = [losses(fit((examples, examples), name=f"m{size}", micro_batch_size=size, steps=6)[1]) for size in (8, 4, 1)]
    assert runs[1] == pytest.approx(runs[0], rel=1e-5)
    assert runs[2] == pytest.approx(runs[0], rel=1e-5)


def test_an_automatic_micro_batch_gives_the_same_losses(fit, capsys):
    found = losses(fit(name="found", micro_batch_size=0, steps=5)[1])
    assert "8 windows/step = 1 ranks x 1 x 8" in capsys.readouterr().err
    assert found == pytest.approx(losses(fit(name="given", micro_batch_size=2, steps=5)[1]), rel=1e-5)


@pytest.mark.parametrize("pack", [None, False, True])
def test_batches_are_contiguous(recipe, pack):
    """Else a copy to a GPU goes through memory that is not pinned."""
    tokenizer, train_set, _ = load_data(load(Recipe, recipe))
    if pack is not None:
        rows = encode_completions([("a b c d " * n, " e f") for n in range(1, 9)], tokenizer)
        train_set = Examples(rows, 64, tokenizer, pack)
    with Ranks("cpu") as ranks:
        batches = Batches(train_set, build_loader(train_set, 4, 0), ranks, 2)
        loaded = batches.next().micro_batches
        batches.close()
    assert len(loaded) == 2
    assert all(tensor.is_contiguous() for batch in loaded for tensor in batch)


@pytest.mark.slow
def test_windows_of_8192_tokens_train_on_a_cpu_in_two_gigabytes(command, cache, tmp_path):
    changes = ("--train.steps", "3", "--train.batch-size", "1", "--data.held-out-chars", "40000")
    recipe = ("configs/long-context.toml", "--data.cache-dir", cache, "--run-dir", tmp_path / "run")
    done = command("train.pretrain", *recipe, *changes, timeout=600)
    assert done.returncode == 0, done.stderr
    peak = max(row.get("memory_bytes", 0) for row in read_metrics(tmp_path / "run"))
    assert 0.5e9 < peak < 2e9


def test_training_overfits_one_batch(fit, recipe):
    tokenizer, *_ = load_data(load(Recipe, recipe))
    examples = Examples(encode_completions([("one", " two three"), ("four", " five six")], tokenizer), 64, tokenizer)
    _, run, _ = fit((examples, examples), batch_size=2, steps=150, learning_rate=3e-3)
    assert losses(run)[-1] < 0.1 < losses(run)[0]


def test_training_on_text_beats_the_unigram_entropy(fit, recipe):
    _, train_set, validation = load_data(load(Recipe, recipe))
    counts = torch.bincount(torch.from_numpy(train_set.ids[:].astype("int64")))
    ids = torch.from_numpy(validation.ids[:].astype("int64"))
    p = (counts + 1) / (counts + 1).sum()
    unigram = -p.log()[ids].mean().item()
    result, run, _ = fit(steps=300, learning_rate=5e-3, eval_every=300, save_every=300)
    final = [r for r in read_metrics(run) if "validation_loss" in r][-1]
    assert final["validation_loss"] < unigram
    assert final["perplexity"] == pytest.approx(math.exp(final["validation_loss"]))
    assert result.bits_per_byte == final["bits_per_byte"]


def test_non_finite_losses_are_written_as_standard_json(fit, recipe):
    config = load(Recipe, recipe)
    tokenizer, *_ = load_data(config)
    model = build_model(config.model, tokenizer.vocab_size).init_weights(0)
    with torch.no_grad():
        model.tok_embeddings.weight[5:] = float("nan")
    result, run, _ = fit(model=model, steps=3, eval_every=2, save_every=2)
    assert result.progress.skipped == 3
    files = [run / "metrics.jsonl", *run.glob("checkpoints/*/*.json")]
    assert len(files) >= 4
    for path in files:
        for line in path.read_text().splitlines():
            json.loads(line, parse_constant=lambda word, path=path: pytest.fail(f"{path}: {word}"))
    rows = read_metrics(run)
    assert [row["loss"] for row in rows if "loss" in row] == [None] * 3
    again, _, _ = fit(model=model, steps=4, eval_every=2, save_every=2, resume=True)
    assert again.progress.step == 4


def test_bits_per_byte_is_nats_over_bytes_of_text(fit, recipe):
    config = load(Recipe, recipe)
    tokenizer, _, validation = load_data(config)
    _, run, model = fit(steps=1)
    score = next(r for r in read_metrics(run) if "bits_per_byte" in r and r["step"] == 1)
    ids = torch.from_numpy(validation.ids[:].astype("int64"))
    nats = size = 0.0
    for start in range(0, len(ids) - 1, 64):
        window = ids[start : start + 65]
        with torch.no_grad():
            logp = model(window[None, :-1])[0].double().log_softmax(-1)
        for row, target in zip(logp, window[1:].tolist(), strict=True):
            if target != tokenizer.separator_id:
                nats -= row[target].item()
                size += len(tokenizer.backend.id_to_token(target))
    assert score["bits_per_byte"] == pytest.approx(nats / size / math.log(2), rel=1e-5)


def test_only_parameters_that_require_gradients_change_and_are_saved(fit, recipe):
    config = load(Recipe, recipe)
    tokenizer, *_ = load_data(config)
    model = build_model(config.model, tokenizer.vocab_size).init_weights(0).requires_grad_(False)
    model.layers[1].requires_grad_(True)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    _, run, _ = fit(model=model, steps=3)
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    trained = {f"layers.1.{k}" for k, _ in model.layers[1].named_parameters()}
    assert changed == trained
    import safetensors.torch

    saved = safetensors.torch.load_file(latest_checkpoint(run) / "model.safetensors")
    assert saved.keys() == trained


def test_the_newest_and_the_best_checkpoints_are_kept(fit):
    _, run, _ = fit(steps=8, save_every=1, eval_every=1, keep_last=2, learning_rate=3.0, warmup=0.5, clip_norm=1e9)
    kept = [int(p.name) for p in checkpoints(run)]
    scores = {r["step"]: r["bits_per_byte"] for r in read_metrics(run) if "bits_per_byte" in r}
    best = min((s for s in scores if s > 0), key=scores.__getitem__)
    assert kept == sorted({best, 7, 8})
    assert best < 7  # this learning rate makes the run diverge
    assert read_manifest(checkpoints(run)[0])["bits_per_byte"] == scores[best]


def test_a_run_directory_loads_as_the_trained_model(fit):
    _, run, model = fit(steps=2)
    loaded, _ = load_run(run)
    x = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(loaded(x), model.eval()(x))


def test_a_time_budget_ends_run_and_schedule(fit):
    result, run, _ = fit(max_seconds=4.0, steps=1, eval_every=10**6)
    steps = [row for row in read_metrics(run) if "lr" in row]
    assert steps[-2]["seconds"] < 4.0 <= steps[-1]["seconds"] == result.progress.seconds
    assert len(steps) > 5
    assert steps[-1]["lr"] < 0.2 * max(row["lr"] for row in steps)


def test_diverging_weights_stop_the_run_with_a_hint(fit):
    with pytest.raises(UserError, match="without a finite gradient; lower"):
        fit(steps=300, learning_rate=1e30, clip_norm=1e30, warmup=0.0)


def test_weight_decay_groups_exclude_norm_gains(recipe):
    config = load(Recipe, recipe)
    model = build_model(config.model, 300)
    parameters = dict(model.named_parameters())
    groups = build_adamw(parameters, config.train).param_groups
    decay = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    assert len(decay) == len(parameters)
    for name, p in parameters.items():
        assert (decay[id(p)] > 0) == (not name.endswith("norm.weight")), name


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_schedules_have_warm_up_peak_and_low_end(schedule):
    config = TrainConfig(schedule=schedule, learning_rate=1.0, min_lr_ratio=0.1, warmup=0.1, cooldown=0.3)
    rates = [learning_rate(step / 100, config) for step in range(101)]
    assert rates[5] == pytest.approx(0.5)
    assert rates[10] == max(rates) == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(rates[10:]))
    if schedule == "wsd":
        assert rates[70] == pytest.approx(1.0)
        assert rates[85] == pytest.approx(0.55)
    else:
        assert rates[55] == pytest.approx(0.55)


def test_a_batch_size_that_does_not_divide_over_ranks_is_refused(fit, monkeypatch):
    monkeypatch.setattr(Ranks, "__init__", _three_ranks)
    with pytest.raises(UserError, match="batch_size = 8 does not divide over 3 ranks"):
        fit(steps=1)


def _three_ranks(self, device):
    self.rank, self.world_size, self.device = 0, 3, torch.device("cpu")
    self.__class__ = _Fake


class _Fake(Ranks):
    def __exit__(self, *_):
        pass


def test_wandb_offline_writes_a_run(command, recipe, tmp_path):
    run = tmp_path / "run"
    done = command("train.pretrain", recipe, "--run-dir", run, "--train.wandb", "offline")
    assert done.returncode == 0, done.stderr
    assert list(run.glob("wandb/offline-run-*/*.wandb"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_it_trains_on_a_gpu(command, recipe, tmp_path):
    done = command(
        "train.pretrain", recipe, "--run-dir", tmp_path / "run", "--train.device", "cuda", "--train.precision", "auto"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bfloat16"},
        {"optimizer": "muon"},
        {"optimizer": "muon", "precision": "bfloat16", "ema": 0.9, "activation_checkpointing": True},
        {"schedule": "linear", "micro_batch_size": 3},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_resume_is_bitwise_exact_with_every_optimiser_and_precision(fit, recipe, changes):
    """The runs cross the end of an epoch in the middle of a batch."""
    tokenizer, *_ = load_data(load(Recipe, recipe))
    pairs = [("a b c d " * n, " e" * (1 + 3 * (n % 4))) for n in range(1, 14)]
    examples = Examples(encode_completions(pairs, tokenizer), 64, tokenizer)
    settings = {"steps": 9, "save_every": 4, "eval_every": 3, "keep_last": 9} | changes
    _, whole, _ = fit((examples, examples), name="whole", **settings)
    _, run, _ = fit((examples, examples), name="run", **settings)
    for path in checkpoints(run)[1:]:
        shutil.rmtree(path)
    _, run, _ = fit((examples, examples), name="run", resume=True, **settings)
    assert losses(run) == losses(whole)
    for file in latest_checkpoint(whole).iterdir():
        if file.name not in ("manifest.json", "state.json"):  # these contain times
            assert (latest_checkpoint(run) / file.name).read_bytes() == file.read_bytes(), file.name
