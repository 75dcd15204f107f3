"""The predictor on planted atlases: it finds the rule, its intervals hold, and it admits when there is none."""

import argparse
import json
import re
from pathlib import Path

import numpy as np
import pytest
from texts import words

from cli.errors import UserError
from cli.recipes import load, to_toml, validate
from compare.analysis.ledger import Ledger
from compare.atlas_picture import border, draw
from compare.domains import (
    FEATURE_TOKENS,
    SHORT,
    SHORT_SECONDS,
    SMALL,
    Domain,
    Features,
    Outcome,
    View,
    add_domain,
    count_feature_documents,
    measure_outcomes,
    measure_view,
    read_atlas,
    read_domain,
)
from compare.methods.train import MIN_STEPS
from compare.plan import plan
from compare.predict import Predictor, judge, left_out_errors, measured_tie, pairs, tables
from compare.prediction import describe_prediction
from compare.run import show_prediction
from configs.study_recipe import StudyRecipe

SIZES, SECONDS = (1 / 64, 1 / 16, 1 / 4, 1), 60.0
PACE = 1e9  # no size of the planted domains is more than training reads


def planted(seed, count=12, noise=0.03, slope=0.3, distance=0.5, apart=0.0, bend=0.0):
    """Domains in which text and distance from the foundation favour training from scratch.

    `apart` is the standard deviation of what no feature shows, shared by all outcomes of a domain; `bend` lowers
    the slope as the text grows.
    """
    draw = np.random.default_rng(seed)

    def domain(number):
        ratio, size = draw.normal(0.2, 0.5), 10 ** draw.uniform(5.5, 8)

        def outcome(share, factor):
            at = np.log10(size * share) - 6
            value = slope * at - bend * at**2 + distance * ratio + 0.2 * np.log10(factor)
            return Outcome(size * share, SECONDS * factor, value + own + draw.normal(0, noise), ratio)

        def view(share):
            early = outcome(share, 0.5).advantage
            return View(size * share, Features(ratio, early, draw.uniform(0.2, 0.6), draw.random(), PACE))

        own = draw.normal(0, apart)
        outcomes = [outcome(share, 1) for share in SIZES] + [outcome(1, 4), outcome(SIZES[0], 4)]
        return Domain(f"domain-{number}", [view(SIZES[0]), view(1)], outcomes)

    return [domain(number) for number in range(count)]


def test_the_short_runs_take_the_seconds_of_the_atlas():
    study = load(StudyRecipe, Path("configs/study/atlas.toml"))
    assert study.budget_seconds * SHORT == SHORT_SECONDS
    assert SHORT in study.budget_factors


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
    assert predictor.pairs > max(rule.pairs for rule in rules)
    assert predictor.pairs > 0.9 * sum(len(list(pairs(domain))) for domain in domains)


def test_the_tables_count_what_was_right():
    domains = planted(1)
    lines = tables(domains)
    rows = [line for line in lines if line.startswith("| domain-")]
    assert len(rows) == len(domains)
    right = sum("| right: " in row for row in rows)
    assert f"| the predictor, which has not seen the domain | {right} of {len(domains)} | " in lines[-3]
    assert re.search(r"wrong by \d% of the bits per byte \(median\), and (7|8|9)\d% of its intervals of 80%", lines[-1])
    assert "| domains right, 60 s | domains right, 240 s |" in "\n".join(lines)
    for domain, row in zip(domains, rows, strict=True):
        winner = "from scratch" if domain.decisive.advantage > 0 else "tuning"
        assert f" | {winner}, " in row


def test_without_a_rule_the_predictor_does_not_claim_one():
    domains = planted(2, noise=0.5, slope=0.0, distance=0.0)
    spread = np.std([o.advantage for d in domains for o in d.outcomes])
    assert np.std([error for each in left_out_errors(domains) for error in each]) < 1.5 * spread  # shrunk to the mean
    domains = [
        domain._replace(views=[v._replace(features=v.features._replace(early=0)) for v in domain.views])
        for domain in domains
    ]
    chances = [Predictor(domains).predict(d.views[-1], d.decisive.bytes, SECONDS).chance for d in domains]
    assert 0.1 < np.mean(chances) < 0.9


@pytest.mark.parametrize(("apart", "bend"), [(0.0, 0.0), (0.2, 0.0), (0.1, 0.1)])
def test_four_of_five_intervals_hold_the_outcome_of_a_new_domain(apart, bend):
    held = {}
    for seed in range(60):
        *domains, new = planted(100 + seed, 13, noise=0.05, apart=apart, bend=bend)
        predictor = Predictor(domains)
        for view, outcome in pairs(new):
            found = predictor.predict(view, outcome.bytes, outcome.seconds)
            assert found.low <= found.high
            kind = predictor.kind(view, outcome.bytes, outcome.seconds)
            held.setdefault(kind, []).append(found.low <= outcome.advantage <= found.high)
    assert len(held) == 6
    assert all(np.mean(each) > 0.72 for each in held.values()), {kind: np.mean(each) for kind, each in held.items()}
    assert np.mean([each for kind in held.values() for each in kind]) > 0.77


def test_a_tie_is_where_the_prediction_changes_sides():
    domains = planted(3)
    predictor, view = Predictor(domains), domains[0].views[-1]
    path = [(float(size), SECONDS) for size in np.geomspace(1e3, 1e9, 601)]
    at, early, late = predictor.tie(view, path)
    assert early <= at <= late
    assert predictor.predict(view, *path[at]).advantage == pytest.approx(0, abs=0.05)
    assert predictor.predict(view, *path[at - 1]).advantage < 0 <= predictor.predict(view, *path[at]).advantage
    expected = 6 - 0.5 * view.features.ratio / 0.3
    assert np.log10(path[at][0]) == pytest.approx(expected, abs=0.5)
    assert predictor.tie(view, path[: early // 2]) == (None, None, None)
    tie = measured_tie(domains[0]._replace(outcomes=[Outcome(1e5, 60, -0.2, 0), Outcome(1e6, 60, 0.2, 0)]))
    assert tie == pytest.approx(10**5.5)
    assert measured_tie(domains[0]._replace(outcomes=[Outcome(1e5, 60, 0.1, 0), Outcome(1e6, 60, 0.2, 0)])) is None


def test_text_that_training_does_not_read_changes_nothing():
    def slow_down(view):
        return view._replace(features=view.features._replace(pace=1e5))  # 6 MB in 60 s

    slow = [domain._replace(views=list(map(slow_down, domain.views))) for domain in planted(3)]
    predictor, view = Predictor(slow), slow[0].views[-1]
    read = predictor.model(view, 6e6, SECONDS)
    assert predictor.model(view, 6e9, SECONDS) == read
    assert predictor.model(view, 6e5, SECONDS) < read
    assert predictor.model(view, 6e9, 10 * SECONDS) > read


def test_nearest_domains_come_first():
    domains = planted(4)
    predictor = Predictor(domains)
    for domain in domains:
        assert predictor.nearest(domain.views[0])[0] == domain
    assert predictor.unlike(domains[0].views[0]) == []
    far = domains[0].features._replace(ratio=9.0)
    assert predictor.unlike(View(1e6, far)) == ["ratio"]


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


def write_domain(path, scratch, lora):
    """The two studies of a domain: of all of its text, and of its smallest size alone."""
    write_study(path, scratch, lora)
    small = [{(0.25, factor): bits[0.25, 1.0] for factor in (0.5, 1.0, 4.0)} for bits in (scratch, lora)]
    write_study(path.with_name(path.name + SMALL), *small)


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


def test_a_corpus_is_predicted_and_added_to_the_atlas(tmp_path):
    corpus = tmp_path / "words.txt"
    corpus.write_text(words(0, 25_000))
    atlas = tmp_path / "atlas"
    for number in range(6):
        better = {(0.25, 1.0): 2.0, (1.0, 1.0): 1.5, (1.0, 0.5): 1.8, (1.0, 4.0): 1.2 + 0.01 * number}
        write_domain(atlas / f"domain-{number}", better, dict.fromkeys(better, 1.9 + 0.02 * number))
    write_study(tmp_path / "mine", {(1.0, 1.0): 1.8}, {(1.0, 1.0): 1.9})
    first, *rest = describe_prediction(tmp_path / "mine", str(corpus), atlas)
    assert re.match(
        r"With 60 s of training \(of one core .*\) on all of the text \(1 MB\): from scratch, with a chance of 9\d%: "
        r"\d\d% fewer bits per byte \(between \d+% (more|fewer) and \d\d% fewer\)\.$",
        first,
    )
    text = "\n".join(rest)
    assert "Ten times the training: from scratch" in text
    assert "Ten times the text: from scratch" in text
    assert "ten times the training is extrapolated" in text
    assert re.search(r"Text from which .*, in 60 s: 0\.\d+ MB \[(below )?0\.\d+ MB, 0\.\d+ MB\]", text), text
    assert re.search(r"Seconds from .* with all of the text: below 30 s \[below 30 s, below 30 s\]", text)
    found = re.search(
        r"named the winner (\d+) of 18 times, and (\d+) of \2 times where they were at least as sure", text
    )
    assert found, text
    assert int(found[1]) >= 12
    assert f"python -m compare.run --corpus {corpus} --minutes " in text
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
        write_domain(atlas / f"domain-{number}", bits, dict.fromkeys(bits, 1.9 + 0.02 * number))
    scratch = {"step_seconds": 0.5, "micro_batch_size": 4, "precision": "float32"}
    speeds = {"scratch-text": scratch, "lora-text-smollm2-135m": scratch | {"micro_batch_size": 1, "step_seconds": 3.0}}
    args = ("--corpus", str(corpus), "--predict", "--atlas", str(atlas), "--run-dir", str(run))
    refused = command("compare.run", *args)
    assert refused.returncode == 2
    assert f"{atlas / 'calibration.json'}: not found" in refused.stderr
    (atlas / "calibration.json").write_text(json.dumps({"threads": 1, "speeds": speeds}))
    done = command("compare.run", *args, "--overwrite", timeout=600)
    assert done.returncode == 0, done.stderr
    assert "on all of the text (0.1" in done.stdout
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
