"""Features of a frozen model and the classifier on them."""

import numpy as np
import pytest
import torch

from adapt.features import Classifier, extract_features, fit_classifier
from cli.errors import UserError
from configs.finetune_recipe import FeaturesConfig
from data.items import Item, Task
from model.load import load_model


def test_features_train_a_classifier(tune, rows, base, command):
    done, run = tune("--method", "features", "--task.name", rows)
    assert done.returncode == 0, done.stderr
    assert "validation accuracy" in done.stderr
    head = Classifier.load(run)
    model, tokenizer = load_model(base)
    x = extract_features(model, tokenizer, ["red a b", "blue a b"], head.pooling)
    assert x.shape == (2, 3, 32)
    assert head.predict(x) == ["warm", "cold"]
    said = command("adapt.classify", run, "red a b", "blue a b").stdout.split()
    assert said[::2] == ["warm", "cold"]
    assert all(0.5 < float(share) <= 1 for share in said[1::2])
    assert command("adapt.classify", run).stdout.startswith("1.000 [1.000, 1.000] accuracy")
    nothing = command("adapt.classify", run.parent, "red")
    assert nothing.returncode == 2
    assert "no classifier; train one with method = features" in nothing.stderr
    again, _ = tune("--method", "features", "--task.name", rows)
    assert again.returncode == 2
    assert "--overwrite" in again.stderr


def test_features_equal_the_hidden_states_without_padding(base):
    model, tokenizer = load_model(base)
    texts = ["a", "some longer text than that one", "b c"]
    for pooling in ("mean", "last"):
        together = extract_features(model, tokenizer, texts, pooling)
        alone = np.concatenate([extract_features(model, tokenizer, [text], pooling) for text in texts])
        np.testing.assert_allclose(together, alone, atol=1e-5)
    ids = torch.tensor([[tokenizer.separator_id, *tokenizer.encode(texts[1])]])
    with torch.no_grad():
        last = model.features(ids)[0, -1]
        np.testing.assert_allclose(model.norm(torch.tensor(together[1, -1])), last, atol=1e-5)


@pytest.mark.parametrize("layers", ["best", "last", "all"])
def test_classifier_equals_scikit_learn(layers, tmp_path):
    from sklearn.linear_model import LogisticRegression

    draw = np.random.default_rng(0)
    x = draw.normal(size=(90, 2, 6)).astype(np.float32)
    labels = ["abc"[i] for i in (x[:, 1, :3] + 0.1 * draw.normal(size=(90, 3))).argmax(1)]
    items = [Item(str(i), "", label) for i, label in enumerate(labels)]
    task = Task("", "", ["a", "b", "c"], items[:60], items[60:75], items[75:])
    head, score = fit_classifier(task, x[:60], x[60:75], FeaturesConfig(layers=layers))
    assert head.layers == {"best": [1], "last": [1], "all": [0, 1]}[layers]
    assert score > 0.8
    head.save(tmp_path)
    assert Classifier.load(tmp_path).predict(x) == head.predict(x)
    flat = (x[:, head.layers].reshape(90, -1) - head.mean) / head.scale
    sizes = [
        abs(LogisticRegression(C=c / flat.shape[1], max_iter=300).fit(flat[:60], labels[:60]).coef_ - head.weight).max()
        for c in (0.01, 0.1, 1.0, 10.0, 100.0)
    ]
    assert min(sizes) < 1e-3
    same = task._replace(train=[item._replace(label="a") for item in task.train])
    with pytest.raises(UserError, match="60 training items are labelled"):
        fit_classifier(same, x[:60], x[60:75], FeaturesConfig(layers=layers))
