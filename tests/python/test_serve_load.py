"""A server under load: many clients and adapters, mutated requests, clients that send slowly.

Each in a form of seconds; `make check-serve` runs the long ones: LORA_C_SERVE_SECONDS of load, LORA_C_SERVE_REQUESTS requests.
"""

from __future__ import annotations

import os
import random
import shutil
import socket
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai")
pytest.importorskip("uvicorn")

from mutated_requests import mutated  # noqa: E402
from serving import Server, metrics_of, serving, within, write_adapter  # noqa: E402
from serving_load import CASES, Load, Versions, open_files, resident_bytes  # noqa: E402

import lora_c as lc  # noqa: E402
from lora_c.demo.run import BASE_MODEL  # noqa: E402

SECONDS = float(os.environ.get("LORA_C_SERVE_SECONDS") or 6)
REQUESTS = int(os.environ.get("LORA_C_SERVE_REQUESTS") or 400)
IS_LONG = SECONDS >= 60  # long enough to see whether memory grows
N_ADAPTERS = 16
READ_TIMEOUT = 1.0


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    folder = tmp_path_factory.mktemp("sources")
    ranks = [4] * 12 + [8] * 4
    return {
        f"a{i}": [write_adapter(folder / f"a{i}-{version}", 2 * i + version, r=rank) for version in range(2)]
        for i, rank in enumerate(ranks)
    }


def answers_alone(sources: dict[str, list[Path]]) -> Any:
    """What a version of an adapter says in a batch without anybody else, as a function of its name, version and case."""
    model = lc.load_model(BASE_MODEL, progress=False)
    for name, folders in sources.items():
        for version, folder in enumerate(folders):
            model.load_adapter(folder, f"{name}-{version}")

    @cache
    def alone(name: str, version: int, case: int) -> list[str]:
        given = dict(CASES[case])
        n, prompt, most = given.pop("n", 1), given.pop("messages"), given.pop("max_tokens")
        found = []
        for i in range(n):
            batch = lc.Batch(model, 1, prompt_block=128)
            found.append(batch.add(prompt, adapter=f"{name}-{version}", repetition=i, max_new_tokens=most, **given))
            batch.run()
        return [answer.text for answer in found]

    return alone


def copies_of_adapters() -> int:
    return len(list(Path(tempfile.gettempdir()).glob("lora-c-adapter-*")))


@pytest.mark.usefixtures("on_cpu")  # how much it answers
def test_many_clients_and_adapters_while_adapters_are_replaced(sources: dict[str, list[Path]], tmp_path: Path) -> None:
    versions, copies = Versions(tmp_path / "adapters", sources), copies_of_adapters()
    words = "--max-seq-length 512 --max-queue 32 --adapter-memory 3".split()  # too little for all adapters
    with serving("--adapters", versions.folder, *words) as server:
        server.said("a0")
        files = open_files(server)
        load = Load(server, versions, SECONDS)
        load.run()
        assert within(
            5, lambda: metrics_of(server)["lora_c_answers_running"] == metrics_of(server)["lora_c_answers_waiting"] == 0
        )
        assert within(5, lambda: open_files(server) <= files + 2), open_files(server)
        assert copies_of_adapters() <= copies
        counts = metrics_of(server)
    assert set(load.statuses) <= {200, 429, 0}, load.statuses
    assert {200, 0} <= set(load.statuses) and counts["lora_c_adapter_evictions_total"] > 0
    assert len(load.said) > 20 * SECONDS and versions.n > N_ADAPTERS + SECONDS
    alone = answers_alone(sources)
    wrong = [s for s in load.said if s.texts not in [alone(s.name, v, s.case) for v in s.versions]]
    assert not wrong, (len(wrong), len(load.said), wrong[:3])
    changed = {(s.name, tuple(s.versions)) for s in load.said if len(s.versions) == 1}
    assert len(changed) > N_ADAPTERS  # some were asked in both versions
    counted = [
        f"{counts[f'lora_c_{name}_total']:g} {name}" for name in ("adapter_loads", "adapter_evictions", "generation_tokens")
    ]
    memory = [n_bytes >> 20 for n_bytes in load.memory[:: max(1, len(load.memory) // 12)]]
    print(f"{SECONDS:g} s: {load.statuses}, {versions.n - N_ADAPTERS} replaced, {', '.join(counted)}, MiB {memory}")
    if IS_LONG:
        quarter = len(load.memory) // 4
        early, late = (statistics.median(part) for part in (load.memory[quarter : 2 * quarter], load.memory[-quarter:]))
        assert late <= 1.02 * early, (early, late)


# -- hostile clients ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(sources: dict[str, list[Path]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("adapters")
    for name, source in (("a", "a0"), ("b", "a1")):
        shutil.copytree(sources[source][0], folder / name)
    words = f"--max-seq-length 128 --read-timeout {READ_TIMEOUT} --max-body 64 --max-connections 100"
    with serving("--adapters", folder, *words.split()) as started:
        yield started


def told(server: Server, request: bytes, ends: bool) -> bytes:
    """What the server says to some bytes; whether the client says that nothing more comes, for which it may get no answer."""
    with closing(socket.create_connection(("127.0.0.1", server.port), 20)) as connection:
        found = b""
        try:
            connection.sendall(request)
            if ends:
                connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(65536):
                found += piece
                connection.settimeout(0.3)  # kept alive, where that is what the request came to say
        except (BrokenPipeError, ConnectionResetError):
            pass  # it does not read all of what it refuses
        except TimeoutError:
            assert found, request[:500]
        return found


def test_mutated_requests_are_answered_or_refused(server: Server) -> None:
    expected = server.said()  # of the base: a request may unload adapters

    def check(seed: int) -> int:
        request = mutated(random.Random(seed))
        found = told(server, request, ends=seed % 5 == 0)
        assert not found or (found.startswith(b"HTTP/1.1 ") and found[9:12].isdigit()), (seed, found[:200])
        status = int(found[9:12]) if found else 0
        assert status == 0 or 200 <= status < 500, (seed, status, request[:300], found[-300:])
        return status

    statuses: dict[int, int] = {}
    with ThreadPoolExecutor(16) as pool:
        for begin in range(0, REQUESTS, 100):
            for status in pool.map(check, range(begin, min(begin + 100, REQUESTS))):
                statuses[status] = statuses.get(status, 0) + 1
            began = time.monotonic()
            assert server.said() == expected and time.monotonic() - began < 2
    assert statuses[400] > 0.2 * REQUESTS and statuses[200] > 0.1 * REQUESTS and statuses[0] < 0.25 * REQUESTS, statuses
    print(f"{REQUESTS} mutated requests: {dict(sorted(statuses.items()))}")


def test_connections_that_send_a_byte_at_a_time_hold_nobody_up(server: Server) -> None:
    expected, files, n = server.said(), open_files(server), 90
    body = b'{"messages": [{"role": "user", "content": "Hello, who are you?"}], "max_tokens": 5}' + b" " * 400
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n" % len(body)
    with ExitStack() as stack:
        slow = [stack.enter_context(closing(socket.create_connection(("127.0.0.1", server.port), 20))) for _ in range(n)]
        left = {connection: (head if i % 2 else head + b"\r\n" + body) for i, connection in enumerate(slow)}
        for i, connection in enumerate(slow):
            if not i % 2:  # the head at once, the body slowly
                connection.sendall(head + b"\r\n")
                left[connection] = body
        began, ended, longest = time.monotonic(), {}, 0.0
        while len(ended) < n and time.monotonic() - began < 20:
            for connection in [c for c in slow if c not in ended]:
                try:
                    connection.send(left[connection][:1])
                    left[connection] = left[connection][1:] or b" "
                    connection.setblocking(False)
                    ended[connection] = connection.recv(100)
                except BlockingIOError:
                    continue
                except (BrokenPipeError, ConnectionResetError):
                    ended[connection] = b""
                finally:
                    connection.setblocking(True)
            asked = time.monotonic()
            assert server.said() == expected
            longest = max(longest, time.monotonic() - asked)
            time.sleep(0.05)
        assert len(ended) == n and longest < 2 and time.monotonic() - began < READ_TIMEOUT + 3
        assert sum(answer.startswith(b"HTTP/1.1 408") for answer in ended.values()) > 0.9 * n
    assert within(5, lambda: open_files(server) <= files + 2)
    assert resident_bytes(server) < 1 << 30
