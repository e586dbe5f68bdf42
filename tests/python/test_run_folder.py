"""The folder of a run: what it says of the run, that it starts it again from anywhere, and that it stands for its model."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import lora_c as lc
from lora_c.cli import cli
from lora_c.notices import LoraCWarning
from lora_c.runs.digests import base_digest
from lora_c.runs.model_card import hub_name

pytestmark = pytest.mark.filterwarnings("ignore:data. .*trained as they stand:lora_c.notices.LoraCWarning")

IDS = np.arange(3, 20, dtype=np.int32)
TEMPLATE = "{% for m in messages %}{{ m.content }} {% endfor %}"


def run(*args: object) -> Result:
    return CliRunner().invoke(cli, list(map(str, args)), prog_name="lora-c")


def good(*args: object) -> str:
    result = run(*args)
    assert result.exit_code == 0, (args, result.exception, result.output)
    return result.output


def last_line(output: str) -> Any:
    return json.loads(output.splitlines()[-1])


@pytest.fixture
def project(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A folder with a model, data and a finished run."""
    (tiny_model_dir / "chat_template.jinja").write_text(TEMPLATE)
    home = tmp_path / "project"
    home.mkdir()
    shutil.move(tiny_model_dir, home / "model")
    records = [{"prompt": f"w{3 + i} w{4 + i} ", "completion": f"w{5 + i}"} for i in range(30)]
    records += [{"prompt": "w3", "completion": ""}]
    (home / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    good(*TRAIN, "--model", home / "model", "--data", home / "data.jsonl", "--output-dir", home / "run")
    return home


TRAIN = ("train", "--max-steps", 2, "--val-fraction", 0.2, "--learning-rate", "1e-2", "--max-seq-length", 4, "--samples", 1)


def test_run_json_says_what_the_run_was(project: Path) -> None:
    from lora_c.runs.digests import data_digest

    values = json.loads((project / "run/run.json").read_text())
    assert values["lora_c"] == lc.__version__ and values["method"] == "qlora" and values["total_steps"] == 2
    assert values["recompute"] == "none"
    base = values["base"]
    assert base["path"] == str(project / "model") and base["digest"] == base_digest(project / "model")
    assert (base["quantize"], base["block_size"], base["double_quant"]) == ("nf4", 64, True)
    assert values["data"]["files"] == [str(project / "data.jsonl")]
    model = lc.load_model(project / "model", progress=False)
    data = lc.load_dataset(project / "data.jsonl", model.tokenizer, max_seq_length=4)
    train, held_out = data.split(0.2, 0)
    assert values["data"]["digest"] == data_digest(train) and values["held_out"]["sequences"] == len(held_out)
    counts = {"examples": data.n_examples, "cut": data.n_truncated, "left_out_without_loss": data.n_without_loss}
    assert counts == {key: values["data"][key] for key in counts} and data.n_examples == 31
    assert values["seeds"] == {"training": 0, "adapter": 0}
    assert values["machine"]["kernels"] == lc.get_isa() and values["machine"]["cpu"]
    assert values["result"]["steps"] == 2 and not values["result"]["interrupted"]
    (sample,) = values["samples"]
    assert sample["prompt"] and sample["expected"] and isinstance(sample["before"], str) and isinstance(sample["after"], str)


def test_the_model_card_is_what_the_hub_expects(project: Path) -> None:
    from huggingface_hub import ModelCard, metadata_load
    from huggingface_hub.utils import validate_repo_id

    file = project / "run/README.md"
    values = metadata_load(file)
    assert values == {
        "base_model": "model", "base_model_relation": "adapter", "library_name": "peft", "pipeline_tag": "text-generation",
        "tags": ["lora-c", "lora"],
    }  # fmt: skip
    validate_repo_id(values["base_model"])
    card = ModelCard.load(file, ignore_metadata_errors=False)
    assert card.data.base_model == "model" and "| held-out loss | " in card.text and "PeftModel" in card.text
    with pytest.warns(LoraCWarning, match="has 3 now"):
        good("train", "--config", project / "run/config.yaml", "--resume", "--max-steps", 3)
    assert "| steps | 3 of 3 |" in file.read_text()
    before = (project / "run/run.json").read_bytes()
    done = good("train", "--config", project / "run/config.yaml", "--resume", "--max-steps", 3)
    assert "has done all 3 steps; nothing is trained" in done and (project / "run/run.json").read_bytes() == before
    file.write_text("mine")
    with pytest.warns(LoraCWarning, match="README.md: kept as it is, because no run wrote it|has 4 now"):
        good("train", "--config", project / "run/config.yaml", "--resume", "--max-steps", 4)
    assert file.read_text() == "mine"


@pytest.mark.parametrize(("path", "config", "name"), [
    ("/hub/models--Qwen--Qwen3-0.6B/snapshots/abc", {}, "Qwen/Qwen3-0.6B"),
    ("/models/some model (new)", {}, "some-model-new"),
    ("/models/x", {"_name_or_path": "org/name"}, "org/name"),
    ("/models/x", {"_name_or_path": "/home/me/x"}, "x"),
    ("org/name", {}, "org/name"),
    ("/models/-a..b--c.", {}, "a-b-c"),
])  # fmt: skip
def test_the_base_is_named_as_the_hub_names_it(path: str, config: dict[str, Any], name: str) -> None:
    from huggingface_hub.utils import validate_repo_id

    assert hub_name(path, config) == name
    validate_repo_id(name)


def test_the_tokenizer_and_its_template_lie_beside_the_adapter(project: Path) -> None:
    from lora_c.text.tokenizer import Tokenizer

    assert (project / "run/chat_template.jinja").read_text() == TEMPLATE
    tokenizer = Tokenizer.from_folder(project / "run")
    assert tokenizer.encode("w3 w4") == [3, 4] and tokenizer.chat_template == TEMPLATE
    assert not list((project / "run").glob(".*"))


@pytest.mark.parametrize("where", ["same place", "run moved", "all moved"])
def test_a_run_starts_again_from_any_folder(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    folder = project / "run"
    adapter = (folder / "adapter_model.safetensors").read_bytes()
    if where == "run moved":
        folder = Path(shutil.move(folder, tmp_path / "elsewhere"))
    elif where == "all moved":
        folder = Path(shutil.move(project, tmp_path / "other machine")) / "run"
    away = tmp_path / "away"
    away.mkdir()
    monkeypatch.chdir(away)
    good("train", "--config", os.path.relpath(folder / "config.yaml"), "--output-dir", away / "again")
    assert (away / "again/adapter_model.safetensors").read_bytes() == adapter
    output = good("train", "--config", folder / "config.yaml", "--resume")
    assert f"resumed   from {folder}/checkpoint-2 at step 2 of 2" in output
    refused = run("train", "--config", folder / "config.yaml")
    assert f"which holds a run (checkpoint-2); give --output-dir {folder}-2, --resume" in str(refused.exception)
    direct = good("generate", "--run", folder, "--raw", "--max-new-tokens", 4, "--ignore-eos", "w3 w4")
    model = lc.load_model(folder.parent / "model" if where == "all moved" else project / "model", "nf4", progress=False)
    model.load_adapter(folder)
    assert direct == model.generate("w3 w4", max_new_tokens=4, ignore_eos=True) + "\n"


@pytest.mark.filterwarnings("ignore:2 of 14 matrices")  # rows of 44 are no blocks of Q8_0
@pytest.mark.parametrize("kind", ["int4", "q8_0"])
def test_a_run_on_another_type_of_base_stands_for_that(project: Path, tmp_path: Path, kind: str) -> None:
    model, data = project / "model", ("--data", project / "data.jsonl")
    details = ("--block-size", 32, "--no-double-quant") if kind == "int4" else ()
    good(*TRAIN, "--model", model, *data, "--output-dir", tmp_path / "run", "--quant-type", kind, *details)
    base = json.loads((tmp_path / "run/run.json").read_text())["base"]
    assert base["quantize"] == kind
    assert ({"block_size", "double_quant"} <= set(base)) == (kind == "int4")
    assert f"quant_type: {kind}" in (tmp_path / "run/config.yaml").read_text()
    options = {"block_size": 32, "double_quant": False} if kind == "int4" else {}
    same = lc.load_model(model, kind, **options, progress=False)  # type: ignore[arg-type]
    same.load_adapter(tmp_path / "run")
    answer = good("generate", "--run", tmp_path / "run", "--raw", "w3 w4", "--max-new-tokens", 4, "--ignore-eos")
    assert answer == same.generate("w3 w4", max_new_tokens=4, ignore_eos=True) + "\n"
    with pytest.warns(LoraCWarning, match=f"into the base in {kind.upper()}, with which the run was trained"):
        good("merge", "--run", tmp_path / "run", "--output-dir", tmp_path / "m", "--dtype", "float32", "--no-report")
    merged = lc.load_model(tmp_path / "m", progress=False)
    assert np.abs(merged.decoder.logits(IDS) - same.decoder.logits(IDS)).max() < 1e-3
    refused = run(*TRAIN, "--model", model, *data, "--output-dir", tmp_path / "run", "--resume", "--max-steps", 3)
    assert refused.exit_code == 1 and f"quant_type '{kind}' -> 'nf4'" in str(refused.exception)


def test_the_run_stands_for_its_model_in_every_command(project: Path, tmp_path: Path) -> None:
    flags = ("--data", project / "data.jsonl", "--max-seq-length", 4, "--json")
    held_out = last_line(good("eval", "--run", project / "run", *flags))
    model = lc.load_model(project / "model", "nf4", progress=False)
    model.load_adapter(project / "run")
    ids = model.decoder.logits(IDS)
    good("merge", "--run", project / "run", "--output-dir", tmp_path / "merged", "--dtype", "float32", "--quantize", "nf4")
    merged = lc.load_model(tmp_path / "merged", progress=False).decoder.logits(IDS)
    assert np.abs(merged - ids).max() < 1e-3
    with pytest.warns(LoraCWarning, match="merge: into the base in NF4, with which the run was trained; --quantize none"):
        good("merge", "--run", project / "run", "--output-dir", tmp_path / "same", "--dtype", "float32")
    np.testing.assert_array_equal(lc.load_model(tmp_path / "same", progress=False).decoder.logits(IDS), merged)
    good("merge", "--run", project / "run", "--output-dir", tmp_path / "dense", "--dtype", "float32", "--quantize", "none")
    assert np.abs(lc.load_model(tmp_path / "dense", progress=False).decoder.logits(IDS) - merged).max() > 1e-3
    (tmp_path / "eval.yaml").write_text(f"run: {project}/run\ndata: {project}/data.jsonl\nmax_seq_length: 4\njson: true\n")
    assert last_line(good("eval", "--config", tmp_path / "eval.yaml")) == held_out
    plain = last_line(good("eval", "--model", project / "model", "--adapter", project / "run", "--quantize", "nf4", *flags))
    assert plain == held_out
    chat = CliRunner().invoke(cli, ["chat", "--run", str(project / "run"), "--max-new-tokens", "2"], input="w3\n\n")
    assert chat.exit_code == 0, chat.exception


def test_the_base_of_a_run_may_be_named(project: Path, tmp_path: Path) -> None:
    shutil.move(project / "model", tmp_path / "moved")
    result = run("generate", "--run", project / "run", "w3")
    assert "run: expected its base model in" in str(result.exception) and "with --model" in str(result.exception)
    good("generate", "--run", project / "run", "--model", tmp_path / "moved", "--max-new-tokens", 1, "w3")
    for path, got in ((tmp_path / "nowhere", "nothing there"), (tmp_path, "one without"), (project / "data.jsonl", "a file")):
        assert f"{got}" in str(run("generate", "--run", path, "w3").exception)


def test_a_run_of_a_whole_model_stands_for_it(project: Path, tmp_path: Path) -> None:
    good(*TRAIN, "--model", project / "model", "--data", project / "data.jsonl", "--output-dir", tmp_path / "full",
         "--method", "head")  # fmt: skip
    direct = good("generate", "--run", tmp_path / "full", "--raw", "--max-new-tokens", 3, "--ignore-eos", "w3")
    model = lc.load_model(tmp_path / "full", progress=False)
    assert direct == model.generate("w3", max_new_tokens=3, ignore_eos=True) + "\n"
    assert "library_name: transformers" in (tmp_path / "full/README.md").read_text()


def test_a_run_that_was_stopped_stands_for_its_last_checkpoint(project: Path) -> None:
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (project / "run" / name).unlink()
    good("generate", "--run", project / "run", "--max-new-tokens", 1, "w3")


def test_an_adapter_on_another_base_says_so(project: Path, make_model: Callable[..., Path], tiny: Any, tmp_path: Path) -> None:
    other = tiny.write(tmp_path / "other", tiny.config, tiny.tensors(tiny.config, np.float32, 1))
    for folder in (project / "run", project / "run/checkpoint-2"):
        with pytest.warns(LoraCWarning, match="trained on a base with the digest .* put on one with"):
            lc.load_model(other, progress=False).load_adapter(folder)
        lc.load_model(project / "model", progress=False).load_adapter(folder)
        lc.load_model(project / "model", "nf4", progress=False).load_adapter(folder)
    (project / "run/run.json").write_text("{damaged")
    lc.load_model(other, progress=False).load_adapter(project / "run")


def test_the_digest_of_a_base_is_of_its_tensors(make_model: Callable[..., Path], tiny: Any, tmp_path: Path) -> None:
    model = lc.load_model(make_model(), progress=False)
    model.save(tmp_path / "sharded", max_shard_bytes=10_000)
    assert base_digest(tmp_path / "sharded") == base_digest(model.source)
    tensors = tiny.tensors(tiny.config)
    tensors["lm_head.weight"] = tensors["lm_head.weight"] + 1e-3
    seen = {base_digest(tiny.write(tmp_path / "tuned", tiny.config, tensors)), base_digest(make_model("t", rope_theta=500.0)),
            base_digest(model.source)}  # fmt: skip
    assert len(seen) == 3


def test_training_goes_on_from_a_finished_adapter(project: Path, tmp_path: Path) -> None:
    flags = ("train", "--model", project / "model", "--data", project / "data.jsonl", "--max-steps", 1)
    good(*flags, "--adapter", project / "run", "--output-dir", tmp_path / "more", "--learning-rate", "1e-12")
    model = lc.load_model(project / "model", progress=False)
    model.load_adapter(project / "run")
    before = [np.array(p.data) for p in model.trainable_parameters()]
    model.delete_adapter()
    model.load_adapter(tmp_path / "more")
    for parameter, start in zip(model.trainable_parameters(), before, strict=True):
        np.testing.assert_allclose(parameter.data, start, atol=1e-9)
    values = (tmp_path / "more/config.yaml").read_text()
    assert f"adapter: {project}/run" in values and "lora_alpha" not in values
    with pytest.warns(LoraCWarning, match="has 2 now"):
        good("train", "--config", tmp_path / "more/config.yaml", "--resume", "--max-steps", 2)
    for more, said in ((("--r", 4), "r: expected no adapter to go on from"), (("--method", "full"), "adapter: expected")):
        assert said in str(run(*flags, "--adapter", project / "run", "--output-dir", tmp_path / "x", *more).exception)


def test_what_a_resumed_run_may_not_change_is_refused_before_the_base_is_loaded(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*args: object, **options: object) -> None:
        raise AssertionError("the base was loaded")

    monkeypatch.setattr("lora_c.model.opening.load_weights", load)
    config = ("train", "--config", project / "run/config.yaml")
    refused = run(*config, "--resume", "--learning-rate", "1e-3")
    assert "checkpoint-2: expected the run that it was written by, got changes of its result: learning_rate" in str(
        refused.exception
    )
    assert "LoraConfig.r 8 -> 4" in str(run(*config, "--resume", "--r", 4).exception)
    assert "resume: expected a checkpoint folder" in str(run(*config, "--resume", project / "nowhere").exception)
    empty = ("--resume", "--output-dir", project / "empty")
    assert "expected a checkpoint to resume from, got none" in str(run(*config, *empty).exception)
    assert not (project / "empty").exists()
