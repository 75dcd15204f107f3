"""The speedrun's bookkeeping, and that its baseline is the model it is said to be."""

import json

import pytest
import torch

from benchmarks.ablation import WITHOUT, worth
from benchmarks.cells import recipe_of, run
from benchmarks.peers import Gpt2
from benchmarks.speedrun import CORPORA, RATES, SEEDS, SHARES, compared, plan
from configs.schema import ModelConfig


def finished(cell, loss):
    return cell | {"validation_loss": loss, "test_loss": loss, "flops": 100 * cell["share"]}


def test_the_best_rate_of_equally_many_tries_is_run_on_all_corpora_and_seeds():
    assert len({len(rates) for rates in RATES.values()}) == 1
    tries = plan([], ["1m"])
    assert len(tries) == sum(map(len, RATES.values()))
    assert {(c["corpus"], c["seed"]) for c in tries} == {(CORPORA[0], SEEDS[0])}
    rows = [finished(c, abs(c["learning_rate"] - 2e-3)) for c in tries if c["way"] == "baseline"]
    chosen = [c for c in plan(rows, ["1m"]) if c not in tries and c["way"] == "baseline"]
    assert {c["learning_rate"] for c in chosen} == {2e-3}
    assert len(chosen) == len(CORPORA) * len(SEEDS) - 1  # one of them was a try


def test_losses_are_compared_with_an_interval():
    rows: list[dict] = []
    for _ in range(2):  # the tries, then what they decide
        for cell in plan(rows, ["1m"]):
            if not any(cell.items() <= row.items() for row in rows):
                better = 0.1 * (cell["way"] == "recipe")
                rows.append(finished(cell, 3 - better + 0.001 * cell["seed"]))
    seconds = {"baseline": [1.0, 1.0], "recipe": [2.0, 1.0], "adamw": [1.0, 1.0]}
    found = {(r["corpus"], r["way"], r["share"]): r for r in compared(rows, "1m", seconds)}
    assert len(found) == len(CORPORA) * sum(map(len, SHARES.values()))
    recipe = found[CORPORA[0], "recipe", 0.125]
    assert recipe["over_baseline"] == pytest.approx(-0.1)
    assert recipe["interval"][0] < -0.1 < recipe["interval"][1] < 0
    assert recipe["p"] < 0.001
    assert recipe["seconds"] == pytest.approx(0.125 * 1.5)
    low, high = found[CORPORA[0], "adamw", 0.125]["interval"]
    assert low < 0 < high


def test_a_ledgers_cells_are_not_run_again(tmp_path):
    cell = {"way": "recipe", "size": "1m", "share": 0.2}
    path = tmp_path / "ledger.jsonl"
    path.write_text(json.dumps(cell | {"test_loss": 1.0}) + "\n")
    run(path, lambda rows: [cell], jobs=1, minutes=1)  # would raise: such a cell cannot be trained
    assert len(path.read_text().splitlines()) == 1


def test_every_part_can_be_taken_out():
    about = {"size": "1m", "corpus": "python-stdlib", "share": 0.2, "learning_rate": 1e-3}
    whole, *others = [
        recipe_of(about | {"way": part, "seed": 0, "overrides": overrides})
        for part, overrides in WITHOUT.items()
    ]
    assert all(other != whole for other in others)
    rows = [
        {"way": f"without {part}", "validation_loss": 3 + 0.01 * seed + 0.5 * (part == "Muon")}
        for part in WITHOUT
        for seed in SEEDS
    ]
    first, *_ = worth(rows)
    assert first["part"] == "Muon"
    assert first["gain"] == pytest.approx(0.5)


def test_the_baseline_is_gpt2():
    shape = ModelConfig(
        dim=32, n_layers=2, n_heads=2, n_kv_heads=2, head_dim=16, hidden_dim=128, max_seq_len=8
    )
    model = Gpt2(shape, 50)
    tokens, targets = torch.randint(0, 50, (2, 3, 8))
    targets[0, :4] = -100
    logits = model.gpt2(tokens).logits.double().log_softmax(-1)
    scored = targets >= 0
    expected = -logits[scored].gather(1, targets[scored][:, None]).sum()
    torch.testing.assert_close(model(tokens, targets=targets).double(), expected)
    assert model.gpt2.lm_head.weight is model.gpt2.transformer.wte.weight
    assert sum(p.numel() for p in model.gpt2.transformer.h.parameters() if p.dim() == 2) == (
        12 * 2 * 32**2
    )
    with pytest.raises(ValueError, match="GPT-2 has heads"):
        Gpt2(shape.model_copy(update={"hidden_dim": 96}), 50)
