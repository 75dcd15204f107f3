"""The predictor on planted atlases: it finds the rule, its intervals hold, and it admits when there is none."""

import re

import numpy as np
import pytest
from planted import SECONDS, planted

from compare.atlas_picture import border, draw
from compare.domains import Outcome, View
from compare.predict import Predictor, judge, left_out_errors, measured_tie, pairs, tables


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
