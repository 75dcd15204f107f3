"""The predictor on planted atlases: it finds the rule, its intervals hold, and it admits when there is none."""

import json

import numpy as np
import pytest

from cli.errors import UserError
from compare.analysis.ledger import Ledger
from compare.atlas_picture import border, draw
from compare.domains import Domain, Features, Outcome, add_domain, measure_features, measure_outcomes, read_atlas
from compare.predict import Predictor, describe_prediction, judge, left_out_errors, tables

SIZES, SECONDS = (1 / 64, 1 / 16, 1 / 4, 1), 60.0


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
        return Domain(f"domain-{number}", Features(ratio, early, draw.uniform(0.2, 0.6), draw.random()), outcomes)

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
    by_rule = {name: (decided, share) for name, decided, _, share in judge(domains)}
    predictor = by_rule["the predictor, which has not seen the domain"]
    assert predictor[1] > max(share for name, (_, share) in by_rule.items() if "predictor" not in name)
    assert predictor[1] > 0.9


def test_the_tables_count_what_was_right():
    domains = planted(1)
    lines = tables(domains)
    rows = [line for line in lines if line.startswith("| domain-")]
    assert len(rows) == len(domains)
    right = sum("| right: " in row for row in rows)
    assert f"| the predictor, which has not seen the domain | {right} of {len(domains)} | " in "\n".join(lines)
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
    features, size = domains[0].features, domains[0].decisive.bytes
    at, low, high = predictor.crossing(features, size, SECONDS)
    assert low <= at <= high
    assert predictor.predict(features, at, SECONDS).advantage == pytest.approx(0, abs=1e-6)
    assert predictor.predict(features, 10 * at, SECONDS).advantage > 0
    falling = Predictor(planted(3, slope=-0.3))
    assert falling.crossing(features, size, SECONDS) is None


def test_nearest_domains_come_first():
    domains = planted(4)
    predictor = Predictor(domains)
    for domain in domains:
        assert predictor.nearest(domain.features, domain.decisive.bytes)[0] == domain


def write_study(folder, scratch, lora):
    """A finished study of one domain; bits per byte by (size, factor)."""
    folder.mkdir(parents=True)
    shared = {"axis": "text", "seed": 0, "foundation": "", "edition": 2, "document_bytes": [8] * 4, "overlap": 0.25}

    def row(method, size, factor, value, **more):
        own = {"id": f"{method}-{size:g}-{factor:g}", "method": method, "size": size, "factor": factor}
        return shared | own | {"document_bits": [8 * value] * 4} | more

    rows = [row("xz", size, 1.0, 2.0 / size**0.5) for size, factor in scratch if factor == 1]
    rows.append(row("zero-shot", 0.0, 1.0, 4.0, document_tokens=[4] * 4))
    full = {key: value + 0.1 for key, value in lora.items()}
    for method, values in (("scratch", scratch), ("lora", lora), ("full", full)):
        for (size, factor), value in values.items():
            rows.append(row(method, size, factor, value, seen_bytes=size * 1e6, training_seconds=SECONDS * factor))
    (folder / "ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "answer.md").write_text("done\n")


def test_a_domain_is_read_from_its_ledger(tmp_path):
    scratch = {(0.25, 1.0): 2.0, (1.0, 1.0): 1.0, (1.0, 0.5): 2.0, (1.0, 4.0): 0.5}
    lora = dict.fromkeys(scratch, 1.0)
    write_study(tmp_path / "one", scratch, lora)
    ledger = Ledger.read(tmp_path / "one")
    assert measure_features(ledger, 0.5) == pytest.approx(Features(1.0, -1.0, 0.5, 0.25))
    assert measure_outcomes(ledger) == [
        pytest.approx(Outcome(2.5e5, 60, -1.0, 0.0)),
        pytest.approx(Outcome(1e6, 60, 0.0, 1.0)),
        pytest.approx(Outcome(1e6, 240, 1.0, 1.0)),
    ]
    with pytest.raises(UserError, match="1 finished domains are too few"):
        read_atlas(tmp_path)


def test_a_corpus_is_predicted_and_added_to_the_atlas(tmp_path):
    atlas = tmp_path / "atlas"
    for number in range(6):
        better = {(0.25, 1.0): 2.0, (1.0, 1.0): 1.5, (1.0, 0.5): 1.8, (1.0, 4.0): 1.2 + 0.01 * number}
        write_study(atlas / f"domain-{number}", better, dict.fromkeys(better, 2.0 + 0.02 * number))
    write_study(tmp_path / "mine", {(1.0, 1.0): 1.8}, {(1.0, 1.0): 2.0})
    first, *rest = describe_prediction(tmp_path / "mine", "notes/", atlas)
    assert first.startswith("With 60 s of training on one core on all of the text (1 MB): from scratch, chance")
    text = "\n".join(rest)
    assert "With ten times the text: from scratch" in text
    assert "The last is extrapolated: the atlas has trainings of at most 240 s." in text
    assert "The predicted tie is at " in text
    assert "named the winner for 6 of 6 domains" in text
    assert "python -m compare.run --corpus notes/ --minutes 20" in text
    add_domain(atlas, "mine", tmp_path / "mine", tmp_path / "mine")
    assert [domain.name for domain in read_atlas(atlas)][-1] == "mine"
    assert len(read_atlas(atlas)) == 7
    with pytest.raises(UserError, match="already has a domain mine"):
        add_domain(atlas, "mine", tmp_path / "mine", tmp_path / "mine")
    ledger = tmp_path / "mine" / "ledger.jsonl"
    ledger.write_text("".join(line for line in ledger.open() if '"xz"' in line or "zero" in line))
    with pytest.raises(UserError, match="there is nothing to add to an atlas"):
        add_domain(tmp_path / "own", "mine", tmp_path / "mine", tmp_path / "mine")


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
