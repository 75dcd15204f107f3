"""The tf-idf classifier against scikit-learn."""

import random

import numpy as np
import pytest

from adapt.features import fit_linear
from adapt.tfidf import TfIdfClassifier
from cli.recipes import to_toml
from configs.finetune_recipe import FinetuneRecipe
from configs.schema import TaskConfig
from data.items import Item
from prompting.shots import fit_tfidf

LETTERS = {"late": "vwxyz", "vowel": "aeiou", "early": "bcdfg"}


def labelled(count, seed, kinds):
    draw = random.Random(seed)
    labels = [draw.choice(kinds) for _ in range(count)]
    return ["".join(draw.choices(LETTERS[label] + "lmn  \t", k=30)) for label in labels], labels


def fit(texts, labels, strength=10.0):
    vectorizer, x = fit_tfidf([Item("", text, "") for text in texts])  # as the study does
    own, weight, bias = fit_linear(x, labels, strength, 1000)
    return TfIdfClassifier(own, vectorizer.vocabulary_, vectorizer.idf_, weight, bias), vectorizer, x


@pytest.mark.parametrize("kinds", [["late", "vowel"], ["late", "vowel", "early"]])
def test_a_saved_classifier_equals_scikit_learn(tmp_path, kinds):
    from sklearn.linear_model import LogisticRegression

    texts, labels = labelled(200, 0, kinds)
    classifier, vectorizer, x = fit(texts, labels)
    classifier.save(tmp_path)
    others = [*labelled(60, 1, kinds)[0], "", "é unknown\n\ntext", "a" * 500]
    oracle = LogisticRegression(C=10.0, max_iter=1000).fit(x, labels)
    loaded = TfIdfClassifier.load(tmp_path)
    assert loaded.labels == list(oracle.classes_)
    np.testing.assert_allclose(loaded.probabilities(others), oracle.predict_proba(vectorizer.transform(others)), 1e-9)


def test_one_label_is_always_the_answer():
    classifier, *_ = fit(["abc", "xyz"], ["only", "only"])
    assert classifier.labels == ["only"]
    assert classifier.probabilities(["x", ""]).tolist() == [[1.0], [1.0]]


def test_the_command_labels_texts_with_it(command, tmp_path, rows):
    texts, labels = ["red a b", "blue a b", "red c", "blue d"] * 5, ["warm", "cold", "warm", "cold"] * 5
    fit(texts, labels)[0].save(tmp_path)
    recipe = FinetuneRecipe(base="", method="features", task=TaskConfig(name=str(rows)))
    (tmp_path / "config.toml").write_text(to_toml(recipe))
    said = command("adapt.classify", tmp_path, "red a b", "blue a b")
    assert said.returncode == 0, said.stderr
    assert said.stdout.split()[::2] == ["warm", "cold"]
    assert command("adapt.classify", tmp_path).stdout.startswith("1.000 [1.000, 1.000] accuracy")
