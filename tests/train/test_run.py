"""What a run directory is started with, and how it is gone on with."""

import pytest

from train.run import resumable, resumed_revision

A, B = "a" * 40, "b" * 40


@pytest.mark.parametrize(
    ("given", "saved", "used"),
    [
        ("own/ds", f"own/ds@{A}", f"own/ds@{A}"),
        ("own/ds@main", f"own/ds@{A}", f"own/ds@{A}"),  # a branch may have moved since then
        (f"own/ds@{B}", f"own/ds@{A}", f"own/ds@{B}"),
        ("own/other", f"own/ds@{A}", "own/other"),
        ("own/ds", "", "own/ds"),
        ("notes/", "notes/", "notes/"),
        ("folk-tunes", "aws-api", "folk-tunes"),
    ],
)
def test_a_resumed_run_keeps_the_commit_that_it_began_with(given, saved, used):
    assert resumed_revision(given, saved) == used


def test_an_interrupt_before_or_after_the_loop_says_how_to_go_on(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["pretrain", "a recipe.toml", "--overwrite"])
    with pytest.raises(SystemExit) as ended, resumable():
        raise KeyboardInterrupt
    assert ended.value.code == 130
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith("interrupted; go on with: python -m ")
    assert said.endswith("'a recipe.toml' --resume")
