"""The page of `lora-c serve`, in a real browser: choose a model, send, two side by side, stop."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sync_api = pytest.importorskip("playwright.sync_api")
pytest.importorskip("uvicorn")

from serving import Server, serving, write_adapter  # noqa: E402

NAMES = ("red", "green")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(NAMES):
        write_adapter(folder / name, seed)
    with serving("--adapters", folder, LORA_C_DEVICE="cpu") as started:  # a reader waits
        yield started


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(params=[("light", 1200, 800), ("dark", 390, 800)], ids=["light-wide", "dark-phone"])
def page(server: Server, browser: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    scheme, width, height = request.param
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": height})
    opened = context.new_page()
    faults: list[str] = []
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.goto(server.url)
    yield opened
    if folder := os.environ.get("LORA_C_SCREENSHOTS"):
        opened.screenshot(path=Path(folder) / f"{request.node.name}.png")
    assert not faults
    context.close()


def choose(page: Any, side: int, name: str) -> None:
    page.get_by_role("combobox", name="Model", include_hidden=True).nth(side).select_option(name)


def send(page: Any, text: str, most_tokens: int = 12, temperature: float = 0) -> None:
    for name, value in (("max-tokens", most_tokens), ("temperature", temperature)):
        page.evaluate("([name, value]) => { document.getElementById(name).value = value; }", [name, value])
    page.get_by_label("Message").fill(text)
    page.get_by_label("Message").press("Enter")


def done(page: Any) -> None:
    sync_api.expect(page.get_by_role("button", name="Send")).to_be_enabled(timeout=60_000)


def answers(page: Any, side: int = 0) -> list[str]:
    return page.locator(".talk").nth(side).locator(".assistant").all_text_contents()


def test_an_adapter_is_chosen_and_answers(page: Any, server: Server) -> None:
    choose(page, 0, "green")
    send(page, "Hello, who are you?")
    done(page)
    assert answers(page) == [server.said("green")]
    assert page.locator(".speed").first.text_content().endswith("tokens/s")


def test_two_side_by_side_get_the_same_message(page: Any, server: Server) -> None:
    page.get_by_label("Two side by side").check()
    for side, name in enumerate(NAMES):
        choose(page, side, name)
    send(page, "Hello, who are you?")
    done(page)
    assert [answers(page, side) for side in range(2)] == [[server.said(name)] for name in NAMES]
    wide = page.evaluate("innerWidth") > 768
    boxes = [page.locator(".side").nth(side).bounding_box() for side in range(2)]
    assert (boxes[0]["y"] == boxes[1]["y"]) == wide
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_conversation_goes_on_and_stops(page: Any, server: Server) -> None:
    choose(page, 0, "red")
    send(page, "Hello, who are you?")
    done(page)
    slow = {"offline": False, "latency": 0, "downloadThroughput": 1000, "uploadThroughput": -1}
    page.context.new_cdp_session(page).send("Network.emulateNetworkConditions", slow)
    send(page, "Tell a long story.", 3000)
    sync_api.expect(page.locator(".talk .assistant").nth(1)).not_to_be_empty(timeout=60_000)
    page.keyboard.press("Escape")
    sync_api.expect(page.get_by_text("stopped")).to_be_visible()
    done(page)
    assert len(answers(page)) == 2
    page.get_by_role("button", name="Clear").click()
    assert answers(page) == []


def test_an_error_is_said(page: Any) -> None:
    send(page, "Hello", temperature=-1)
    done(page)
    assert "temperature" in page.locator(".talk .wrong").text_content()


def test_every_control_has_a_name_and_is_reached_by_keys(page: Any) -> None:
    page.get_by_text("Settings").click()
    unnamed = page.evaluate(
        "[...document.querySelectorAll('input, select, textarea, button')]"
        ".filter(e => !(e.labels?.length || e.textContent.trim())).map(e => e.outerHTML)"
    )
    assert unnamed == []
    reached = set()
    page.locator("body").press("Tab")
    for _ in range(14):
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.className"))
        page.keyboard.press("Tab")
    assert {"temperature", "max-tokens", "seed", "key", "system", "model", "text", "two", "send"} <= reached
