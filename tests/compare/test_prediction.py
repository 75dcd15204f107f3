"""What `--predict` says, from made-up atlases."""

import argparse
import json
import re

import pytest
from planted import write_domain, write_study
from texts import words

from cli.errors import UserError
from compare.analysis.ledger import Ledger
from compare.domains import add_domain, read_atlas
from compare.methods.train import MIN_STEPS
from compare.prediction import describe_prediction
from compare.run import show_prediction


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
