"""Planning and evaluation of the speedrun and ablation, and the GPT-2 baseline."""

import json

import pytest
import torch

from benchmarks import grid
from benchmarks.ablation import WITHOUT, compare_step_time, compute_gains
from benchmarks.grid import DATA_VERSION, build_recipe, has_all, read_ledger, run_cells
from benchmarks.peers import Gpt2
from benchmarks.speedrun import CORPORA, RATES, SEEDS, SHARES, compare_to_baseline, make_cell, plan_cells
from configs.schema import ModelConfig


def finished(cell, loss):
    return cell | {"validation_loss": loss, "test_loss": loss, "flops": 100 * cell["share"], "parameters": 1}


def test_the_best_learning_rate_is_run_on_all_corpora_and_seeds():
    assert len({len(rates) for rates in RATES.values()}) == 1
    tries = plan_cells([], ["1m"])
    assert len(tries) == sum(map(len, RATES.values()))
    assert {(c["corpus"], c["seed"]) for c in tries} == {(CORPORA[0], SEEDS[0])}
    rows = [finished(c, abs(c["learning_rate"] - 2e-3)) for c in tries if c["way"] == "baseline"]
    chosen = [c for c in plan_cells(rows, ["1m"]) if c not in tries and c["way"] == "baseline"]
    assert {c["learning_rate"] for c in chosen} == {2e-3}
    expected = {(corpus, seed) for corpus in CORPORA for seed in SEEDS}
    expected.remove((CORPORA[0], SEEDS[0]))  # already run in the search
    assert {(c["corpus"], c["seed"]) for c in chosen} == expected
    assert len(chosen) == len(expected)
    larger = [c for c in plan_cells(rows, ["4m"]) if c["way"] == "baseline"]
    assert [c["learning_rate"] for c in larger] == [2e-3, 1e-3, 5e-4]


def test_methods_have_the_parameters_that_are_promised():
    for size in grid.STEPS:
        recipe, bare, baseline = (
            grid.build_cell_model(cell, build_recipe(cell), 4096)
            for cell in (
                make_cell(way, size) | {"learning_rate": 1e-3} for way in ("recipe", "without tables", "baseline")
            )
        )
        assert bare.num_parameters() == pytest.approx(baseline.num_parameters(), rel=0.03)
        assert recipe.num_parameters() > 2 * bare.num_parameters()


def test_losses_are_compared_with_a_confidence_interval():
    rows: list[dict] = []
    for _ in range(2):  # the learning rate search, then the cells at the best rate
        for cell in plan_cells(rows, ["1m"]):
            if not any(cell.items() <= row.items() for row in rows):
                better = 0.1 * (cell["way"] == "recipe")
                rows.append(finished(cell, 3 - better + 0.001 * cell["seed"]))
    seconds = {"baseline": [1.0, 1.0], "recipe": [2.0, 1.0], "without tables": [1.0, 1.0]}
    found = {(r["corpus"], r["way"]): r for r in compare_to_baseline(rows, "1m", seconds)}
    assert len(found) == len(CORPORA) * len(SHARES)
    recipe = found[CORPORA[0], "recipe"]
    assert recipe["over_baseline"] == pytest.approx(-0.1)
    assert recipe["interval"][0] < -0.1 < recipe["interval"][1] < 0
    assert recipe["p"] < 0.001
    assert recipe["seconds"] == pytest.approx(0.1 * 1.5)
    low, high = found[CORPORA[0], "without tables"]["interval"]
    assert low < 0 < high


def test_cells_in_the_ledger_are_not_run_again(tmp_path):
    cell = {"way": "recipe", "data": DATA_VERSION, "size": "1m", "share": 0.2}
    path = tmp_path / "ledger.jsonl"
    path.write_text(json.dumps(cell | {"test_loss": 1.0}) + "\n")
    run_cells(path, lambda rows: [cell], jobs=1, minutes=1)  # would raise: this cell is incomplete
    assert len(path.read_text().splitlines()) == 1
    assert has_all(read_ledger(path), [cell])
    before = {name: value for name, value in cell.items() if name != "data"} | {"test_loss": 1.0}
    path.write_text(json.dumps(before) + "\n")  # of data in another order
    assert not has_all(read_ledger(path), [cell])


def test_cell_stops_at_the_time_limit_without_a_ledger_row(tmp_path):
    cell = {
        "way": "recipe",
        "size": "1m",
        "corpus": "python-stdlib",
        "seed": 0,
        "share": 1.0,
        "learning_rate": 1e-3,
        "overrides": ["--model.dim=8"],
    }
    path = tmp_path / "ledger.jsonl"
    run_cells(path, lambda rows: [cell], jobs=1, minutes=0.05)
    assert not path.exists()


@pytest.mark.slow
def test_a_cell_trains_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(grid, "EVALUATION_WINDOWS", 70)  # more than a periodic evaluation reads
    monkeypatch.setattr(grid, "RUNS", tmp_path)
    cell = {"way": "recipe", "size": "1m", "corpus": "python-stdlib", "seed": 0, "share": 0.0, "learning_rate": 1e-3}
    row = grid.train_cell(cell)
    assert row["steps"] == 1
    assert [step for step, _ in row["curve"]] == [0, 1]
    assert row["validation_loss"] != row["curve"][-1][1]  # of all windows
    assert row["test_loss"] > 0


def test_every_part_can_be_removed():
    about = {"size": "1m", "corpus": "python-stdlib", "share": 0.2, "learning_rate": 1e-3}
    whole, *others = [
        build_recipe(about | {"way": part, "seed": 0, "overrides": overrides}) for part, overrides in WITHOUT.items()
    ]
    assert all(other != whole for other in others)


def test_parts_are_paired_by_seed_in_any_ledger_order():
    grows = {"Muon": (0.4, 0.5, 0.6), "WSD (cosine)": (-0.01, 0.02, -0.01)}
    rows = [
        {"way": f"without {part}", "seed": seed, "validation_loss": 3 + seed + gain}
        for part in WITHOUT
        for seed, gain in zip(SEEDS, grows.get(part, (0.0, 0.01, 0.02)), strict=True)
        if part not in ("nothing", "QK-norm")
    ]
    rows += [{"way": "without nothing", "seed": s, "validation_loss": 3 + s} for s in SEEDS]
    seconds = {part: [1.0, 2.0] for part in WITHOUT} | {"Muon": [0.5, 1.2]}
    first, *others = compute_gains(rows[::-1])
    assert first["part"] == "Muon"
    assert first["gain"] == pytest.approx(0.5)
    # Student's t with two degrees of freedom: 4.303 standard errors.
    assert first["interval"] == pytest.approx([0.5 - 4.303 * 0.0577, 0.5 + 4.303 * 0.0577], abs=1e-3)
    assert compare_step_time("Muon", seconds)["step_without"] == pytest.approx(0.55)
    assert others[-1]["part"] == "WSD (cosine)"
    assert others[-1]["interval"][0] < 0 < others[-1]["interval"][1]
    assert "QK-norm" not in {row["part"] for row in others}  # not all of its seeds have finished
    assert first["p"] == pytest.approx(0.0131 * (1 + len(others)), rel=0.01)  # the smallest, corrected by Holm
    unused = {"way": "without Muon", "seed": 9, "validation_loss": 9.0}
    assert compute_gains([*rows, unused])[0] == first


def test_baseline_is_gpt2():
    shape = ModelConfig(dim=32, n_layers=2, n_heads=2, n_kv_heads=2, head_dim=16, hidden_dim=128, max_seq_len=8)
    model = Gpt2(shape, 50).double()  # the tolerance assumes float64
    tokens, targets = torch.randint(0, 50, (2, 3, 8), generator=torch.Generator().manual_seed(0))
    targets[0, :4] = -100
    logits = model.gpt2(tokens).logits.double().log_softmax(-1)
    scored = targets >= 0
    expected = -logits[scored].gather(1, targets[scored][:, None]).sum()
    torch.testing.assert_close(model(tokens, targets=targets), expected)
    assert model.gpt2.lm_head.weight is model.gpt2.transformer.wte.weight
    assert sum(p.numel() for p in model.gpt2.transformer.h.parameters() if p.dim() == 2) == (12 * 2 * 32**2)
    with pytest.raises(ValueError, match="GPT-2 needs head_dim"):
        Gpt2(shape.model_copy(update={"hidden_dim": 96}), 50)
