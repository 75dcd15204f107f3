import re

from configs.schema import DataConfig, TaskConfig
from data.prepare import documents, prepare
from data.tasks import load_task


def test_tune_key_items_hide_the_label_and_follow_the_split(cache):
    folder = prepare(DataConfig(cache_dir=str(cache)))
    task = load_task(TaskConfig(train_items=5000), folder)
    assert len(task.labels) == 10
    assert len(task.train) > 2500
    for split in ("train", "validation", "test"):
        ids = {d["id"]: d["text"] for d in documents(folder, split)}
        for item in getattr(task, split):
            assert "K:" not in item.text
            assert item.label in task.labels
            key = re.search(r"(?m)^K:\s*([A-G][#b]?)", ids[item.id])[1]
            assert item.label.startswith(key)
