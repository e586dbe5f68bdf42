"""What a server refuses: too many, too large, too slow, without a key, from elsewhere; and how it ends."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai")
pytest.importorskip("uvicorn")

import httpx  # noqa: E402
from serving import HELLO, Server, metrics_of, serving, within, write_long_model  # noqa: E402

from lora_c.serve import security  # noqa: E402

CHAT = "/v1/chat/completions"
LONG: Any = {"messages": HELLO, "temperature": 0, "max_tokens": 14_000, "ignore_eos": True}
SHORT: Any = {"messages": HELLO, "temperature": 0, "max_tokens": 2}


@pytest.fixture(scope="module")
def long_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_long_model(tmp_path_factory.mktemp("models") / "long")


@pytest.fixture(scope="module")
def small(long_model: Path) -> Iterator[Server]:
    """A server with little of everything."""
    words = "--max-seq-length 16000 --max-num-seqs 1 --max-queue 1 --max-body 4 --read-timeout 0.7 --request-timeout 2"
    with serving(*words.split(), model=long_model) as started:
        yield started


def is_idle(server: Server) -> bool:
    found = metrics_of(server)
    return found["lora_c_answers_running"] == found["lora_c_answers_waiting"] == 0


def sent(server: Server, data: bytes, seconds: float = 10.0) -> bytes:
    """What a connection answers to some bytes until it is closed, or for some seconds."""
    with closing(socket.create_connection(("127.0.0.1", server.port), seconds)) as connection:
        connection.sendall(data)
        found = b""
        while piece := connection.recv(65536):
            found += piece
        return found


def test_beyond_the_queue_is_429_and_a_client_that_leaves_makes_room(small: Server) -> None:
    assert within(5, lambda: is_idle(small))
    with (
        httpx.stream("POST", small.url + CHAT, json=LONG | {"stream": True}, timeout=30) as first,
        ThreadPoolExecutor(1) as pool,
    ):
        lines = first.iter_lines()  # which closes the answer where nobody has it
        next(lines)
        waits = pool.submit(small.post, CHAT, SHORT)
        assert within(1, lambda: metrics_of(small)["lora_c_answers_waiting"] == 1)
        refused = small.post(CHAT, SHORT)
        assert refused.status_code == 429 and int(refused.headers["Retry-After"]) >= 1
        assert refused.json()["error"]["type"] == "rate_limit_error" and not waits.done()
        first.close()
        left = time.monotonic()
        assert waits.result(5).status_code == 200 and time.monotonic() - left < 1
    assert small.post(CHAT, SHORT).status_code == 200


def test_more_answers_than_there_are_places_are_no_matter_of_time(small: Server) -> None:
    response = small.post(CHAT, SHORT | {"n": 3})
    assert response.status_code == 400 and response.json()["error"]["param"] == "n"


def test_bodies_have_a_limit(small: Server) -> None:
    text = json.dumps(SHORT | {"user": "x" * 5000}).encode()
    for content in (text, iter([text])):  # with a length, and in chunks
        response = httpx.post(small.url + CHAT, content=content)
        assert response.status_code == 413 and "4,096 bytes" in response.json()["error"]["message"]
    head = b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n" % CHAT.encode()
    began = time.monotonic()
    assert sent(small, head).startswith(b"HTTP/1.1 413 ") and time.monotonic() - began < 0.6  # before any of it is there


def test_heads_and_bodies_have_a_time(small: Server) -> None:
    began = time.monotonic()
    assert sent(small, b"POST /v1/chat/completions HTTP/1.1\r\nHost: loc").startswith(b"HTTP/1.1 408 ")
    assert sent(small, b"").startswith(b"HTTP/1.1 408 ")
    half = b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\n{" % CHAT.encode()
    assert sent(small, half).startswith(b"HTTP/1.1 408 ")
    assert 3 * 0.6 < time.monotonic() - began < 3 * 3


def test_answers_have_a_time(small: Server) -> None:
    response = small.post(CHAT, LONG)
    assert response.status_code == 504 and response.json()["error"]["code"] == "timeout"
    lines = [line for line in small.post(CHAT, LONG | {"stream": True}).text.splitlines() if line]
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "timeout" and len(lines) > 5
    assert within(2, lambda: is_idle(small))


def test_prompts_and_answers_have_the_tokens_that_fit(small: Server) -> None:
    ids = [5] * 16_000
    with serving("--max-seq-length", 100) as server:
        response = server.post("/v1/completions", {"prompt": ids[:100]})
        assert response.status_code == 400 and response.json()["error"]["code"] == "context_length_exceeded"
        found = server.post("/v1/completions", {"prompt": ids[:90], "max_tokens": 50, "ignore_eos": True}).json()
        assert found["usage"]["completion_tokens"] == 10 and found["choices"][0]["finish_reason"] == "length"


@pytest.mark.usefixtures("on_cpu")  # how fast it answers
def test_a_client_that_does_not_read_loses_its_place(long_model: Path) -> None:
    words = "--max-seq-length 16000 --max-num-seqs 1 --max-queue 0 --read-timeout 1"
    with serving(*words.split(), model=long_model) as server, closing(socket.socket()) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        body = json.dumps(LONG | {"stream": True, "logprobs": True, "top_logprobs": 20}).encode()
        head = b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (CHAT.encode(), len(body))
        connection.sendall(head + body)
        assert within(5, lambda: not is_idle(server))
        assert server.post(CHAT, SHORT).status_code == 429
        assert within(30, lambda: server.post(CHAT, SHORT).status_code == 200)


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_is_not_answered_on(long_model: Path, small: Server, stream: bool) -> None:
    assert within(5, lambda: is_idle(small))
    body = json.dumps(LONG | {"stream": stream}).encode()
    with closing(socket.create_connection(("127.0.0.1", small.port))) as connection:
        connection.sendall(
            b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (CHAT.encode(), len(body)) + body
        )
        assert within(5, lambda: metrics_of(small)["lora_c_answers_running"] == 1)
        left = time.monotonic()
    assert within(1, lambda: is_idle(small)) and time.monotonic() - left < 1  # long before --request-timeout


# -- who may ask ----------------------------------------------------------------------------------------------------------

KEYS = ("first-key", "second-key")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(f"# of two people\n{KEYS[0]}\n\n  {KEYS[1]}\n")
    words = ("--api-key-file", file, "--allowed-hosts", "box.example", "--cors", "https://a.example")
    with serving(*words, LORA_C_API_KEY="of-the-environment") as started:
        yield started


def models(
    server: Server, key: str | None = KEYS[0], method: str = "GET", path: str = "/v1/models", **headers: str
) -> httpx.Response:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    given |= {} if key is None else {"Authorization": f"Bearer {key}"}
    return httpx.request(method, server.url + path, headers=given, json=SHORT if method == "POST" else None)


def test_keys_of_a_file(guarded: Server) -> None:
    assert [models(guarded, key).status_code for key in KEYS] == [200, 200]
    for key in (None, "first-ke", "first-key2", "# of two people", "of-the-environment"):
        response = models(guarded, key)
        assert response.status_code == 401 and response.json()["error"]["code"] == "invalid_api_key"
        assert response.headers["WWW-Authenticate"] == "Bearer"
    assert models(guarded, None, Authorization=f"Basic {KEYS[0]}").status_code == 401
    assert [models(guarded, None, path=path).status_code for path in ("/", "/page.js", "/health", "/metrics")] == [
        200,
        200,
        200,
        401,
    ]
    assert models(guarded, None, "POST", CHAT).status_code == 401


def test_the_key_of_the_environment() -> None:
    with serving(LORA_C_API_KEY="mine") as server:
        assert [models(server, key).status_code for key in ("mine", "other", None)] == [200, 401, 401]


def test_every_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []

    def compare(known: bytes, given: bytes) -> bool:
        compared.append(known)
        return known == given

    monkeypatch.setattr(security.hmac, "compare_digest", compare)
    guard = security.Guard(None, KEYS, (), ())  # type: ignore[arg-type]
    for key in (*KEYS, "neither"):
        compared.clear()
        scope = {"type": "http", "method": "GET", "path": "/v1/models", "http_version": "1.1",
                 "headers": [(b"host", b"localhost"), (b"authorization", f"Bearer {key}".encode())]}  # fmt: skip
        passed: list[int] = []

        async def app(*given: Any, passed: list[int] = passed) -> None:
            passed.append(1)

        async def send(message: Any) -> None:
            pass

        guard._app = app
        asyncio.run(guard(scope, None, send))  # type: ignore[arg-type]
        assert compared == [name.encode() for name in KEYS] and bool(passed) == (key in KEYS)


def test_names_in_host(guarded: Server) -> None:
    for host in ("localhost", "localhost:1", "127.0.0.1:8000", "[::1]:8000", "box.example", "BOX.example:80", "192.168.7.7"):
        assert models(guarded, Host=host).status_code == 200, host
    for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "box.example.", "", "a@localhost"):
        assert models(guarded, Host=host).status_code in (400, 403), host
    for head in (b"", b"Host: localhost\r\nHost: evil.example\r\n"):
        data = b"GET /health HTTP/1.1\r\n" + head + b"Connection: close\r\n\r\n"
        assert sent(guarded, data).split(b" ")[1] in (b"400", b"403")


def test_pages_of_other_sites(guarded: Server) -> None:
    assert models(guarded, method="POST", path=CHAT, Origin=guarded.url).status_code == 200
    for origin in ("https://evil.example", "null", "https://a.example.evil.example", "http://a.example", "http://localhost:1"):
        response = models(guarded, method="POST", path=CHAT, Origin=origin)
        assert response.status_code == 403 and "access-control-allow-origin" not in response.headers
        assert "access-control-allow-origin" not in models(guarded, Origin=origin).headers  # what is read stays unread there
        asked = models(guarded, None, "OPTIONS", CHAT, Origin=origin, Access_Control_Request_Method="POST")
        assert asked.status_code == 403
    allowed = models(guarded, method="POST", path=CHAT, Origin="https://a.example")
    assert allowed.status_code == 200 and allowed.headers["access-control-allow-origin"] == "https://a.example"
    asked = models(guarded, None, "OPTIONS", CHAT, Origin="https://a.example", Access_Control_Request_Method="POST")
    assert asked.status_code == 204 and "Authorization" in asked.headers["access-control-allow-headers"]
    assert models(guarded, "wrong", Origin="https://a.example").headers["access-control-allow-origin"] == "https://a.example"


# -- the end --------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("on_cpu")  # how fast it answers
def test_sigterm_lets_answers_end_and_takes_no_more(long_model: Path) -> None:
    with serving("--max-seq-length", 16_000, model=long_model) as server:
        chunks = 0
        with httpx.stream("POST", server.url + CHAT, json=LONG | {"stream": True, "max_tokens": 3000}, timeout=60) as answer:
            lines = (line for line in answer.iter_lines() if line)
            next(lines)
            server.process.terminate()
            assert within(2, lambda: refuses(server))
            for line in lines:
                chunks, last = chunks + 1, line
        assert last == "data: [DONE]" and chunks > 2000
        assert server.process.wait(10) == 0


def refuses(server: Server) -> bool:
    try:
        return httpx.post(server.url + CHAT, json=SHORT, timeout=5).status_code == 503
    except httpx.TransportError:
        return True


@pytest.mark.usefixtures("on_cpu")  # how fast it answers
@pytest.mark.parametrize("kind", ["streamed", "whole", "not read"])
@pytest.mark.parametrize("signals", [1, 2])
def test_an_answer_that_takes_longer_than_the_drain_is_broken_off(long_model: Path, kind: str, signals: int) -> None:
    """With a word to its client, and without a traceback, which `serving` looks for."""
    drain = 1 if signals == 1 else 100
    with serving("--max-seq-length", 16_000, "--drain-timeout", drain, model=long_model) as server:
        given = {"json": LONG | {"stream": kind != "whole"}, "timeout": 60}
        with ThreadPoolExecutor(1) as pool, httpx.Client() as client:
            if kind == "not read":
                pieces = client.send(client.build_request("POST", server.url + CHAT, **given), stream=True).iter_raw()
                next(pieces)  # an iterator that nobody has would close the connection
            else:
                told = pool.submit(client.post, server.url + CHAT, **given)
            assert within(5, lambda: not is_idle(server))
            began = time.monotonic()
            for _ in range(signals):
                server.process.terminate()
                assert within(2, lambda: refuses(server))
            assert server.process.wait(20) == 0 and time.monotonic() - began < 5
            if kind == "streamed":
                assert told.result().status_code == 200
                last = json.loads(told.result().text.split("data: ")[-1])
                assert last["error"]["code"] == "server_ends" and "data: [DONE]" not in told.result().text
            elif kind == "whole":
                assert told.result().status_code == 503 and f"{drain} seconds" in told.result().json()["error"]["message"]
