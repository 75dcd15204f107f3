"""A study of a user's own corpus without a recipe."""

import json
import random
import re

import pytest
from texts import words

from cli.errors import UserError
from compare.own_corpus import check_size, describe, estimate_minutes, general_for, recipe_for, vocabulary_for
from compare.plan import plan
from compare.run import is_own_corpus
from configs.schema import DataConfig
from data.prepare import prepare
from data.splits import load_manifest


@pytest.fixture
def own(tmp_path, monkeypatch, cache):
    """A corpus of 200 kB, and a function that labels some lines."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cache").symlink_to(cache)
    (tmp_path / "notes.txt").write_text("\n".join(words(n, 60) for n in range(700)))

    def label(count):
        path = tmp_path / f"{count}.jsonl"
        rows = [{"text": words(5000 + n, 12).strip(), "label": "abc"[n % 3]} for n in range(count)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return "notes.txt", label


def test_more_minutes_measure_more(own):
    corpus, label = own
    labels, minutes = label(300), (10, 60, 300)
    recipes = [recipe_for(corpus, labels, each) for each in minutes]
    richness = [(len(r.seeds), r.tries, len(r.shares), r.budget_seconds) for r in recipes]
    assert richness == sorted(richness)
    assert len(set(richness)) == 3
    for recipe, each in zip(recipes, minutes, strict=True):
        assert 0.3 * each < estimate_minutes(recipe) <= each
    assert max(recipes[0].labels) > 100
    assert {cell.axis for cell in plan(recipes[0])} == {"text", "task"}
    assert {cell.axis for cell in plan(recipe_for(corpus, "", 20))} == {"text"}


def test_three_minutes_measure_the_distance_and_the_baselines(own):
    corpus, label = own
    cells = plan(recipe_for(corpus, label(60), 3))
    assert {cell.method for cell in cells} == {"xz", "ngram", "zero-shot", "majority", "tfidf"}


def test_what_was_chosen_is_said(own, capsys):
    corpus, label = own
    assert "only the distance to the foundation and the baselines are measured: 3 minutes" in describe(
        recipe_for(corpus, "", 3), 3
    )
    assert "settings tried: 3, training: " in describe(recipe_for(corpus, "", 300), 300)
    labels = label(300)
    assert "WARNING" not in capsys.readouterr().err
    recipe_for(corpus, labels, 5)
    assert re.search(
        r"WARNING: the smallest study of notes\.txt takes about \d+ minutes, not 5", capsys.readouterr().err
    )


@pytest.mark.slow
def test_the_command_ends_in_an_answer_or_in_one_line(own, command, tmp_path):
    corpus, label = own
    args = ("--corpus", tmp_path / corpus, "--labels", tmp_path / label(60), "--minutes", "0.5")
    done = command("compare.run", *args, "--run-dir", tmp_path / "run", timeout=600)
    assert done.returncode == 0, done.stderr
    for line in ("For the text: ", "  Untuned, the foundation model predicts the text ", "For the labels: "):
        assert line in done.stdout
    assert (tmp_path / "run" / "report.html").exists()
    (tmp_path / "poem.txt").write_text(words(1, 400))
    poem = command("compare.run", "--corpus", tmp_path / "poem.txt", "--run-dir", tmp_path / "poem")
    assert poem.returncode == 2
    assert poem.stderr.splitlines()[-1].startswith("error: ")
    assert "are too few to compare methods" in poem.stderr


def test_too_little_is_named(own, tmp_path):
    corpus, label = own
    (tmp_path / "poem.txt").write_text("\n".join(words(n, 10) for n in range(40)))
    with pytest.raises(UserError, match=r"poem\.txt: [\d,]+ bytes of training text .* are too few to compare methods"):
        recipe_for("poem.txt", "", 20)
    with pytest.raises(UserError, match="label more, about 100 in all"):
        recipe_for(corpus, label(20), 20)
    with pytest.raises(UserError, match=r"--labels: .*No such file"):
        recipe_for(corpus, "nowhere.jsonl", 20)


def test_little_text_and_little_time_have_limits(own):
    corpus, _ = own
    long, short = recipe_for(corpus, "", 300), recipe_for(corpus, "", 5)
    size = load_manifest(prepare(long.data))["splits"]["train"]["bytes"]
    assert min(long.shares) * size >= 4_000
    assert check_size(long.data, 1)[1] < check_size(long.data, 20)[1]
    assert short.tries == 1
    assert short.lora.text_rate < long.lora.text_rate
    assert general_for("python-stdlib") != "python-stdlib" == general_for(corpus)
    assert is_own_corpus(["run", "--corpus=notes"])
    assert not is_own_corpus(["run", "--run-dir", "corpus"])


def test_fewer_documents_are_scored_of_text_with_more_tokens(tmp_path, cache):
    draw, documents = random.Random(0), {}
    for name, alphabet in (("latin", "etaoin shrdlu "), ("chinese", "".join(map(chr, range(0x4E00, 0x5E00))))):
        (tmp_path / name).mkdir()
        for number in range(400):
            text = "".join(draw.choices(alphabet, k=3000 // len(alphabet[0].encode())))
            (tmp_path / name / f"{number}.txt").write_text(text)
        data = DataConfig(corpus=str(tmp_path / name), test_fraction=0.1, cache_dir=str(cache))
        _, documents[name] = check_size(data, 5)
    assert 5 <= documents["chinese"] < documents["latin"] / 1.5


def test_the_vocabulary_grows_with_the_text():
    assert [vocabulary_for(size) for size in (20_000, 600_000, 1_100_000, 10**9)] == [512, 1024, 2048, 8192]
