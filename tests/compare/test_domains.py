"""Domains of the atlas, read from the ledgers of their studies."""

import json
from pathlib import Path

import pytest
from planted import write_domain, write_study

from cli.errors import UserError
from cli.recipes import load
from compare.analysis.ledger import Ledger
from compare.domains import (
    FEATURE_TOKENS,
    SHORT,
    SHORT_SECONDS,
    Features,
    Outcome,
    count_feature_documents,
    measure_outcomes,
    measure_view,
    read_atlas,
    read_domain,
)
from configs.study_recipe import StudyRecipe


def test_the_short_runs_take_the_seconds_of_the_atlas():
    study = load(StudyRecipe, Path("configs/study/atlas.toml"))
    assert study.budget_seconds * SHORT == SHORT_SECONDS
    assert SHORT in study.budget_factors


def test_a_domain_is_read_from_its_ledger(tmp_path):
    scratch = {(0.25, 1.0): 2.0, (1.0, 1.0): 1.0, (1.0, 0.5): 2.0, (1.0, 4.0): 0.5}
    lora = dict.fromkeys(scratch, 1.0)
    write_study(tmp_path / "one", scratch, lora)
    ledger = Ledger.read(tmp_path / "one")
    size, features = measure_view(ledger, 0.5)
    assert size == 1e6
    assert features == pytest.approx(Features(1.0, -1.0, 0.5, 0.25, 1e5))
    assert measure_outcomes(ledger) == [
        pytest.approx(Outcome(2.5e5, 60, -1.0, 0.0)),
        pytest.approx(Outcome(1e6, 60, 0.0, 1.0, is_tie=True)),
        pytest.approx(Outcome(1e6, 240, 1.0, 1.0)),
    ]
    with pytest.raises(UserError, match="1 finished domains are too few"):
        read_atlas(tmp_path)


def test_a_domain_is_known_at_two_sizes(tmp_path):
    scratch = {(0.25, 1.0): 2.0, (0.5, 1.0): 1.5, (1.0, 1.0): 1.0, (1.0, 0.5): 2.0, (1.0, 4.0): 0.5}
    write_domain(tmp_path / "one", scratch, dict.fromkeys(scratch, 1.0))
    domain = read_domain(tmp_path / "one")
    assert [view.bytes for view in domain.views] == [2.5e5, 1e6]
    assert [view.features.early for view in domain.views] == [-1.0, -1.0]
    assert [view.features.ratio for view in domain.views] == [0.0, 1.0]
    assert sorted((o.bytes, o.seconds) for o in domain.outcomes) == [
        *((2.5e5, 60), (2.5e5, 60), (2.5e5, 240), (5e5, 60), (1e6, 60), (1e6, 240))
    ]
    assert domain.decisive == pytest.approx(Outcome(1e6, 60, 0.0, 1.0, is_tie=True))
    assert domain.longest.advantage == 1.0


def test_features_and_outcomes_are_of_other_documents(tmp_path):
    bits = {(1.0, 1.0): 2.0, (1.0, 0.5): 2.0}
    write_study(tmp_path / "one", bits, bits)
    path = tmp_path / "one" / "ledger.jsonl"
    rows = [json.loads(line) for line in path.open()]
    for row in rows:
        if row.get("method") == "scratch":
            row["document_bits"] = [8.0, 8.0, 32.0, 32.0]  # 1 and 4 bits per byte
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    domain = read_domain(tmp_path / "one")
    assert domain.features.early == 1.0
    assert domain.decisive.advantage == -1.0
    assert not domain.decisive.is_tie
    assert count_feature_documents(Ledger(rows)) == 2
    for row in rows:
        row["document_tokens"] = [FEATURE_TOKENS, 4, 4, 4]
    assert count_feature_documents(Ledger(rows)) == 1


def test_more_threads_for_a_prediction_do_not_change_the_pace(tmp_path):
    write_study(tmp_path / "mine", {(1.0, 1.0): 1.8}, {(1.0, 1.0): 2.0})
    ledger = Ledger.read(tmp_path / "mine")
    before = measure_view(ledger, 1.0).features.pace
    ledger.calibration |= {"threads": 2, "timed_threads": 1}
    assert measure_view(ledger, 1.0).features.pace == before
    ledger.calibration["timed_threads"] = 2
    assert measure_view(ledger, 1.0).features.pace == before / 2


def test_validation_chooses_what_training_from_scratch_is_compared_with(tmp_path):
    scratch = {(1.0, 1.0): 1.0, (1.0, 0.5): 1.0}
    write_study(tmp_path / "one", scratch, dict.fromkeys(scratch, 1.0), full=1.0)
    assert measure_outcomes(Ledger.read(tmp_path / "one"))[0].advantage == 0.0
    ledger = Ledger.read(tmp_path / "one")
    for row in ledger.rows:
        if row["method"] == "lora":
            row["validation_bits"] = 3.0  # worse there than full fine-tuning
    assert measure_outcomes(ledger)[0].advantage == 1.0


def test_an_unfinished_domain_is_left_out_with_a_line(tmp_path, capsys):
    bits = {(1.0, 1.0): 1.5, (1.0, 0.5): 1.8}
    for number in range(5):
        write_study(tmp_path / f"domain-{number}", bits, bits)
    ledger = tmp_path / "domain-2" / "ledger.jsonl"
    ledger.write_text("".join(line for line in ledger.open() if '"full-text-1-0"' not in line))
    assert [domain.name[-1] for domain in read_atlas(tmp_path)] == list("0134")
    assert "left out, as full-text-1-0 is missing: compare.atlas --domains domain-2" in capsys.readouterr().err
