"""What is held out is refused wherever an arm could see it."""

import json

import pytest
from texts import words

from compare.leaks import HeldOut
from compare.study import Study
from configs.cli import UserError, to_toml
from configs.schema import DataConfig
from configs.study import StudyRecipe
from data.prepare import documents, prepare
from data.tasks import load_task


def test_a_copy_is_found_inside_another_text_and_a_likeness_is_not():
    held = HeldOut([words(0, 40), "a short one", words(1, 40)])
    assert held.copies(["before " + words(0, 40) + " after"]).keys() == {0}
    assert held.copies(["A  SHORT one"]).keys() == {1}
    assert held.copies(["a short one with more"]) == {}
    half = " ".join(words(0, 40).split()[:24]) + " " + words(7, 20)
    assert held.copies([half, words(5, 200)]) == {}
    with pytest.raises(UserError, match="the store holds what is held out"):
        held.refuse("the store", ["other", words(1, 40)])
    assert held.overlap([words(0, 40)]) == pytest.approx(33 / 67)
    assert held.overlap(["nothing"]) == 0


@pytest.fixture
def study(corpus, cache, tmp_path, monkeypatch):
    """A study of made-up text, whose task is a file of labelled rows."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(
        json.dumps({"text": words(1000 + n, 14).strip(), "label": "ab"[n % 2]}) + "\n"
        for n in range(200)
    ))  # fmt: skip
    data = DataConfig(corpus=str(corpus), section_chars=500, cache_dir=str(cache))
    recipe = StudyRecipe(
        data=data, general="folk-tunes", seeds=[0, 1], shares=[0.2, 1.0], labels=[8, 64],
        task={"name": str(rows), "train_items": 200, "test_items": 20},
    )  # fmt: skip
    (tmp_path / "config.toml").write_text(to_toml(recipe))
    return Study(tmp_path)


def test_what_is_planted_is_refused_in_text_labels_shots_and_store(study, tmp_path):
    assert study.texts(1.0, "scratch")
    assert len(study.labelled(8, "lora").train) == 8
    item, text = study.task.test[0], study.test[0]
    task = study.task
    study.task = task._replace(train=[*task.train, item._replace(label="b")])
    for place in ("lora", "few-shot", "neighbour-shots"):
        with pytest.raises(UserError, match=f"{place} holds what is held out"):
            study.labelled(1000, place)
    study.task = task
    path = study.part(0.2) / "train.jsonl"  # which other tests use too
    before = path.read_text()
    path.write_text(before + json.dumps({"id": "planted", "text": text}) + "\n")
    for place in ("scratch", "retrieval", "xz"):
        with pytest.raises(UserError, match=f"{place} holds what is held out"):
            study.texts(0.2, place)
    path.write_text(before)


def test_held_out_items_that_stand_in_the_training_text_are_not_measured(corpus, cache, tmp_path):
    data = DataConfig(corpus=str(corpus), section_chars=500, cache_dir=str(cache))
    known = [row["text"] for row in documents(prepare(data), "train")][:10]
    rows = [{"text": words(1000 + n, 14), "label": "ab"[n % 2]} for n in range(150)]
    rows += [{"text": text, "label": "a", "split": "test"} for text in known]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"name": str(path), "max_chars": 5000, "test_items": 100}
    recipe = StudyRecipe(data=data, general="folk-tunes", task=task)
    (tmp_path / "config.toml").write_text(to_toml(recipe))
    asked = load_task(recipe.task, data).test
    study = Study(tmp_path)
    assert study.left_out == 10
    assert {i.text for i in asked} - {i.text for i in study.task.test} == set(known)


def test_smaller_shares_and_fewer_labels_are_parts_of_larger_ones(study, tmp_path):
    small, whole = study.texts(0.2, "x"), study.texts(1.0, "x")
    assert set(small) < set(whole)
    size = sum(map(len, small)) / sum(map(len, whole))
    assert 0.1 < size <= 0.21
    few, more = study.labelled(8, "x").train, study.labelled(64, "x").train
    assert more[:8] == few
    other = Study(tmp_path, seed=1)
    assert other.texts(0.2, "x") != small
    assert other.labelled(8, "x").train != few
    assert other.test == study.test
    assert other.task.test == study.task.test
