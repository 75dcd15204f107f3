"""Late reading: a step has no host sync, and what it computes does not depend on when it is read."""

import shutil

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cli.errors import UserError
from cli.recipes import load
from configs.schema import Recipe
from model.build import build_model
from train import loop
from train.late import LateRead
from train.metrics import read_metrics
from train.pretrain import load_data

HOST_READS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique", "repeat_interleave")


class HostReads(TorchDispatchMode):
    """Collects operations whose result or shape the host must wait for."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().removeprefix("aten::").split(".")[0]
        selects = name in ("index", "index_put_") and any(i is not None and i.dtype == torch.bool for i in args[1])
        if selects or name in HOST_READS:
            self.found.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.fixture
def late(monkeypatch):
    """Results are read one step late, as on a GPU."""
    monkeypatch.setattr(LateRead, "is_on_host", False)


@pytest.fixture
def host_reads(late, monkeypatch):
    """The host reads of all steps, which are read late."""
    reads, step = HostReads(), loop.Trainer.step

    def watched(self, end):
        with reads:
            step(self, end)

    monkeypatch.setattr(loop.Trainer, "step", watched)
    return reads.found


def rows(run):
    return [(row["step"], row["loss"], row["grad_norm"]) for row in read_metrics(run) if "loss" in row]


@pytest.mark.parametrize(
    "changes", [{}, {"optimizer": "muon", "ema": 0.9}, {"precision": "bfloat16"}, {"document_mask": True}]
)
def test_a_step_has_no_host_sync(fit, host_reads, changes):
    fit(steps=4, **changes)
    assert host_reads == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("changes", [{}, {"optimizer": "muon", "ema": 0.9}, {"document_mask": True}])
def test_a_step_on_a_gpu_has_no_host_sync(fit, monkeypatch, changes):
    step = loop.Trainer.step

    def watched(self, end):
        if self.progress.step > 1:  # the first steps compile
            torch.cuda.set_sync_debug_mode("error")
        try:
            step(self, end)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(loop.Trainer, "step", watched)
    result, *_ = fit(steps=6, device="cuda", **changes)
    assert result.progress.step == 6


def test_a_host_sync_in_a_step_is_found(fit, host_reads, monkeypatch):
    clip = loop.clip_gradients

    def waiting(parameters, limit):
        norm = clip(parameters, limit)
        norm[None][norm[None] > 0].sum().item()
        return norm

    monkeypatch.setattr(loop, "clip_gradients", waiting)
    fit(steps=2)
    assert host_reads == ["aten::index.Tensor", "aten::_local_scalar_dense"] * 2


def test_late_reading_gives_the_same_rows_and_checkpoints(fit, monkeypatch):
    changes = {"steps": 7, "eval_every": 3, "save_every": 2, "ema": 0.9}
    first, run, model = fit(name="at-once", **changes)
    monkeypatch.setattr(LateRead, "is_on_host", False)
    second, late_run, late_model = fit(name="late", **changes)
    assert [row["step"] for row in read_metrics(late_run)] == [row["step"] for row in read_metrics(run)]
    assert rows(late_run) == rows(run)
    assert second.bits_per_byte == first.bits_per_byte
    for a, b in zip(model.parameters(), late_model.parameters(), strict=True):
        assert torch.equal(a, b)
    shutil.rmtree(late_run / "checkpoints" / "000007")
    whole = rows(late_run)
    fit(name="late", **changes, resume=True)
    assert rows(late_run) == whole


def test_ten_skipped_steps_end_a_late_run_at_the_eleventh(fit, late, recipe, monkeypatch):
    config = load(Recipe, recipe)
    tokenizer, *_ = load_data(config)
    model = build_model(config.model, tokenizer.vocab_size).init_weights(0)
    with torch.no_grad():
        model.tok_embeddings.weight[5:] = float("nan")
    launched, step = [], loop.Trainer.step

    def counted(self, end):
        launched.append(self.progress.step + 1)
        step(self, end)

    monkeypatch.setattr(loop.Trainer, "step", counted)
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(UserError, match=r"bad-batch-10-rank-0"):
        fit(model=model, steps=30, eval_every=10**6, save_every=10**6)
    assert launched == list(range(1, 12))
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) or before[name].isnan().any(), name


def test_a_spike_read_late_rewinds_to_the_data_after_it(fit, late, monkeypatch):
    clip, calls = loop.clip_gradients, []

    def poisoned(parameters, limit):
        norm = clip(parameters, limit)
        calls.append(1)
        if len(calls) == 56:
            with torch.no_grad():
                for p in parameters.values():
                    p.add_(torch.randn_like(p), alpha=3.0)
        return norm

    monkeypatch.setattr(loop, "clip_gradients", poisoned)
    result, run, _ = fit(steps=60, on_spike="rewind", save_every=50, eval_every=10**6)
    assert result.progress.rewound == 1
    assert [step for step, *_ in rows(run)] == list(range(1, 61))
    assert max(loss for _, loss, _ in rows(run)) < 7
    assert len(calls) == 60 + 8  # steps 51 to 57 twice, and step 58, which was on its way
