"""The notebooks run, and training in a notebook: progress in one place, the stop button, the loss curve of the result."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import lora_c
from lora_c.display.loss_curve import loss_curve_svg
from lora_c.display.notebook_progress import MARK, NotebookProgress, in_notebook
from lora_c.training.train_result import TrainResult

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))
MOST_BYTES = 200_000  # of a page and of a notebook, with all pictures
PICTURES = {"01_first_steps": 1, "02_lora_and_qlora": 3, "03_fine_tune_and_export": 2}

# In a process of its own: the client's event loop and sockets stay out of this one. It ends at the limit of the test.
EXECUTE = """
import sys, nbformat
from pathlib import Path
from nbclient import NotebookClient
from nbconvert import HTMLExporter
book = nbformat.read(sys.argv[1], 4)
NotebookClient(book, timeout=None, kernel_name="python3", resources={"metadata": {"path": sys.argv[2]}}).execute()
nbformat.write(book, Path(sys.argv[2]) / "executed.ipynb")
for template in ("lab", "basic"):  # as people see it, and without the styles of an empty page
    page, _ = HTMLExporter(template_name=template).from_notebook_node(book)
    (Path(sys.argv[2]) / f"{template}.html").write_text(page, encoding="utf-8")
"""

KERNEL = """
import json, queue, sys, time
from jupyter_client.manager import start_new_kernel

def execute(code, interrupt=False):
    sent = client.execute(code)
    shown, updates, text, html, error, deadline = 0, 0, "", "", None, time.monotonic() + 100
    while time.monotonic() < deadline:
        message = client.get_iopub_msg(timeout=100)
        if message["parent_header"].get("msg_id") != sent:
            continue
        kind, content = message["msg_type"], message["content"]
        shown += kind in ("display_data", "execute_result")
        text += content.get("text", "") if kind == "stream" else ""
        error = content if kind == "error" else error
        updates += kind == "update_display_data"
        html = content.get("data", {}).get("text/html", html)
        if interrupt and updates >= 2:
            interrupt = manager.interrupt_kernel()
        if kind == "status" and content["execution_state"] == "idle":
            break
    error = error and [error["ename"], error["evalue"]]
    return {"shown": shown, "updates": updates, "text": text, "html": html, "error": error}

manager, client = start_new_kernel(kernel_name="python3")

def ask(replies):
    client.stop_channels()
    manager.shutdown_kernel(now=True)
    return replies
"""

STOP = """
first = execute(sys.argv[1])
stopped = execute("trainer.train()", interrupt=True)
after = execute("print(trainer.result.interrupted, trainer.result.steps, trainer.history[-1]['step'])")
print(json.dumps(ask([first, stopped, after])))
"""


def run(code: str, *arguments: str) -> str:
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    nbconvert = pytest.importorskip("nbconvert")
    paths = [str(Path(lora_c.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "JUPYTER_PLATFORM_DIRS": "1"}
    environment["JUPYTER_PATH"] = str(Path(nbconvert.__file__).parents[4] / "share/jupyter")
    command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs_and_shows_what_it_should(path: Path, tmp_path: Path) -> None:
    run(EXECUTE, str(path), str(tmp_path))
    cells = json.loads((tmp_path / "executed.ipynb").read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells if cell["cell_type"] == "code" for output in cell["outputs"]]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    pictures = [value for output in outputs for value in pictures_of(output.get("data", {}))]
    assert len(pictures) == PICTURES[path.stem]
    shown = [html for output in outputs if MARK in (html := "".join(output.get("data", {}).get("text/html", "")))]
    trains = "trainer.train()" in "".join(line for cell in cells for line in cell["source"])
    assert len(shown) == trains  # one output, which was replaced
    assert not trains or re.search(r"(\d+) / \1 steps", shown[0])
    assert (tmp_path / "executed.ipynb").stat().st_size < MOST_BYTES
    assert (tmp_path / "basic.html").stat().st_size < MOST_BYTES
    page = (tmp_path / "lab.html").read_text(encoding="utf-8")
    assert page.count(f'class="{MARK}"') == trains
    drawn = re.findall(r'<svg [^>]*aria-label="loss over the steps"|src="data:image/png;base64', page)
    assert len(drawn) == PICTURES[path.stem]
    assert "Traceback" not in page and "ipywidgets" not in page


def pictures_of(data: dict[str, Any]) -> list[str]:
    html = "".join(data.get("text/html", ""))
    return re.findall(r"<svg xmlns.*</svg>", html, re.DOTALL) + ([data["image/png"]] if "image/png" in data else [])


def test_there_are_three_notebooks_without_outputs() -> None:
    assert {path.stem for path in NOTEBOOKS} == set(PICTURES)
    for path in NOTEBOOKS:
        assert path.stat().st_size < 30_000
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            assert cell["metadata"] == {}
            assert cell["cell_type"] == "markdown" or (cell["outputs"], cell["execution_count"]) == ([], None)


def test_only_a_cell_of_a_notebook_counts_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}
    for name, shell in {"a terminal": object(), "a notebook": SimpleNamespace(kernel=object()), "a library": None}.items():
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda shell=shell: shell))
        seen[name] = in_notebook()
    monkeypatch.delitem(sys.modules, "IPython")
    assert seen == {"a terminal": False, "a notebook": True, "a library": False} and not in_notebook()


def test_a_page_that_is_gone_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("IPython")
    called: list[Any] = []

    def gone(*args: Any, **options: Any) -> None:
        called.append(args)
        raise RuntimeError("the page is gone")

    monkeypatch.setattr("IPython.display.display", gone)
    progress = NotebookProgress(3, 0)
    progress.step({"step": 3, "loss": 2.0, "tokens_per_second": 1.0})
    progress.message("stopping")
    progress.end()
    assert len(called) >= 3


def test_a_bar_of_loading_comes_where_it_takes_long_and_needs_no_widgets(tmp_path: Path) -> None:
    code = """
import time, lora_c
from lora_c.display.notebook_progress import tracked_in_notebook
lora_c.load_model("demo", progress=True)
assert list(tracked_in_notebook(range(3), "quick")) == [0, 1, 2]
for _ in tracked_in_notebook(range(300), "slow", patience=0.2):
    time.sleep(0.003)
"""
    (first,) = json.loads(run(KERNEL + "print(json.dumps(ask([execute(sys.argv[1])])))", code))
    assert first["error"] is None and first["text"] == "", first
    assert first["shown"] == 1 and 1 <= first["updates"] < 60
    assert "slow · 300 / 300" in first["html"]


def test_the_stop_button_saves_and_raises_keyboard_interrupt(tiny_model_dir: Path, tmp_path: Path) -> None:
    code = f"""
import numpy as np
from lora_c import Trainer, TrainConfig, load_model
from lora_c.data import Dataset, Sample
model = load_model({str(tiny_model_dir)!r})
model.add_adapter(r=2)
data = Dataset([Sample(np.arange(3, 15, dtype=np.int32), np.ones(12, np.float32))])
trainer = Trainer(model, data, TrainConfig(output_dir={str(tmp_path / "out")!r}, max_steps=1_000_000, save_steps=0))
"""
    first, stopped, after = json.loads(run(KERNEL + STOP, code))
    assert first["error"] is None, first
    name, text = stopped["error"]
    assert name in ("KeyboardInterrupt", "Stopped") and re.match(r"stopped after step \d+, which is saved in", text)
    assert (
        "stopping after this step" in stopped["html"]
        and f"stopped at step {after['text'].split()[1]}; saving" in stopped["html"]
    )
    assert stopped["shown"] == 1 and stopped["updates"] >= 2 and "step" not in stopped["text"]
    _, steps, last = after["text"].split()
    assert after["text"].startswith("True") and steps == last
    assert (tmp_path / f"out/checkpoint-{steps}/trainer_state.json").is_file()


# --- the curve ------------------------------------------------------------------------------------------------------------


def history(n: int, every: int = 0) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for step in range(1, n + 1):
        records.append({"step": step, "loss": 3 * math.exp(-step / n) + (9 if step == 1 else 0)})
        if every and step % every == 0:
            records.append({"step": step, "eval_loss": 2.0})
    return records


@pytest.mark.parametrize(("n", "every"), [(1, 0), (1, 1), (2, 0), (30, 10), (100_000, 1000)])
def test_the_curve_is_a_small_picture_of_any_history(n: int, every: int) -> None:
    svg = loss_curve_svg(history(n, every))
    root = ElementTree.fromstring(svg)
    lines = root.findall(".//{*}polyline")
    assert len(lines) == 1 + bool(every) and len(svg) < 60_000
    for line in lines:
        values = [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]
        assert all(0 <= x <= 560 and math.isfinite(y) for x, y in values)
    assert (">held out<" in svg) == bool(every)


def test_a_history_without_numbers_has_no_curve() -> None:
    for records in ([], [{"step": 1, "loss": math.nan}], [{"step": 0, "eval_loss": 1.0}]):
        assert loss_curve_svg(records) == ""
    assert "<svg" in loss_curve_svg([{"step": 1, "loss": 2.0}, {"step": 2, "loss": math.inf}, {"step": 3, "loss": 2.0}])


def test_the_first_fall_does_not_flatten_the_rest() -> None:
    svg = loss_curve_svg(history(200))
    labels = [float(tick) for tick in re.findall(r'text-anchor="end"[^>]*>([\d.]+)<', svg)]
    assert max(labels) <= 3.5


def test_a_result_shows_its_numbers_and_its_curve() -> None:
    result = TrainResult.of(
        history(40, 10), steps=40, tokens_per_second=12.0, elapsed_seconds=3.0, peak_memory_bytes=2**21, interrupted=True,
        unsaved=["step 3: <full>"],
    )  # fmt: skip
    html = result._repr_html_()
    for part in ("40 (interrupted)", "2.0000", "2.0 MiB", "step 3: &lt;full&gt;", "<svg"):
        assert part in html
    assert len(html) < 20_000 and "history" not in repr(result)
