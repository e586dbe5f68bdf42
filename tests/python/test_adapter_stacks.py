"""Several adapters in use at once: chosen, saved, loaded, deleted; on the command line by `--peft-type LORA,IA3`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_lines import called

import lora_c as lc
from lora_c.demo.run import BASE_MODEL
from lora_c.demo.world import task
from lora_c.errors import AdapterError, SaveError
from lora_c.inspection import inspect_path

IDS = np.arange(3, 15, dtype=np.int32)


@pytest.fixture
def model(tiny_model_dir: Path) -> lc.Model:
    model = lc.load_model(tiny_model_dir, progress=False)
    model.add_adapter(lc.LoraConfig(r=4, init_lora_weights=False))
    model.add_adapter(lc.IA3Config(init_ia3_weights=False), "ia3")
    model.add_adapter(lc.PromptTuningConfig(num_virtual_tokens=2), "prompt")
    return model


def logits(model: lc.Model) -> Any:
    return model.decoder.logits(IDS)


def test_a_stack_is_one_more_adapter(model: lc.Model) -> None:
    model.set_adapter(["default", "ia3"])
    both = logits(model)
    assert model.active_adapter == "default+ia3" and model.adapter_names == ["default", "ia3", "prompt", "default+ia3"]
    model.set_adapter("ia3")
    assert not np.array_equal(logits(model), both)
    model.set_adapter(["default", "ia3"])
    assert np.array_equal(logits(model), both) and len(model.adapter_names) == 4
    assert model.set_adapter(["ia3"]) is None and model.active_adapter == "ia3"


def test_saved_and_loaded(model: lc.Model, tiny_model_dir: Path, tmp_path: Path) -> None:
    model.set_adapter(["default", "ia3", "prompt"])
    before = logits(model)
    model.save_adapter(tmp_path / "stack")
    assert json.loads((tmp_path / "stack/adapter_stack.json").read_text()) == {"adapters": ["default", "ia3", "prompt"]}
    again = lc.load_model(tiny_model_dir, progress=False)
    again.load_adapter(tmp_path / "stack")
    assert again.active_adapter == "default+ia3+prompt" and np.array_equal(logits(again), before)
    again.set_adapter("ia3")
    model.set_adapter("ia3")
    assert np.array_equal(logits(again), logits(model))
    other = lc.load_model(tiny_model_dir, progress=False)
    other.load_adapter(tmp_path / "stack", "all")
    assert other.active_adapter == "all"
    with pytest.raises(AdapterError, match="got one; give another name"):
        other.load_adapter(tmp_path / "stack", "more")
    third = lc.load_model(tiny_model_dir, progress=False)
    with pytest.raises(AdapterError, match="name: expected one that no adapter of the stack has, got 'ia3'"):
        third.load_adapter(tmp_path / "stack", "ia3")
    assert third.adapter_names == []
    report = inspect_path(tmp_path / "stack")
    assert report.kind == "stack of adapters" and "ia3 (IA3)" in report.facts["adapters"] and report.usable


def test_a_part_goes_with_its_stacks(model: lc.Model) -> None:
    model.set_adapter(["default", "ia3"])
    with pytest.raises(AdapterError, match=r"got 'ia3', a part of 'default\+ia3'; use another one first"):
        model.delete_adapter("ia3")
    model.set_adapter("default")
    model.delete_adapter("ia3")
    assert model.adapter_names == ["default", "prompt"]


def test_what_no_stack_can_be(model: lc.Model, tmp_path: Path) -> None:
    model.add_adapter(lc.LoraConfig(r=2), "default+ia3")
    for names, message in (
        (["default", "ia3"], r"expected a model without one named 'default\+ia3'"),
        (["default", "default"], "expected each adapter once"),
        (["default", "nothing"], "expected names of the model's adapters"),
        ([], "expected names of the model's adapters"),
        ([["default"], "ia3"], "expected names of the model's adapters"),
        (["default", "default+ia3"], "two of Lora: 'default' and 'default[+]ia3'; combine them with add_weighted_adapter"),
    ):
        with pytest.raises(AdapterError, match=message):
            model.set_adapter(names)
    model.set_adapter(["ia3", "prompt"])
    with pytest.raises(AdapterError, match="expected format='peft' for a stack of adapters, got 'mlx'"):
        model.save_adapter(tmp_path / "x", format="mlx")
    with pytest.raises(AdapterError, match="expected single adapters, got 'ia3[+]prompt', which is a stack"):
        model.set_adapter(["default", "ia3+prompt"])
    model.add_adapter(lc.BottleneckConfig(), "a/b")
    model.set_adapter(["ia3", "a/b"])
    with pytest.raises(SaveError, match="expected names of adapters that can be names of folders, got 'a/b'"):
        model.save_adapter(tmp_path / "y")
    assert not (tmp_path / "y").exists()


@pytest.mark.parametrize(("names", "message"), [
    (["ia3", "ia3"], "expected each adapter once"), (["../ia3"], "a list of names"), (["a" * 5000], "a list of names"),
    ([], "expected a list of names"), ("ia3", "expected a list of names"), (["\ud800"], "expected a list of names"),
    (["ia3", "gone"], "expected an adapter of the stack"), (["ia3"], "expected a list of names, two or more"),
])  # fmt: skip
def test_damaged_lists_are_refused(model: lc.Model, tiny_model_dir: Path, tmp_path: Path, names: Any, message: str) -> None:
    model.set_adapter(["ia3", "prompt"])
    model.save_adapter(tmp_path / "stack")
    (tmp_path / "stack/adapter_stack.json").write_text(json.dumps({"adapters": names}))
    with pytest.raises(AdapterError, match=message):
        lc.load_model(tiny_model_dir, progress=False).load_adapter(tmp_path / "stack")


def test_saving_over_a_stack_drops_what_is_no_part_any_more(model: lc.Model, tmp_path: Path) -> None:
    model.set_adapter(["default", "ia3"])
    model.save_adapter(tmp_path / "stack")
    (tmp_path / "stack/notes.txt").write_text("mine")
    model.set_adapter(["ia3", "prompt"])
    model.save_adapter(tmp_path / "stack")
    assert not (tmp_path / "stack/default/adapter_config.json").exists()
    assert (tmp_path / "stack/prompt/adapter_config.json").exists() and (tmp_path / "stack/notes.txt").exists()


def test_a_classifier_takes_the_score_of_the_first(tiny_model_dir: Path, tmp_path: Path) -> None:
    def fresh() -> lc.Model:
        return lc.load_model(tiny_model_dir, progress=False, task_type="SEQ_CLS", num_labels=2)

    model = fresh()
    for name, config in (("lora", lc.LoraConfig(r=2)), ("ia3", lc.IA3Config()), ("bottleneck", lc.BottleneckConfig())):
        model.add_adapter(config, name)
    model.set_adapter(["lora", "ia3", "bottleneck"])
    trained = [p.name for p in model.trainable_parameters()]
    assert sum(name.endswith("score.weight") for name in trained) == 1
    score = next(p for p in model.trainable_parameters() if p.name.endswith("score.weight"))
    score.write(score.read() + 1)
    before = model.decoder.last_logits(IDS, [0, len(IDS)])
    model.save_adapter(tmp_path / "stack")
    again = fresh()
    again.load_adapter(tmp_path / "stack")
    assert np.array_equal(again.decoder.last_logits(IDS, [0, len(IDS)]), before)
    alone = fresh()
    with pytest.warns(lc.LoraCWarning, match="does not train the classifier's score"):
        alone.add_adapter(lc.PromptTuningConfig(num_virtual_tokens=2))
    labelled = lc.data.Dataset([lc.data.Sample(IDS, np.zeros(len(IDS), np.float32), label=0)] * 4)
    with pytest.raises(lc.ConfigError, match="expected a classifier whose score is trained or was loaded"):
        lc.Trainer(alone, labelled, lc.TrainConfig(output_dir=str(tmp_path / "out"), method="lora"))


def test_a_stack_that_is_refused_leaves_a_language_model_one(tiny_model_dir: Path, tmp_path: Path) -> None:
    model = lc.load_model(tiny_model_dir, progress=False, task_type="SEQ_CLS", num_labels=3)
    model.add_adapter(lc.LoraConfig(r=4), "lora")
    with pytest.warns(lc.LoraCWarning):
        model.add_adapter(lc.PromptTuningConfig(num_virtual_tokens=3), "prompt")
    model.set_adapter(["prompt", "lora"])
    model.save_adapter(tmp_path / "stack")
    found = lc.load_model(tiny_model_dir, progress=False)
    found.load_adapter(tmp_path / "stack")  # the score is in the second one
    assert found.labels is not None and found.active_adapter == "prompt+lora"
    (tmp_path / "stack/prompt/adapter_model.safetensors").write_bytes(b"xx")
    again = lc.load_model(tiny_model_dir, progress=False)
    before = again.decoder.logits(IDS)
    with pytest.raises(AdapterError):
        again.load_adapter(tmp_path / "stack")
    assert again.labels is None and again.adapter_names == [] and np.array_equal(again.decoder.logits(IDS), before)


def test_an_adapter_and_a_stack_take_each_others_place(model: lc.Model, tiny_model_dir: Path, tmp_path: Path) -> None:
    def loaded() -> lc.Model:
        found = lc.load_model(tiny_model_dir, progress=False)
        found.load_adapter(tmp_path / "a")
        return found

    for names in ("default", ["default", "ia3"], "ia3", ["ia3", "prompt"]):
        model.set_adapter(names)
        model.save_adapter(tmp_path / "a")
        assert np.array_equal(logits(loaded()), logits(model)), names
    (tmp_path / "b").mkdir()
    (tmp_path / "b/adapter_config.json").write_text("{}")
    with pytest.raises(SaveError, match="expected a folder without an adapter of its own"):
        model.save_adapter(tmp_path / "b")


def test_a_run_over_another_leaves_nothing_of_it_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model").symlink_to(BASE_MODEL)
    Path("d.jsonl").write_text("".join(json.dumps(example) + "\n" for example in task(1, 12, 1)[0]))
    train = "train --model model --data d.jsonl --output-dir run --max-steps 1 --overwrite"
    for kind, found in (
        ("--peft-type LORA,IA3", "stack of adapters"), ("--peft-type LORA", "adapter of PEFT"), ("--peft-type LORA,IA3", "st"),
        ("--method full", "model"),
    ):  # fmt: skip
        call(f"{train} {kind}")
        assert inspect_path("run").kind.startswith(found), kind
    assert not any(Path("run", name).exists() for name in ("adapter_config.json", "adapter_stack.json", "lora"))
    call("generate --run run Hello --max-new-tokens 2")


def call(words: str) -> str:
    done = called(Path.cwd(), words.split())
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_trained_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model").symlink_to(BASE_MODEL)
    Path("d.jsonl").write_text("".join(json.dumps(example) + "\n" for example in task(1, 12, 1)[0]))
    kinds = "--peft-type lora,ia3,prefix-tuning --r 4 --num-virtual-tokens 3"
    assert "(LORA,IA3,PREFIX_TUNING)" in call(f"train --model model --data d.jsonl --output-dir run --max-steps 2 {kinds}")
    call("train --config run/config.yaml --output-dir again")
    tensors = ["lora", "ia3", "prefix_tuning"]
    files = [[Path(f"{run}/{name}/adapter_model.safetensors").read_bytes() for name in tensors] for run in ("run", "again")]
    assert files[0] == files[1]
    assert "5 steps" in call("train --config run/config.yaml --resume --max-steps 5")
    assert "loss" in call("eval --run run --data d.jsonl")
    call("train --model model --data d.jsonl --output-dir next --max-steps 1 --adapter run")
    card = Path("run/README.md").read_text()
    assert "LORA and IA3 and PREFIX_TUNING" in card and "With PEFT" not in card
    for words, message in (
        ("--peft-type lora,lora", "expected each kind once"),
        ("--peft-type loraa", "did you mean 'LORA'"),
        ("--peft-type ia3,prefix_tuning --r 3", "expected peft_type LORA, which has this option, got IA3,PREFIX_TUNING"),
        ("--adapter run --peft-type lora", "expected no adapter to go on from, whose own options hold"),
    ):
        done = called(tmp_path, f"train --model model --data d.jsonl --output-dir x {words}".split())
        assert done.returncode == 2 and message in done.stderr, done.stderr
