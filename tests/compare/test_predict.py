"""The predictor on planted atlases: it finds the rule, its intervals hold, and it admits when there is none."""

import argparse
import json

import numpy as np
import pytest
from texts import words

from cli.errors import UserError
from cli.recipes import to_toml, validate
from compare.analysis.ledger import Ledger
from compare.atlas_picture import border, draw
from compare.domains import Domain, Features, Outcome, add_domain, measure_features, measure_outcomes, read_atlas
from compare.methods.train import MIN_STEPS
from compare.plan import plan
from compare.predict import Predictor, describe_prediction, judge, left_out_errors, tables
from compare.run import show_prediction
from configs.study_recipe import StudyRecipe

SIZES, SECONDS = (1 / 64, 1 / 16, 1 / 4, 1), 60.0
PACE = 1e9  # no size of the planted domains is more than training reads


def planted(seed, count=12, noise=0.03, slope=0.3, distance=0.5, apart=0.0):
    """Domains in which text and distance from the foundation favour training from scratch.

    `apart` is the standard deviation of what no feature shows, shared by all outcomes of a domain.
    """
    draw = np.random.default_rng(seed)

    def domain(number):
        ratio, size = draw.normal(0.2, 0.5), 10 ** draw.uniform(5.5, 8)

        def outcome(share, factor):
            value = slope * (np.log10(size * share) - 6) + distance * ratio + 0.2 * np.log10(factor)
            return Outcome(size * share, SECONDS * factor, value + own + draw.normal(0, noise), ratio)

        own = draw.normal(0, apart)
        outcomes = [outcome(share, 1) for share in SIZES] + [outcome(1, 4)]
        early = outcome(1, 0.5).advantage - own
        return Domain(f"domain-{number}", Features(ratio, early, draw.uniform(0.2, 0.6), draw.random(), PACE), outcomes)

    return [domain(number) for number in range(count)]


def test_the_decisive_outcome_is_all_text_at_the_studys_budget():
    (domain,) = planted(0, 1)
    assert domain.decisive.seconds == SECONDS
    assert domain.decisive.bytes == max(o.bytes for o in domain.outcomes)


def test_a_planted_rule_is_found_on_unseen_domains():
    domains = planted(1)
    errors = [abs(error) for each in left_out_errors(domains) for error in each]
    spread = np.std([o.advantage for d in domains for o in d.outcomes])
    assert np.median(errors) < 0.3 * spread
    *rules, predictor = judge(domains)
    assert "the predictor" in predictor.name
    assert predictor.outcomes > max(rule.outcomes for rule in rules)
    assert predictor.outcomes > 0.9 * sum(len(domain.outcomes) for domain in domains)


def test_the_tables_count_what_was_right():
    domains = planted(1)
    lines = tables(domains)
    rows = [line for line in lines if line.startswith("| domain-")]
    assert len(rows) == len(domains)
    right = sum("| right: " in row for row in rows)
    assert f"| the predictor, which has not seen the domain | {right} of {len(domains)} | " in lines[-1]
    assert "| domains right, 60 s | domains right, 240 s |" in "\n".join(lines)
    for domain, row in zip(domains, rows, strict=True):
        winner = "from scratch" if domain.decisive.advantage > 0 else "tuning"
        assert f" | {winner}, " in row


def test_without_a_rule_the_predictor_does_not_claim_one():
    domains = planted(2, noise=0.5, slope=0.0, distance=0.0)
    spread = np.std([o.advantage for d in domains for o in d.outcomes])
    assert np.std([error for each in left_out_errors(domains) for error in each]) < 1.5 * spread  # shrunk to the mean
    chances = [Predictor(domains).predict(d.features, d.decisive.bytes, SECONDS).chance for d in domains]
    assert 0.1 < np.mean(chances) < 0.9


@pytest.mark.parametrize("apart", [0.0, 0.2])
def test_four_of_five_intervals_hold_the_outcome_of_a_new_domain(apart):
    held = []
    for seed in range(60):
        *domains, new = planted(100 + seed, 13, noise=0.05, apart=apart)
        predictor = Predictor(domains)
        for outcome in new.outcomes:
            found = predictor.predict(new.features, outcome.bytes, outcome.seconds)
            assert found.low <= found.high
            held.append(found.low <= outcome.advantage <= found.high)
    assert np.mean(held) > 0.77


def test_the_crossing_is_where_the_prediction_changes_sides():
    domains = planted(3)
    predictor = Predictor(domains)
    features = domains[0].features
    at, low, high = predictor.crossing(features, SECONDS)
    assert low <= at <= high
    assert predictor.predict(features, at, SECONDS).advantage == pytest.approx(0, abs=1e-6)
    assert predictor.predict(features, 10 * at, SECONDS).advantage > 0
    falling = Predictor(planted(3, slope=-0.3))
    assert falling.crossing(features, SECONDS) is None


def test_text_that_training_does_not_read_changes_nothing():
    domains = planted(3)
    slow = [domain._replace(features=domain.features._replace(pace=1e5)) for domain in domains]  # 6 MB in 60 s
    predictor, features = Predictor(slow), slow[0].features
    read = predictor.predict(features, 6e6, SECONDS)
    assert predictor.predict(features, 6e9, SECONDS) == read
    assert predictor.predict(features, 6e5, SECONDS).advantage < read.advantage
    assert predictor.predict(features, 6e9, 10 * SECONDS).advantage > read.advantage


def test_nearest_domains_come_first():
    domains = planted(4)
    predictor = Predictor(domains)
    for domain in domains:
        assert predictor.nearest(domain.features, domain.decisive.bytes)[0] == domain


def write_study(folder, scratch, lora, full=0.1):
    """A finished study of one domain; bits per byte by (size, factor); full fine-tuning needs `full` more."""
    folder.mkdir(parents=True)
    shared = {"axis": "text", "seed": 0, "foundation": "", "edition": 2, "document_bytes": [8] * 4, "overlap": 0.25}
    factors = sorted({factor for _, factor in scratch} - {1.0})
    recipe = {
        "text_methods": ["xz", "zero-shot", "scratch", "full", "lora"],
        "shares": sorted({size for size, _ in scratch}),
        "seeds": [0],
        "budget_factors": factors,
        "tries": 1,
        "task": {"name": ""},
    }
    study = validate(StudyRecipe, recipe, "the study")
    (folder / "config.toml").write_text(to_toml(study))
    tuned = {"lora": lora, "full": {key: value + full for key, value in lora.items()}}
    rows = [{"id": "calibration", "edition": 2, "threads": 1, "speeds": {"scratch-text": {"step_seconds": 0.5}}}]
    for cell in plan(study):
        own = shared | cell._asdict() | {"id": cell.name}
        if cell.method in ("xz", "zero-shot"):
            value, more = (2.0 / cell.size**0.5, {}) if cell.method == "xz" else (4.0, {"document_tokens": [4] * 4})
        else:
            value = tuned.get(cell.method, scratch)[cell.size, cell.factor]
            seconds = SECONDS * cell.factor
            more = {"seen_bytes": cell.size * 1e6, "training_seconds": seconds, "training_steps": 2 * seconds}
            more |= {"epochs": 6.0 * cell.factor / cell.size, "validation_bits": value}
        rows.append(own | {"document_bits": [8 * value] * 4} | more)
    (folder / "ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "answer.md").write_text("done\n")


def test_a_domain_is_read_from_its_ledger(tmp_path):
    scratch = {(0.25, 1.0): 2.0, (1.0, 1.0): 1.0, (1.0, 0.5): 2.0, (1.0, 4.0): 0.5}
    lora = dict.fromkeys(scratch, 1.0)
    write_study(tmp_path / "one", scratch, lora)
    ledger = Ledger.read(tmp_path / "one")
    assert measure_features(ledger, 0.5) == pytest.approx(Features(1.0, -1.0, 0.5, 0.25, 1e5))
    assert measure_outcomes(ledger) == [
        pytest.approx(Outcome(2.5e5, 60, -1.0, 0.0)),
        pytest.approx(Outcome(1e6, 60, 0.0, 1.0)),
        pytest.approx(Outcome(1e6, 240, 1.0, 1.0)),
    ]
    with pytest.raises(UserError, match="1 finished domains are too few"):
        read_atlas(tmp_path)


def test_more_threads_for_a_prediction_do_not_change_the_pace(tmp_path):
    write_study(tmp_path / "mine", {(1.0, 1.0): 1.8}, {(1.0, 1.0): 2.0})
    ledger = Ledger.read(tmp_path / "mine")
    before = measure_features(ledger, 1.0).pace
    ledger.calibration |= {"threads": 2, "timed_threads": 1}
    assert measure_features(ledger, 1.0).pace == before
    ledger.calibration["timed_threads"] = 2
    assert measure_features(ledger, 1.0).pace == before / 2


def test_validation_chooses_what_training_from_scratch_is_compared_with(tmp_path):
    scratch = {(1.0, 1.0): 1.0, (1.0, 0.5): 1.0}
    write_study(tmp_path / "one", scratch, dict.fromkeys(scratch, 1.0), full=1.0)
    assert measure_outcomes(Ledger.read(tmp_path / "one"))[0].advantage == 0.0
    ledger = Ledger.read(tmp_path / "one")
    for row in ledger.rows:
        if row["method"] == "lora":
            row["validation_bits"] = 3.0  # worse there than full fine-tuning
    assert measure_outcomes(ledger)[0].advantage == 1.0


def test_a_corpus_is_predicted_and_added_to_the_atlas(tmp_path):
    atlas = tmp_path / "atlas"
    for number in range(6):
        better = {(0.25, 1.0): 2.0, (1.0, 1.0): 1.5, (1.0, 0.5): 1.8, (1.0, 4.0): 1.2 + 0.01 * number}
        write_study(atlas / f"domain-{number}", better, dict.fromkeys(better, 1.9 + 0.02 * number))
    write_study(tmp_path / "mine", {(1.0, 1.0): 1.8}, {(1.0, 1.0): 1.9})
    first, *rest = describe_prediction(tmp_path / "mine", "notes/", atlas)
    assert first.startswith("With 60 s of training on one core on all of the text (1 MB): from scratch, chance")
    text = "\n".join(rest)
    assert "Ten times the training: from scratch" in text
    assert "These three are extrapolated: the atlas has trainings of at most 240 s" in text
    assert "The predicted tie is at " in text
    assert "it named the winner 6 of 6 times, and 6 of 6 times with 240 s of training" in text
    assert "python -m compare.run --corpus notes/ --minutes 20" in text
    add_domain(atlas, "mine", tmp_path / "mine", tmp_path / "mine")
    assert [domain.name for domain in read_atlas(atlas)][-1] == "mine"
    assert len(read_atlas(atlas)) == 7
    with pytest.raises(UserError, match="already has a domain mine"):
        add_domain(atlas, "mine", tmp_path / "mine", tmp_path / "mine")
    ledger = tmp_path / "mine" / "ledger.jsonl"
    ledger.write_text("".join(line for line in ledger.open() if '"xz' in line or "zero" in line or "calib" in line))
    with pytest.raises(UserError, match="there is nothing to add to an atlas"):
        add_domain(tmp_path / "own", "mine", tmp_path / "mine", tmp_path / "mine")


@pytest.mark.slow
def test_the_command_predicts_from_short_runs_of_the_foundation(tmp_path, command, capsys):
    corpus = tmp_path / "words.txt"
    corpus.write_text(words(0, 25_000))
    atlas, run = tmp_path / "atlas", tmp_path / "words-predict"
    for number in range(6):
        bits = {(0.25, 1.0): 2.0, (1.0, 1.0): 1.5, (1.0, 0.5): 1.8, (1.0, 4.0): 1.2 + 0.01 * number}
        write_study(atlas / f"domain-{number}", bits, dict.fromkeys(bits, 1.9 + 0.02 * number))
    scratch = {"step_seconds": 0.5, "micro_batch_size": 4, "precision": "float32"}
    speeds = {"scratch-text": scratch, "lora-text-smollm2-135m": scratch | {"micro_batch_size": 1, "step_seconds": 3.0}}
    args = ("--corpus", str(corpus), "--predict", "--atlas", str(atlas), "--run-dir", str(run))
    refused = command("compare.run", *args)
    assert refused.returncode == 2
    assert f"{atlas / 'calibration.json'}: not found" in refused.stderr
    (atlas / "calibration.json").write_text(json.dumps({"threads": 1, "speeds": speeds}))
    done = command("compare.run", *args, "--overwrite", timeout=600)
    assert done.returncode == 0, done.stderr
    assert "on one core on all of the text (0.1" in done.stdout
    assert (run / "prediction.md").read_text() in done.stdout
    rows = {row["method"]: row for row in Ledger.read(run).rows}
    assert rows["scratch"]["training_steps"] == 60
    assert rows["lora"]["training_steps"] == MIN_STEPS
    assert not any("general_bits" in row for row in rows.values())  # a prediction needs no forgetting
    # A study of the same corpus, in the folder beside it, says what was predicted.
    show_prediction(tmp_path / "words", argparse.Namespace(predict=False, atlas=None))
    (line,) = capsys.readouterr().out.splitlines()
    assert line == "Predicted before: " + (run / "prediction.md").read_text().splitlines()[0]


def test_an_unfinished_domain_is_left_out_with_a_line(tmp_path, capsys):
    bits = {(1.0, 1.0): 1.5, (1.0, 0.5): 1.8}
    for number in range(5):
        write_study(tmp_path / f"domain-{number}", bits, bits)
    ledger = tmp_path / "domain-2" / "ledger.jsonl"
    ledger.write_text("".join(line for line in ledger.open() if '"full-text-1-0"' not in line))
    assert [domain.name[-1] for domain in read_atlas(tmp_path)] == list("0134")
    assert "left out, as full-text-1-0 is missing: compare.atlas --domains domain-2" in capsys.readouterr().err


def test_the_border_of_the_picture_is_where_the_planted_rule_ties(tmp_path):
    domains = planted(5, 14, noise=0.01)
    ratios, sizes = np.linspace(-1, 1, 41), np.logspace(5, 8, 61)
    advantage, undecided = border(domains, ratios, sizes)
    expected = 0.3 * (np.log10(sizes)[:, None] - 6) + 0.5 * ratios
    assert np.mean((advantage > 0) == (expected > 0)) > 0.95
    assert undecided[abs(advantage) < 0.01].all()
    assert not undecided[abs(advantage) > 0.3].any()
    draw(domains, tmp_path / "atlas.png")
    assert (tmp_path / "atlas.png").stat().st_size > 20_000
