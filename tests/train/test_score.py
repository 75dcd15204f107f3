"""`python -m train.score` on text files and tables."""

import json

import pytest
from texts import words

from model.likelihood import score_texts
from model.load import load_model


def test_the_command_scores_text_and_tables(command, llama_folder, tmp_path):
    text, table = tmp_path / "notes [1].txt", tmp_path / "rows.csv"
    text.write_text(words(1, 300))
    table.write_text("review,stars\nfine words,3\nother words,4\n")
    done = command("train.score", llama_folder, text, text, "--json")
    assert done.returncode == 0, done.stderr
    first, second = map(json.loads, done.stdout.splitlines())
    assert first == second
    model, tokenizer = load_model(llama_folder)
    assert first["bits_per_byte"] == pytest.approx(
        score_texts(model, tokenizer, [text.read_text().rstrip()])["bits_per_byte"], rel=1e-6
    )
    said = command("train.score", llama_folder, text).stdout
    assert said.startswith(f"{text}: {first['bits_per_byte']:.4f} bits per byte, perplexity ")
    assert f" {first['tokens']:,} tokens, " in said
    by_row = command("train.score", llama_folder, table, "--text-field", "review", "--json")
    assert json.loads(by_row.stdout)["documents"] == 2
    for wrong, reason in ((tmp_path / "none.txt", "no such file"), (table, 'no column "text"')):
        done = command("train.score", llama_folder, wrong)
        assert done.returncode == 2
        assert reason in done.stderr
        assert done.stderr.count("\n") == 1


def test_an_empty_file_is_refused(command, llama_folder, tmp_path):
    (tmp_path / "empty.txt").write_text("\n\n")
    done = command("train.score", llama_folder, tmp_path / "empty.txt")
    assert done.returncode == 2
    assert "holds no text" in done.stderr
