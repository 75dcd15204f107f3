"""The leak check refuses held-out texts in all data of a method."""

import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from texts import words

from cli.atomic import write_manifest
from cli.errors import UserError
from cli.recipes import to_toml
from compare.context import Cell, Study
from compare.leaks import COPY_SHARE, NGRAM, HeldOut
from compare.methods import METHODS
from configs.schema import DataConfig, TaskConfig
from configs.study_recipe import StudyRecipe
from data.prepare import prepare
from data.splits import load_manifest, read_documents
from data.tasks import load_task


def test_a_copy_inside_another_text_is_found_and_a_similar_text_is_not():
    held = HeldOut([words(0, 40), "a short one", words(1, 40)])
    assert held.find_copies(["before " + words(0, 40) + " after"]).keys() == {0}
    assert held.find_copies(["A  SHORT one"]).keys() == {1}
    assert held.find_copies(["a short one with more"]) == {}
    half = " ".join(words(0, 40).split()[:24]) + " " + words(7, 20)
    assert held.find_copies([half, words(5, 200)]) == {}
    with pytest.raises(UserError, match="the store contains the held-out text"):
        held.refuse_copies("the store", ["other", words(1, 40)])
    assert held.overlap([words(0, 40)]) == pytest.approx(0.5, abs=0.1)
    assert held.overlap(["nothing"]) == 0
    assert HeldOut([]).find_copies(["anything"]) == {}


@given(
    st.lists(st.text("ab \n", min_size=1, max_size=80), max_size=4),
    st.lists(st.text("ab \n", max_size=120), max_size=5),
)
def test_ngrams_are_found_as_by_comparing_strings(held, texts):
    def ngrams(text):
        joined = "".join(text.split())
        return {joined[i : i + NGRAM] for i in range(len(joined) - NGRAM + 1)}

    everywhere = set().union(*map(ngrams, texts))
    known = set().union(*map(ngrams, held))
    found = HeldOut(held)
    expected = len(known & everywhere) / len(known) if known else 0.0
    assert found.overlap(texts) == pytest.approx(expected)
    long = {number for number, text in enumerate(held) if ngrams(text)}
    copied = {
        number
        for number in long
        for text in texts
        if len(ngrams(held[number]) & ngrams(text)) >= COPY_SHARE * len(ngrams(held[number]))
    }
    assert found.find_copies(texts).keys() & long == copied


def test_a_tune_with_joined_lines_is_found_in_its_document(cache):
    data = DataConfig(corpus="folk-tunes", test_fraction=0.05, cache_dir=str(cache))
    item = load_task(TaskConfig(name="tune-key", max_chars=160, test_items=5), data).test[0]
    whole = {row["id"]: row["text"] for row in read_documents(prepare(data), "test")}
    assert item.text not in whole[item.id]  # its lines are joined
    assert HeldOut([item.text]).find_copies(whole.values()) == {0: whole[item.id]}


def test_a_planted_copy_is_refused_in_text_labels_shots_and_store(study, tmp_path):
    cell = Cell("lora", "text", 1.0, 0)
    assert study.training_texts(cell)
    few = study.labelled_task(cell, 8)
    assert len(few.train) == 8
    assert few.validation == study.task.validation[:16]
    assert study.labelled_task(cell, 100).validation == study.task.validation[:64]
    item, text = study.task.test[0], study.test[0]
    task = study.task
    study.task = task._replace(train=[*task.train, item._replace(label="b")])
    for place in ("lora", "few-shot", "neighbour-shots"):
        with pytest.raises(UserError, match=f"{place} contains the held-out text"):
            study.labelled_task(cell._replace(method=place), 1000)
    study.task = task
    fifth = cell._replace(size=0.2)
    path = study.share_folder(fifth) / "train.jsonl"  # which other tests use too
    before, manifest = path.read_text(), load_manifest(path.parent)
    path.write_text(before + json.dumps({"id": "planted", "text": text}) + "\n")
    write_manifest(path.parent, manifest)  # otherwise the folder would count as damaged and be prepared again
    for place in ("scratch", "retrieval", "xz"):
        with pytest.raises(UserError, match=f"{place} contains the held-out text"):
            study.training_texts(fifth._replace(method=place))
    path.write_text(before)
    write_manifest(path.parent, manifest)


def planted(study, tmp_path):
    """The study with a held-out document in its training text and held-out items as training items."""
    folder = tmp_path / "planted"
    shutil.copytree(study.documents, folder)
    with open(folder / "train.jsonl", "a") as file:
        file.write(json.dumps({"id": "planted", "text": study.test[0]}) + "\n")
    write_manifest(folder, load_manifest(study.documents))
    study.documents = folder
    study.task = study.task._replace(train=study.task.test)
    return study


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "axis"),
    [
        (name, axis)
        for name, method in METHODS.items()
        for axis in method.sizes
        if name not in ("zero-shot", "majority")
    ],
)
def test_every_method_refuses_a_planted_copy(study, tmp_path, method, axis):
    size = METHODS[method].sizes_on(axis, study.recipe)[-1]
    setting = METHODS[method].settings(study.recipe, axis)[0]
    with pytest.raises(UserError, match=f"^leak check: {method} contains the held-out text"):
        METHODS[method].learn(planted(study, tmp_path), Cell(method, axis, size, 0), setting)


def test_held_out_items_that_occur_in_the_training_text_are_removed(corpus, cache, tmp_path):
    data = DataConfig(corpus=str(corpus), section_chars=500, cache_dir=str(cache))
    known = [row["text"] for row in read_documents(prepare(data), "train")][:10]
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


def test_smaller_shares_and_fewer_labels_are_subsets_of_larger_ones(study, tmp_path):
    cell, fifth = Cell("x", "text", 1.0, 0), Cell("x", "text", 0.2, 0)
    small, whole = study.training_texts(fifth), study.training_texts(cell)
    assert set(small) < set(whole)
    size = sum(map(len, small)) / sum(map(len, whole))
    assert 0.1 < size <= 0.21
    few, more = study.labelled_task(cell, 8).train, study.labelled_task(cell, 64).train
    assert more[:8] == few
    assert study.training_texts(fifth._replace(seed=1)) != small
    assert study.labelled_task(cell._replace(seed=1), 8).train != few


def test_all_methods_are_validated_on_the_same_bytes(study):
    texts = study.validation_texts(1000)
    assert sum(len(text.encode()) for text in texts) == 1000
    assert "".join(study.validation_texts(3000)).startswith("".join(texts)[:900])
