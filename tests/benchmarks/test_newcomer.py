"""Every kind of user corpus trains, or fails with one clear line."""

import pytest

from benchmarks.newcomer import cases, run_case

CASES = cases(megabytes=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_corpus_trains_or_fails_clearly(name, tmp_path):
    good, row = run_case(name, CASES[name], tmp_path / "corpus")
    assert good, row
