import json
import re

import pytest

from cli.errors import UserError
from configs.schema import DataConfig, TaskConfig
from data.prepare import prepare
from data.splits import SPLITS, read_documents
from data.tasks import load_task

ROWS = [{"text": f"text number {n}", "label": "odd" if n % 2 else "even", "group": str(n // 2)} for n in range(200)]


@pytest.fixture
def data(corpus, cache):
    return DataConfig(corpus=str(corpus), section_chars=500, cache_dir=str(cache))


@pytest.fixture
def file(tmp_path):
    def write(*rows):
        path = tmp_path / "own.jsonl"
        path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
        return str(path)

    return write


def test_tune_key_items_hide_the_label_and_keep_the_split(cache):
    data = DataConfig(cache_dir=str(cache))
    folder, task = prepare(data), load_task(TaskConfig(train_items=5000), data)
    assert len(task.labels) == 10
    assert len(task.train) > 2500
    for split in SPLITS:
        ids = {d["id"]: d["text"] for d in read_documents(folder, split)}
        for item in getattr(task, split):
            assert "K:" not in item.text
            assert item.label in task.labels
            key = re.search(r"(?m)^K:\s*([A-G][#b]?)", ids[item.id])[1]
            assert item.label.startswith(key)


@pytest.mark.slow
def test_api_service_needs_a_split_by_document_and_hides_the_label(cache):
    config = DataConfig(corpus="aws-api", cache_dir=str(cache))
    folder = prepare(config)
    services = [{d["id"].split("/")[0] for d in read_documents(folder, split)} for split in SPLITS]
    assert not services[0] & services[2]
    assert not services[0] & services[1]
    with pytest.raises(UserError, match='group_field = "document"'):
        load_task(TaskConfig(name="api-service"), config)
    by_document = config.model_copy(update={"group_field": "document"})
    service = load_task(TaskConfig(name="api-service", test_items=1000), by_document)
    assert len(service.labels) == 12
    assert {i.label for i in service.test} == set(service.labels)
    for item in service.test:
        assert item.id.startswith(f"{item.label}/")
        assert "/operation/" in item.id
        assert item.label.lower() not in item.text.lower()


def test_a_task_file_keeps_groups_in_one_split(data, file):
    task = load_task(TaskConfig(name=file(*ROWS), field="Q", answer="A"), data)
    assert task.labels == ["even", "odd"]
    assert task.prompt("x") == "Q: x\nA:"
    groups = [{int(i.text.split()[-1]) // 2 for i in getattr(task, s)} for s in SPLITS]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 100
    again = load_task(TaskConfig(name=file(*ROWS), field="Q", answer="A"), data)
    assert again == task
    given = [row | {"split": SPLITS[n % 3], "group": ""} for n, row in enumerate(ROWS)]
    free = load_task(TaskConfig(name=file(*given), kind="completion", instruction="Do."), data)
    assert {int(i.text.split()[-1]) % 3 for i in free.test} == {2}
    assert free.labels == []
    named = load_task(TaskConfig(name=file(*given), kind="naming"), data)
    assert named.labels == []
    assert named.completion("dumps") == " dumps\n"
    assert free.completion("a\nb") == " a\nb\n\n"
    assert free.opening == "Do.\n\n"


def test_a_numeric_group_is_in_one_split_only(data, file):
    zero = [row | {"group": 0} for row in ROWS[:40]]
    task = load_task(TaskConfig(name=file(*zero, *ROWS[40:])), data)
    texts = {row["text"] for row in zero}
    holders = [s for s in SPLITS if any(i.text in texts for i in getattr(task, s))]
    assert len(holders) == 1
    given = [row | {"split": SPLITS[n % 3]} for n, row in enumerate(ROWS)]
    with pytest.raises(UserError, match='line 2: group "0" is already in the train split, here it is in'):
        load_task(TaskConfig(name=file(*given)), data)


def test_a_task_file_can_contain_any_json_character(data, file):
    odd = {"text": "one\u2028two\x85three", "label": "even"}
    path = file("\ufeff" + json.dumps(odd, ensure_ascii=False), *ROWS)
    task = load_task(TaskConfig(name=path, train_items=500), data)
    found = {i.text for s in SPLITS for i in getattr(task, s)}
    assert odd["text"] in found


def test_training_texts_are_removed_from_the_test_split(data, file):
    same = {"text": "the same", "label": "even"}
    rows = [*ROWS, same | {"split": "train"}, same | {"split": "test"}]
    task = load_task(TaskConfig(name=file(*rows), train_items=300), data)
    assert "the same" in {i.text for i in task.train}
    assert "the same" not in {i.text for i in task.test}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{broken", "line 201: not JSON"),
        ("[1]", "line 201: not a JSON object"),
        ({"text": "x"}, 'line 201: no "label"; its keys: text'),
        ({"text": "x", "label": 3}, 'line 201: "label" is not a non-empty string: 3'),
        ({"text": "x", "label": "a", "split": "tset"}, 'no split "tset"; did you mean "test"?'),
        ({"text": "x", "label": "new", "split": "test"}, 'no training item has the label "new"'),
    ],
)
def test_error_names_the_line_of_a_malformed_row(data, file, row, message):
    with pytest.raises(UserError, match=re.escape(message)):
        load_task(TaskConfig(name=file(*ROWS, row)), data)


def test_unknown_missing_or_empty_tasks_are_refused(data, file):
    with pytest.raises(UserError, match='did you mean "tune-key"'):
        load_task(TaskConfig(name="tune-keys"), data)
    with pytest.raises(UserError, match="No such file"):
        load_task(TaskConfig(name="missing.jsonl"), data)
    with pytest.raises(UserError, match="the validation split is empty; add lines"):
        load_task(TaskConfig(name=file(ROWS[0] | {"split": "train"})), data)
    with pytest.raises(UserError, match="train split of the corpus has no tune with a key"):
        load_task(TaskConfig(), data)
