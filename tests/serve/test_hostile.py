"""Whatever is sent, the server answers or drops it, and answers the next request."""

import json
import socket

import httpx
import pytest

GOOD = {"model": "words", "prompt": "the", "max_tokens": 3}


@pytest.fixture(autouse=True)
def answers_the_next_request(served):
    yield
    assert served.post("/v1/completions", GOOD).status_code == 200
    assert served.metric("homegrown_running_texts") == 0


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 422),
        (b"{", 400),
        (b"[]", 422),
        (b"\xff\xfe\x00", 400),
        (b'{"model": "words", "prompt": "\xff"}', 400),
        (json.dumps(GOOD | {"temperature": float("nan")}).encode(), 422),
        (json.dumps(GOOD | {"temperature": float("inf")}).encode(), 422),
        (json.dumps(GOOD | {"temperature": -1}).encode(), 422),
        (json.dumps(GOOD | {"n": -1}).encode(), 422),
        (json.dumps(GOOD | {"n": True}).encode(), 422),
        (json.dumps(GOOD | {"max_tokens": 10**30}).encode(), 400),
        (json.dumps(GOOD | {"seed": 10**400}).encode(), 422),
        (json.dumps(GOOD | {"stop": ["x"] * 10_000}).encode(), 422),
        (json.dumps(GOOD | {"prompt": ["the"] * 10_000}).encode(), 422),
        (json.dumps(GOOD | {"prompt": []}).encode(), 422),
        (json.dumps(GOOD | {"prompt": "x" * 100_000}).encode(), 400),
        (json.dumps(GOOD | {"prompt": "\ud800"}).encode(), 422),
        (b"[" * 100_000, 400),
    ],
)
def test_a_bad_body_is_answered_in_openais_form(served, content, status):
    headers = {"content-type": "application/json"}
    found = httpx.post(served.url + "/completions", content=content, timeout=60, headers=headers)
    assert found.status_code == status, found.text
    assert found.json()["error"]["message"]
    assert len(found.content) < 2000


def test_a_body_of_100_megabytes_is_refused(served):
    found = httpx.post(served.url + "/completions", content=b" " * 100_000_000, timeout=60)
    assert found.status_code == 413

    def parts():
        for _ in range(100):
            yield b" " * 1_000_000

    try:  # in chunks, without a length
        found = httpx.post(served.url + "/completions", content=parts(), timeout=60)
        assert found.status_code == 413
    except httpx.WriteError:
        pass  # the server has closed the connection


def test_a_half_closed_socket_and_a_half_sent_request(served):
    # The fixture of this file asserts that the next request is answered and that no text runs on.
    with served.begin("/v1/completions", GOOD | {"max_tokens": 200}) as half:
        half.shutdown(socket.SHUT_WR)
        half.recv(100)
    for content in (b"POST /v1/completions HTTP/1.1\r\nContent-Length: 500\r\n\r\n{", b"\x00\x01\x02 nonsense\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", served.port)) as cut:
            cut.sendall(content)


def test_unknown_paths_and_methods(served):
    assert httpx.get(served.url + "/nothing").status_code == 404
    found = httpx.get(served.url + "/completions")
    assert found.status_code == 405
    assert found.json()["error"]["message"] == "GET /v1/completions: Method Not Allowed"


@pytest.mark.slow
def test_schemathesis_finds_no_server_error(served):
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings

    schema = schemathesis.openapi.from_url(served.root + "/openapi.json")
    operations = [each.ok() for each in schema.get_all_operations()]
    assert len(operations) >= 10
    cases = 0

    for operation in operations:

        @settings(max_examples=100, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
        @given(operation.as_strategy())
        def check(case):
            nonlocal cases
            cases += 1
            response = case.call(base_url=served.root, timeout=60)
            assert response.status_code < 500, response.text
            assert len(response.content) < 1 << 20

        check()
    assert cases >= 500
