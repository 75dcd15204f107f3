"""Batches: as a command that is killed, and through the official client beside real-time requests."""

import json
import random
import time

import httpx
import openai
import pytest


def line(number, url="/v1/completions", **body):
    body = {"model": "words", "prompt": f"the {number}", "max_tokens": 2, "temperature": 0} | body
    return json.dumps({"custom_id": f"n{number}", "method": "POST", "url": url, "body": body})


def rows(path):
    return [json.loads(row) for row in path.read_text().splitlines()]


@pytest.mark.slow
def test_10_000_lines_and_five_kills_answer_each_once(trained_run, command, tmp_path):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(line(number, max_tokens=1) + "\n" for number in range(10_000)))
    args = ("serve.batch", source, target, "--model", trained_run, "--rows", "16")
    chance = random.Random(0)
    for kill in range(5):
        running = command.start(*args)
        wanted = (kill + 1) * 1500 + chance.randrange(500)
        while not target.exists() or target.read_bytes().count(b"\n") < wanted:
            assert running.poll() is None, running.stderr.read()
            time.sleep(0.05)
        running.kill()
        running.communicate()
    done = command(*args, timeout=600)
    assert done.returncode == 0, done.stderr
    found = rows(target)
    assert sorted(row["custom_id"] for row in found) == sorted(f"n{number}" for number in range(10_000))
    assert "10,000 answers" in done.stdout
    again = target.read_bytes()
    assert command(*args, timeout=600).returncode == 0
    assert target.read_bytes() == again


def test_bad_lines_go_to_the_error_file_and_stop_nothing(trained_run, command, tmp_path):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    bad = [
        "{",
        "[1]",
        '{"custom_id": "x"}',
        line(1, "/v1/images"),
        line(2, model="gpt-4"),
        line(3, tools=[]),
        line(4, max_tokens=-1),
        line(5, prompt="the " * 3000),
        line(6, stream=True),
        line(0),  # its custom_id occurs before
    ]
    embedding = json.dumps({"custom_id": "e", "method": "POST", "url": "/v1/embeddings", "body": {"input": "the"}})
    source.write_text("\n".join([line(0), *bad, "", line(7), embedding]))
    args = ("serve.batch", source, target, "--model", trained_run)
    for _ in range(2):  # the second call has nothing to do
        done = command(*args)
        assert done.returncode == 0, done.stderr
        assert "3 answers" in done.stdout
        assert "10 errors" in done.stdout
        assert {row["custom_id"] for row in rows(target)} == {"n0", "n7", "e"}
        errors = rows(tmp_path / "out.errors.jsonl")
        assert {row["line"] for row in errors} == set(range(2, 12))
        assert all(row["error"]["message"] for row in errors)
    refused = command("serve.batch", source, source, "--model", trained_run)
    assert refused.returncode == 2
    assert "is the file of requests" in refused.stderr


def test_the_clients_batch_calls_work_beside_real_time_requests(served, tmp_path):
    client = openai.OpenAI(base_url=served.url, api_key="none")
    source = tmp_path / "in.jsonl"
    source.write_text("".join(line(number, max_tokens=40) + "\n" for number in range(30)) + "nonsense\n")
    uploaded = client.files.create(file=source.open("rb"), purpose="batch")
    assert uploaded.bytes == source.stat().st_size
    assert client.files.content(uploaded.id).text == source.read_text()
    assert uploaded.id in [each.id for each in client.files.list()]
    options = {"endpoint": "/v1/completions", "completion_window": "24h"}
    batch = client.batches.create(input_file_id=uploaded.id, metadata={"a": "b"}, **options)
    started = time.monotonic()
    client.completions.create(model="words", prompt="now", max_tokens=3)
    waited = time.monotonic() - started
    while (batch := client.batches.retrieve(batch.id)).status not in ("completed", "failed"):
        assert time.monotonic() - started < 60
        time.sleep(0.05)
    assert waited < 5
    assert batch.status == "completed"
    assert batch.metadata == {"a": "b"}
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (31, 30, 1)
    answers = [json.loads(row) for row in client.files.content(batch.output_file_id).text.splitlines()]
    assert {row["custom_id"] for row in answers} == {f"n{number}" for number in range(30)}
    alone = client.completions.create(model="words", prompt="the 7", max_tokens=40, temperature=0)
    (seventh,) = (row for row in answers if row["custom_id"] == "n7")
    assert seventh["response"]["body"]["choices"][0]["text"] == alone.choices[0].text
    assert "not JSON" in client.files.content(batch.error_file_id).text
    assert batch.id in [each.id for each in client.batches.list()]
    with pytest.raises(openai.BadRequestError, match="is completed"):
        client.batches.cancel(batch.id)
    with pytest.raises(openai.NotFoundError):
        client.batches.create(input_file_id="file-none", **options)
    with pytest.raises(openai.BadRequestError, match='purpose "fine-tune" is not supported'):
        client.files.create(file=b"x", purpose="fine-tune")
    assert httpx.get(served.url + "/files/..%2F..%2Fetc%2Fpasswd").status_code == 404
    client.files.delete(uploaded.id)
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(uploaded.id)


def test_a_batch_continues_after_a_restart_and_can_be_cancelled(trained_run, start_server, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text("".join(line(number, max_tokens=60) + "\n" for number in range(300)))
    args = (trained_run, "--rows", "2")
    server = start_server(*args, files=tmp_path / "files")
    client = openai.OpenAI(base_url=server.url, api_key="none")
    uploaded = client.files.create(file=source.open("rb"), purpose="batch")
    options = {"endpoint": "/v1/completions", "completion_window": "24h"}
    batch = client.batches.create(input_file_id=uploaded.id, **options)
    while client.batches.retrieve(batch.id).request_counts.completed < 20:
        time.sleep(0.02)
    server.process.kill()
    server.process.wait()
    server = start_server(*args, files=tmp_path / "files")
    try:
        client = openai.OpenAI(base_url=server.url, api_key="none")
        second = client.batches.create(input_file_id=uploaded.id, **options)
        assert client.batches.cancel(second.id).status == "cancelling"
        end = time.monotonic() + 120
        while client.batches.retrieve(second.id).status != "cancelled":
            assert time.monotonic() < end
            time.sleep(0.1)
        batch = client.batches.retrieve(batch.id)
        assert batch.status == "completed"
        found = [json.loads(row)["custom_id"] for row in client.files.content(batch.output_file_id).text.splitlines()]
        assert sorted(found) == sorted(f"n{number}" for number in range(300))
    finally:
        server.stop()
