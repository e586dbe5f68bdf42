"""`--precision` of every command that computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from command_lines import call, called, make_workplace

import lora_c as lc
from lora_c.cli import cli
from lora_c.cli.commands import COMMANDS
from lora_c.data import load_dataset
from lora_c.training.evaluation import evaluate_loss

PRECISIONS = ("exact", "fast", "int8")
TEXT = "There was a young goat that lived on a hill. " * 6  # more than the few tokens that int8 multiplies as fast


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workplace(tmp_path_factory.mktemp("p"))


def test_commands_that_compute_have_it() -> None:
    found = set()
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        found |= {name} if "precision" in {param.name for param in command.params} else set()
    # merge, export and quantize write weights, replay computes as its run did, demo is always the same
    assert found == {"train", "sweep", "compare", "generate", "chat", "serve", "classify", "eval", "plan", "bench"}


def test_eval(workplace: Path) -> None:
    losses = []
    for precision in PRECISIONS:
        line = f"eval --model model --data chat.jsonl --adapter run --precision {precision} --json"
        found = json.loads(called(workplace, line.split()).stdout)
        model = lc.load_model(workplace / "model", progress=False)
        model.load_adapter(workplace / "run")
        model.decoder.precision = precision  # type: ignore[assignment]
        data = load_dataset(workplace / "chat.jsonl", model.tokenizer)
        assert found["precision"] == precision and found["loss"] == evaluate_loss(model, data)
        losses.append(found["loss"])
    assert len(set(losses)) == 3 and np.ptp(losses) < 0.02 * losses[0]


def test_eval_is_exact_unless_somebody_says(workplace: Path) -> None:
    words = "eval --model model --data chat.jsonl --json".split()
    assert json.loads(called(workplace, words).stdout)["precision"] == "exact"
    done = call(workplace, words, LORA_C_PRECISION="int8")
    assert json.loads(done.stdout)["precision"] == "int8"
    done = call(workplace, [*words, "--precision", "fast"], LORA_C_PRECISION="int8")
    assert json.loads(done.stdout)["precision"] == "fast"


@pytest.mark.parametrize(("task", "default"), [("exact-match", "fast"), ("perplexity", "exact")])
def test_tasks_of_eval(workplace: Path, task: str, default: str) -> None:
    line = f"eval --model model --data chat.jsonl --task {task} --limit 2 --json"
    line += " --max-new-tokens 4" if task == "exact-match" else ""
    assert json.loads(called(workplace, line.split()).stdout)["precision"] == default
    assert json.loads(called(workplace, [*line.split(), "--precision", "int8"]).stdout)["precision"] == "int8"


def test_answers_of_a_task_are_written_in_it(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lora_c.tasks import task as tasks

    seen: list[Any] = []
    real = tasks._answers

    def answers(model: Any, prompts: Any, options: Any, progress: Any) -> Any:
        seen.append((model.decoder.precision, options.generation.precision))
        return real(model, prompts, options, progress)

    monkeypatch.setattr(tasks, "_answers", answers)
    line = "eval --model model --data chat.jsonl --task exact-match --limit 1 --max-new-tokens 2 --precision int8"
    assert called(workplace, line.split()).returncode == 0
    assert seen == [("int8", "int8")]


def test_classify(workplace: Path) -> None:
    model = lc.load_model(workplace / "c", progress=False)
    scores = []
    for precision in PRECISIONS:
        done = called(workplace, ["classify", "--model", "c", "--precision", precision, TEXT])
        model.decoder.precision = precision  # type: ignore[assignment]
        expected = model.classify([{"text": TEXT}])[0].as_dict()
        found = json.loads(done.stdout)
        assert found["scores"] == expected["scores"]
        scores.append(tuple(np.ravel(list(found["scores"].values()))))
    assert len(set(scores)) == 3


def test_serve(workplace: Path) -> None:
    pytest.importorskip("openai")
    pytest.importorskip("uvicorn")
    from serving import serving

    model = lc.load_model(workplace / "model", progress=False)
    expected = {}
    for precision in PRECISIONS:
        batch = lc.Batch(model, 1)
        answer = batch.add(TEXT, top_logprobs=1, max_new_tokens=3, precision=precision)
        batch.run()
        model.decoder.precision = precision  # type: ignore[assignment]
        expected[precision] = [one.logprob for one in answer.logprobs], model.embed([TEXT], normalize=True)[0]
    assert len({tuple(values) for values, _ in expected.values()}) == 3
    with serving("--precision", "int8", "--prompt-block", "512", model=workplace / "model") as server:
        asked = {"model": None, "prompt": TEXT, "temperature": 0, "max_tokens": 3, "logprobs": 1}
        found = server.post("/v1/completions", asked).json()["choices"][0]["logprobs"]["token_logprobs"]
        vector = server.post("/v1/embeddings", {"input": [TEXT], "model": None}).json()["data"][0]["embedding"]
    np.testing.assert_allclose(found, expected["int8"][0], rtol=1e-6)
    np.testing.assert_allclose(vector, expected["int8"][1], rtol=1e-5, atol=1e-7)
    assert np.abs(np.subtract(found, expected["fast"][0])).max() > 1e-5


@pytest.mark.parametrize(
    "line", ["eval --model model --data chat.jsonl", "classify --model c hello", "serve --model model --port 0"]
)
def test_a_device_that_lacks_int8_refuses_it(workplace: Path, fake: str, line: str) -> None:
    done = call(workplace, [*line.split(), "--device", fake, "--precision", "int8"])
    assert done.returncode == 1 and done.stderr.splitlines()[-1].endswith("expected exact or fast on device fake, got int8")
