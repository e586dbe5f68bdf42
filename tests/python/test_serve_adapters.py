"""Adapters of a server: read, replaced on disk, unloaded, sent away for others, while requests use them."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai")
pytest.importorskip("uvicorn")

from serving import HELLO, Server, serving, write_adapter  # noqa: E402

import lora_c as lc  # noqa: E402
from lora_c.demo.run import BASE_MODEL  # noqa: E402
from lora_c.serve import adapter_files  # noqa: E402
from lora_c.serve import adapters as adapters_module  # noqa: E402
from lora_c.serve.adapters import Adapters  # noqa: E402
from lora_c.serve.engine import Engine, result_of  # noqa: E402
from lora_c.serve.metrics import Metrics  # noqa: E402
from lora_c.serve.problems import ApiProblem  # noqa: E402

NAMES = ("a", "b", "c")
TRICKS = (
    "../outside",
    "/etc",
    "x/../a",
    "a/",
    "./a",
    ".",
    "..",
    "",
    "a\0",
    "a\0/../b",
    ".hidden",
    "A" * 5000,
    "%2e%2e/outside",
    "..\\outside",
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    for seed, name in enumerate(NAMES):
        write_adapter(folder / name, seed)
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return shutil.copytree(written, tmp_path / "adapters")


@pytest.fixture(scope="module")
def model() -> lc.Model:
    return lc.load_model(BASE_MODEL, progress=False)


@pytest.fixture(scope="module")
def one_takes(model: lc.Model, written: Path) -> int:
    adapter, _ = adapter_files.read_from(written / "a", model, 1 << 30)
    return sum(p.data.nbytes for p in adapter.parameters())


def with_engine(
    model: lc.Model, folder: Path, work: Callable[[Adapters, Engine], Awaitable[Any]], memory: int = 1 << 30
) -> Any:
    """Let something use the adapters of a folder; at the end none may be left on the model that was unloaded."""
    engine = Engine(model, 2, 4, None, 64, Metrics())
    engine.start()
    try:
        return asyncio.run(work(Adapters(engine, "base", folder, memory), engine))
    finally:
        engine.stop()
        for name in list(model.adapter_names):
            model.adapter_set.remove(name)


def on_model(model: lc.Model) -> list[str]:
    return [name.partition("#")[0] for name in model.adapter_names]


async def done(engine: Engine) -> None:
    """What was asked of the engine's thread so far has happened."""
    await result_of(engine.between_steps(lambda: None))


def test_the_least_recently_used_leaves_for_another(model: lc.Model, folder: Path, one_takes: int) -> None:
    async def work(adapters: Adapters, engine: Engine) -> None:
        for name in ("a", "b", "a", "c"):
            async with adapters.used(name):
                pass
        await done(engine)
        assert on_model(model) == ["a", "c"] and adapters.memory.bytes == 2 * one_takes
        assert adapters.names() == ["base", "a", "b", "c"]
        async with adapters.used("a"), adapters.used("c"):
            with pytest.raises(ApiProblem) as caught:
                async with adapters.used("b"):
                    pass
            assert caught.value.status == 429 and int(caught.value.headers["Retry-After"]) >= 1
            async with adapters.used("base") as key:
                assert key is None
        async with adapters.used("b"):
            await done(engine)
            assert on_model(model) == ["c", "b"]

    with_engine(model, folder, work, int(2.5 * one_takes))


def test_one_that_is_larger_than_the_memory_is_refused_for_good(model: lc.Model, folder: Path, one_takes: int) -> None:
    async def work(adapters: Adapters, engine: Engine) -> None:
        with pytest.raises(ApiProblem, match="adapter-memory") as caught:
            async with adapters.used("a"):
                pass
        assert caught.value.status == 400 and adapters.memory.bytes == 0

    with_engine(model, folder, work, one_takes // 2)
    import ml_dtypes
    import numpy as np
    from safetensors.numpy import load_file, save_file

    file = folder / "a" / "adapter_model.safetensors"
    save_file({name: np.asarray(value, ml_dtypes.bfloat16) for name, value in load_file(file).items()}, file)
    assert file.stat().st_size < 0.7 * one_takes
    with_engine(model, folder, work, int(0.8 * one_takes))  # its file is within it, what it takes is not


def read_after(event: threading.Event, *given: Any) -> Any:
    """An adapter's file, not before somebody says so."""
    assert event.wait(10)
    return adapter_files.read_from(*given)


@pytest.mark.parametrize("moment", ["reading", "adding"])
def test_a_client_that_leaves_meanwhile_leaves_an_adapter_that_is_whole(
    model: lc.Model, folder: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on = threading.Event()

    async def work(adapters: Adapters, engine: Engine) -> None:
        async def use() -> None:
            async with adapters.used("a"):
                pytest.fail("it has left")

        if moment == "reading":
            monkeypatch.setattr(adapters_module, "read_from", partial(read_after, goes_on))
        else:
            engine.between_steps(lambda: goes_on.wait(10))
        task = asyncio.create_task(use())
        await asyncio.sleep(0.6)  # to the moment
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        goes_on.set()
        async with adapters.used("a") as key:
            await done(engine)
            assert model.adapter_names == [key]
        adapters.unload("a")
        await done(engine)
        assert model.adapter_names == [] and adapters.memory.bytes == 0

    with_engine(model, folder, work)


def test_what_is_unloaded_while_it_is_read_leaves_with_its_users(
    model: lc.Model, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on = threading.Event()

    async def work(adapters: Adapters, engine: Engine) -> None:
        monkeypatch.setattr(adapters_module, "read_from", partial(read_after, goes_on))

        async def use() -> None:
            async with adapters.used("a"):
                await done(engine)
                assert on_model(model) == ["a"]

        task = asyncio.create_task(use())
        await asyncio.sleep(0.1)
        adapters.unload("a")
        goes_on.set()
        await task
        await done(engine)
        assert model.adapter_names == [] and adapters.memory.bytes == 0 and adapters.names() == ["base", "b", "c"]

    with_engine(model, folder, work)


def test_a_name_that_is_given_twice_at_once_has_one_adapter(model: lc.Model, folder: Path) -> None:
    async def work(adapters: Adapters, engine: Engine) -> None:
        await asyncio.gather(adapters.load("x", "a"), adapters.load("x", "b"), adapters.load("x", "a"))
        await done(engine)
        assert on_model(model) == ["x"] and adapters.names() == ["base", "a", "b", "c", "x"]
        adapters.unload("x")
        await done(engine)
        assert model.adapter_names == [] and adapters.memory.bytes == 0

    with_engine(model, folder, work)


def test_a_folder_that_is_gone_is_served_as_long_as_it_is_in_memory(model: lc.Model, folder: Path, one_takes: int) -> None:
    async def work(adapters: Adapters, engine: Engine) -> None:
        async with adapters.used("a"):
            pass
        shutil.rmtree(folder / "a")
        async with adapters.used("a"):
            assert "a" in adapters.names()
        async with adapters.used("b"):
            assert adapters.names() == ["base", "b", "c"]
        with pytest.raises(ApiProblem) as caught:
            async with adapters.used("a"):
                pass
        assert caught.value.status == 404

    with_engine(model, folder, work, int(1.5 * one_takes))


def test_a_version_that_cannot_be_read_is_tried_once(
    model: lc.Model, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried, read = [], adapter_files.read_from

    def reading(*given: Any) -> Any:
        tried.append(given[0].name)
        return read(*given)

    async def work(adapters: Adapters, engine: Engine) -> None:
        monkeypatch.setattr(adapters_module, "read_from", reading)
        file = folder / "a" / "adapter_model.safetensors"
        whole = file.read_bytes()
        keys = set()
        async with adapters.used("a") as key:
            keys.add(key)
        file.write_bytes(whole[: len(whole) // 2])  # and whoever writes it takes his time
        for _ in range(3):
            async with adapters.used("a") as key:
                keys.add(key)
        assert len(keys) == 1 and tried == ["a", "a"] and "stays in use" in caplog.text
        with pytest.raises(ApiProblem) as caught:  # asked for by name, it is said
            await adapters.load("a", "a")
        assert caught.value.status == 400
        file.write_bytes(whole)
        async with adapters.used("a") as key:
            assert key not in keys

    caplog.set_level("WARNING", "lora_c.serve")
    with_engine(model, folder, work)


def test_what_the_system_refuses_is_an_error_of_the_adapter(
    model: lc.Model, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(adapter_files, "_copy_file", full)
    with pytest.raises(lc.AdapterError, match="a: expected an adapter that can be copied, got: No space left on device"):
        adapter_files.read_from(folder / "a", model, 1 << 30)


def test_one_that_is_replaced_again_and_again_is_read_whole_or_not_at_all(model: lc.Model, tmp_path: Path) -> None:
    """One version has lora_alpha 2 and its own values, the other 3 and others; by a rename, and file after file in place."""
    folder = tmp_path / "adapters"
    sources = [write_adapter(tmp_path / f"from{i}", 40 + i, lora_alpha=2 + i) for i in range(2)]
    known = {}
    for i, source in enumerate(sources):
        adapter, _ = adapter_files.read_from(source, model, 1 << 30)
        known[adapter.parameters()[0].data.tobytes()] = 2 + i
    shutil.copytree(sources[0], folder / "a")
    stop, swaps = threading.Event(), []

    def swap() -> None:
        while not stop.is_set():
            for i in (1, 0):
                if len(swaps) % 4 < 2:
                    shutil.copytree(sources[i], tmp_path / "next")
                    (folder / "a").rename(tmp_path / "gone")
                    (tmp_path / "next").rename(folder / "a")
                    shutil.rmtree(tmp_path / "gone")
                else:
                    for file in sorted(sources[i].glob("adapter_*")):
                        shutil.copyfile(file, folder / "a" / file.name)
                        time.sleep(0.02)
                swaps.append(i)
                time.sleep(0.35)

    found: list[int] = []

    async def work(adapters: Adapters, engine: Engine) -> None:
        thread = threading.Thread(target=swap)
        thread.start()
        try:
            while len(swaps) < 9:
                try:
                    async with adapters.used("a") as key:
                        adapter = await result_of(engine.between_steps(lambda key=key: model.adapter_set[key]))  # type: ignore[misc]
                        alpha = known[adapter.parameters()[0].data.tobytes()]
                        assert adapter.config.lora_alpha == alpha
                        found.append(alpha)
                except ApiProblem as problem:
                    assert problem.status == 400 and not found  # of a first one; later the one of before stays
                await asyncio.sleep(0.02)
        finally:
            stop.set()
            thread.join()

    with_engine(model, folder, work)
    assert set(found) == {2, 3} and sum(a != b for a, b in zip(found, found[1:], strict=False)) >= 4


@pytest.mark.parametrize("trick", TRICKS)
def test_no_name_leads_out_of_the_folder(model: lc.Model, folder: Path, trick: str) -> None:
    shutil.copytree(folder / "a", folder.parent / "outside")
    shutil.copytree(folder / "a", folder / ".hidden")

    async def work(adapters: Adapters, engine: Engine) -> None:
        with pytest.raises(ApiProblem) as caught:
            async with adapters.used(trick):
                pass
        assert caught.value.status == 404 and len(str(caught.value)) < 400
        with pytest.raises(ApiProblem) as caught:
            await adapters.load("x", trick)
        assert caught.value.status == 404 and adapters.names() == ["base", "a", "b", "c"]

    with_engine(model, folder, work)


# -- over HTTP ------------------------------------------------------------------------------------------------------------


def load(server: Server, name: str, folder: str) -> int:
    return server.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": folder}).status_code


def unload(server: Server, name: str) -> int:
    return server.post("/v1/unload_lora_adapter", {"lora_name": name}).status_code


def test_load_unload_and_reload_while_serving(folder: Path) -> None:
    with serving("--adapters", folder) as server:
        said = {name: server.said(name) for name in NAMES}
        assert len(set(said.values())) == 3
        options: Any = {"messages": HELLO, "temperature": 0, "max_tokens": 400, "extra_body": {"ignore_eos": True}}
        client = server.client()
        whole = client.chat.completions.create(model="a", **options).choices[0].message.content
        stream = client.chat.completions.create(model="a", stream=True, **options)
        pieces = [next(iter(stream)).choices[0].delta.content or ""]
        assert unload(server, "a") == 200 and unload(server, "a") == 404
        body = {"model": "a", "messages": HELLO}
        assert server.post("/v1/chat/completions", body).status_code == 404
        pieces += [chunk.choices[0].delta.content or "" for chunk in stream]
        assert "".join(pieces) == whole  # as it began
        assert [m.id for m in client.models.list()] == ["base_model", "b", "c"]
        assert load(server, "a", "b") == 200 and server.said("a") == said["b"]
        assert load(server, "again", "a") == 200 and server.said("again") == said["a"]
        shutil.rmtree(folder / "b")
        shutil.copytree(folder / "c", folder / "b")
        assert server.said("b") == server.said("a") == said["c"]  # replaced on disk: the next request has the new one
        for name, path in (("x", "../adapters/a"), ("x", "nothing"), ("base_model", "a"), (" ", "a"), ("n" * 201, "a")):
            assert load(server, name, path) in (400, 404)
        base = server.post("/v1/unload_lora_adapter", {"lora_name": "base_model"})
        assert base.status_code == 404 and base.json()["error"]["param"] == "lora_name"
        assert base.json()["error"]["message"] == "lora_name: expected one of a, again, b, c, got 'base_model'"


def test_a_name_that_no_answer_can_have_is_none(folder: Path) -> None:
    """Half a surrogate pair, bytes that are no UTF-8, a line end: no list of all names could be written with one of them."""
    shutil.copytree(folder / "a", folder / os.fsdecode(b"bad\xff"))
    with serving("--adapters", folder) as server:
        for name in (r"\ud800", r"x\ny", r"\u001b[2J"):
            body = b'{"lora_name": "%s", "lora_path": "a"}' % name.encode()
            refused = server.post("/v1/load_lora_adapter", body)
            assert refused.status_code == 400 and "printable" in refused.json()["error"]["message"], refused.text
        assert [m.id for m in server.client().models.list()] == ["base_model", *NAMES]
        unknown = server.post("/v1/chat/completions", {"model": "none", "messages": HELLO})
        assert unknown.status_code == 404 and "base_model, a, b, c" in unknown.json()["error"]["message"]
        odd = server.post("/v1/unload_lora_adapter", rb'{"lora_name": "\ud800"}')
        assert odd.status_code == 404 and "ud800" in odd.json()["error"]["message"]
        assert load(server, "tales of 1001 nights", "a") == 200
        (folder / "empty").mkdir()
        missing = server.post("/v1/load_lora_adapter", {"lora_name": "x", "lora_path": "empty"})
        assert missing.status_code == 404 and "adapter_config.json" in missing.json()["error"]["message"]
        nothing = server.post("/v1/embeddings", {"model": "a", "input": ""}).json()["error"]
        assert nothing["param"] == "input" and nothing["message"].startswith("input: expected at least one token")
