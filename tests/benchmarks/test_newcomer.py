"""Every kind of corpus that a newcomer has trains, or ends in one clear line."""

import pytest

from benchmarks.newcomer import attempt, cases

CASES = cases(megabytes=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_newcomers_corpus(name, tmp_path):
    good, row = attempt(name, CASES[name], tmp_path / "corpus")
    assert good, row
