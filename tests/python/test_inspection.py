"""lora-c inspect: what every kind of file and folder is said to be, and that nothing makes it crash."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from lora_c.cli import cli
from lora_c.cli.inspect import size_text
from lora_c.data import load_dataset
from lora_c.errors import CheckpointError
from lora_c.inspection import Report, inspect_path
from lora_c.model.opening import load_model
from lora_c.notices import LoraCWarning
from lora_c.text.tokenizer import Tokenizer


def types(report: Report) -> dict[str, int]:
    return {row["dtype"]: row["elements"] for row in report.tensors}


def test_model_folder(make_model: Callable[..., Path]) -> None:
    folder = make_model(dtype=ml_dtypes.bfloat16)
    report = inspect_path(folder)
    assert report.kind == "model folder of Hugging Face" and report.usable
    assert report.facts["architecture"] == "LlamaForCausalLM" and report.facts["num hidden layers"] == 2
    expected = load_model(folder).num_parameters()
    assert report.facts["parameters"] == expected and types(report) == {"BF16": expected}
    assert report.facts["tokenizer"] == "64 tokens" and report.facts["end token"] == "</s>"
    assert report.bytes == sum(path.stat().st_size for path in folder.iterdir())


def test_quantized_folder_counts_weights_and_not_codes(make_model: Callable[..., Path], tmp_path: Path) -> None:
    model = load_model(make_model(), quantize="nf4")
    model.save(tmp_path / "q")
    report = inspect_path(tmp_path / "q")
    assert report.kind.endswith("4-bit weights of bitsandbytes") and report.usable
    assert report.facts["parameters"] == model.num_parameters()
    assert report.facts["quantized"] == "14 weights nf4 nested, block 64"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architectures": ["GPTNeoXForCausalLM"]}, "architectures: expected one of .*, got GPTNeoXForCausalLM"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quant_method: .*got 'gptq'"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "got MLX's integer quantization; load the model"),
        ({"intermediate_size": 48}, "gate_proj.weight: expected shape"),
        ({"num_hidden_layers": 3}, "got none for model.layers.2"),
        ({"hidden_act": "relu"}, "hidden_act"),
    ],
)
def test_what_would_be_refused_is_said(make_model: Callable[..., Path], config: dict, message: str) -> None:
    folder = make_model()
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    report = inspect_path(folder)
    assert not report.usable
    with pytest.raises(CheckpointError, match=message):
        raise CheckpointError(report.problems[0])
    assert report.facts["parameters"] > 0  # the rest is still told


def test_damaged_model_folders(make_model: Callable[..., Path]) -> None:
    folder = make_model()
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:100])
    (folder / "tokenizer.json").write_text("{")
    problems = " ".join(inspect_path(folder).problems)
    assert "model.safetensors: expected" in problems and "tokenizer.json: expected" in problems
    (folder / "config.json").write_text("[")
    (folder / "model.safetensors").unlink()
    assert any("config.json: expected a JSON" in problem for problem in inspect_path(folder).problems)


def test_adapter_and_its_file(tiny_model_dir: Path, tmp_path: Path) -> None:
    model = load_model(tiny_model_dir)
    model.add_adapter(r=4, target_modules=["q_proj", "up_proj"], rank_pattern={"up_proj": 2}, use_rslora=True)
    model.save_adapter(tmp_path / "a")
    report = inspect_path(tmp_path / "a")
    assert report.kind == "adapter of PEFT" and report.usable
    assert (report.facts["rank"], report.facts["ranks"]) == (4, "2 (2), 4 (2)")
    assert report.facts["targets"] == "q_proj, up_proj" and report.facts["adapted matrices"] == 4
    assert report.facts["parameters"] == model.num_parameters(only_trainable=True)
    assert "adapter weights of PEFT" in inspect_path(tmp_path / "a/adapter_model.safetensors").facts["holds"]
    config = json.loads((tmp_path / "a/adapter_config.json").read_text())
    (tmp_path / "a/adapter_config.json").write_text(json.dumps(config | {"use_qalora": True}))
    (tmp_path / "a/adapter_model.safetensors").rename(tmp_path / "a/adapter_model.bin")
    problems = inspect_path(tmp_path / "a").problems
    assert "use_qalora" in problems[0] and "got a pickle" in problems[1] and "save_pretrained" in problems[1]


def test_adapter_of_mlx(tmp_path: Path) -> None:
    values = {
        "fine_tune_type": "lora",
        "num_layers": 4,
        "lora_parameters": {"rank": 8, "scale": 20.0, "keys": ["self_attn.q_proj"]},
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps(values))
    prefix = "model.layers.3.self_attn.q_proj."
    save_file({prefix + "lora_a": np.zeros((32, 8), np.float32), prefix + "lora_b": np.zeros((8, 32), np.float32)},
              tmp_path / "adapters.safetensors")  # fmt: skip
    report = inspect_path(tmp_path)
    assert report.kind == "adapter of MLX" and report.facts["ranks"] == "8 (1)" and report.facts["scale"] == 20.0
    assert "MLX" in inspect_path(tmp_path / "adapters.safetensors").facts["holds"]


def test_training_output_and_checkpoint(stories: Path, tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"text": "Once upon a time"}\n' * 8)
    args = ["train", "--model", str(stories), "--data", str(tmp_path / "d.jsonl"), "--output-dir", str(tmp_path / "out")]
    done = CliRunner().invoke(cli, [*args, "--max-steps", "2", "--save-steps", "1", "--r", "2", "--val-fraction", "0"])
    assert done.exit_code == 0, done.output
    assert inspect_path(tmp_path / "out").kind == "adapter of PEFT, output of lora-c train"
    report = inspect_path(tmp_path / "out/checkpoint-1")
    assert report.kind == "checkpoint of lora-c train" and report.usable
    assert (report.facts["step"], report.facts["method"], report.facts["rank"]) == (1, "qlora", 2)
    assert "training state" in inspect_path(tmp_path / "out/checkpoint-1/training_state.safetensors").facts["holds"]


@pytest.mark.parametrize(
    ("name", "data", "kind", "usable"),
    [
        ("a.jsonl", b'{"messages": []}\n{"text": "x"}\n', "training data", True),
        ("a.json", b'{"prompt": "a", "completion": "b"}\n{"text": "x"}\n', "training data", True),
        ("b.json", b'[{"prompt": "a", "completion": "b"}]', "training data", True),
        ("b.jsonl", b'{"question": "a"}\n', "training data", False),
        ("c.jsonl", b"not json\n", "training data", False),
        ("d.jsonl", b"", "training data", False),
        ("a.txt", b"words", "training data", True),
        ("b.txt", b" \n", "training data", False),
        ("c.txt", b"\xff\xfe\x00", "training data", False),
        ("t.json", b'{"model": {"type": "BPE", "vocab": {"a": 0}}, "added_tokens": []}',
         "tokenizer of the tokenizers library", True),
        ("i.json", b'{"weight_map": {"a": "b", "c": "b"}}', "index of safetensors shards", True),
        ("o.json", b'{"x": 1}', "JSON file", True),
        ("broken.json", b'{"x": ', "training data", False),
        ("x.bin", b"\x80\x02}q", "pickle", False),
        ("noname", b"\x80\x04}q", "pickle", False),
        ("w.pt", b"PK\x03\x04", "pickle", False),
        ("w.bin", b"PK\x03\x04", "pickle", False),
        ("llama2.bin", b"\x00\x01\x00\x00junk", "unknown", False),
        ("m.gguf", b"GGUF\x03\0\0\0\x05\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0", "GGUF file", False),
        ("m.bin", b"GGUF\x09\0\0\0\x05\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0", "GGUF file", False),
        ("short.gguf", b"GGUF\x03", "GGUF file", False),
        ("z.safetensors", b"", "safetensors file", False),
        ("empty", b"", "empty file", False),
        ("junk", b"\x00\x01junk", "unknown", False),
    ],
)  # fmt: skip
def test_single_files(tmp_path: Path, name: str, data: bytes, kind: str, usable: bool) -> None:
    (tmp_path / name).write_bytes(data)
    report = inspect_path(tmp_path / name)
    assert (report.kind, report.usable) == (kind, usable)
    assert report.bytes == len(data)


@pytest.mark.parametrize(
    ("config", "architecture"),
    [
        ({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, "LlamaForCausalLM"),
        ({"architectures": ["LlamaForCausalLM"]}, "LlamaForCausalLM"),
        ({"architectures": None, "model_type": "llama"}, "llama"),
        ({"model_type": "llama"}, "llama"),
    ],
)
def test_a_configuration_is_named_by_its_class_or_else_its_type(tmp_path: Path, config: dict, architecture: str) -> None:
    (tmp_path / "c.json").write_text(json.dumps(config))
    report = inspect_path(tmp_path / "c.json")
    assert (report.kind, report.facts["architecture"]) == ("configuration of a model; inspect its folder", architecture)


def test_folders_of_other_things(tmp_path: Path, shared_data: Callable[[str], Path]) -> None:
    report = inspect_path(tmp_path)
    assert report.kind == "folder" and "got nothing" in report.problems[0]
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    (tmp_path / "b.jsonl").write_text('{"prompt": "x", "completion": "y"}\n')
    assert inspect_path(tmp_path).facts["kinds"] == "text (1), prompt (1)"
    assert inspect_path(shared_data("gsm8k")).kind == "training data"
    with pytest.raises(CheckpointError, match="got nothing there"):
        inspect_path(tmp_path / "absent")


def test_data_is_counted_as_training_reads_it(stories: Path, tmp_path: Path) -> None:
    for name, n in (("train.jsonl", 4), ("train.csv", 3), ("valid.jsonl", 2), ("test.jsonl", 1)):
        head = "text\n" if name.endswith("csv") else ""
        (tmp_path / name).write_text(head + "".join(f'{{"text": "{i}"}}\n' if not head else f"{i}\n" for i in range(n)))
    (tmp_path / "README.md").write_text("words")
    facts = inspect_path(tmp_path).facts
    with pytest.warns(LoraCWarning, match="README.md"):
        data = load_dataset(tmp_path, Tokenizer.from_folder(stories))
    assert facts["records"] == str(data.n_examples) == "7"
    assert facts["split"] == "train: train.csv, train.jsonl" and facts["left out"] == "README.md"
    assert (facts["validation"], facts["test"]) == ("valid.jsonl: 2 records", "test.jsonl: 1 records")
    (tmp_path / "more").mkdir()
    for name in "ab":
        (tmp_path / f"more/{name}.jsonl").write_text('{"text": "x"}\n' * 800)
    assert inspect_path(tmp_path / "more").facts["records"] == "1,600"
    (tmp_path / "more/c.jsonl").write_text('{"text": "x"}\n' * 1001)
    assert inspect_path(tmp_path / "more").facts["records"] == "2,600 looked at"


def test_kinds_of_records_are_those_that_training_takes(tmp_path: Path) -> None:
    records = [{"prompt": "", "text": "a"}, {"text": None, "prompt": "a", "completion": "b"}, {"prompt": "a", "chosen": "b"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    report = inspect_path(tmp_path / "a.jsonl")
    assert report.facts["kinds"] == "text (1), prompt (1), unknown (1)"
    assert len(report.problems) == 1 and "a.jsonl:3: expected" in report.problems[0] and "'chosen'" in report.problems[0]


def test_pipes_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "itself").symlink_to("itself")
    for name, message in (("pipe", "got a named pipe"), ("itself", "symbolic links")):
        with pytest.raises(CheckpointError, match=message):
            inspect_path(tmp_path / name)
    (tmp_path / "data").mkdir()
    os.mkfifo(tmp_path / "data/train.jsonl")
    assert "train.jsonl: expected a regular file, got a named pipe" in inspect_path(tmp_path / "data").problems[0]


def test_command_prints_tables_or_json(tiny_model_dir: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["inspect", str(tiny_model_dir)])
    assert done.exit_code == 0 and "LlamaForCausalLM" in done.output and "F32" in done.output
    path = tiny_model_dir / "model.safetensors"
    save_file(load_file(path) | {"model.layers.0.mlp.up_proj.qweight": np.zeros(4, np.int32)}, path)
    done = CliRunner().invoke(cli, ["inspect", "--json", str(tiny_model_dir)], standalone_mode=False)
    report = json.loads(done.output)
    assert not report["usable"] and "GPTQ or AWQ" in report["problems"][0] and report["facts"]["parameters"] > 0


def test_a_config_that_contradicts_itself_is_a_problem_of_the_folder(make_model: Callable[..., Path]) -> None:
    folder = make_model()
    inner = {"model_type": ["x"]}
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": inner}))
    report = inspect_path(folder)
    assert not report.usable and "text_config.model_type: expected 'gemma3_text'" in " ".join(report.problems)


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_half_a_character_of_a_file_is_printed_as_its_number(make_model: Callable[..., Path], errors: str) -> None:
    folder = make_model()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["\ud801"]}))
    command = [sys.executable, "-m", "lora_c", "inspect", str(folder)]
    environment = os.environ | {"PYTHONIOENCODING": f"utf-8:{errors}"}
    ended = subprocess.run(command, capture_output=True, encoding="utf-8", env=environment)
    assert "Traceback" not in ended.stderr and "\\ud801" in ended.stdout + ended.stderr


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (0, "0 B"), (1023, "1,023 B"), (1024, "1.0 KiB"), (1023 << 10, "1,023.0 KiB"), (1 << 20, "1.0 MiB"),
        (3 << 29, "1.5 GiB"), (1 << 40, "1.0 TiB"), (1 << 50, "1,024.0 TiB"),
    ],
)  # fmt: skip
def test_sizes_have_the_unit_that_suits_them(size: int, said: str) -> None:
    assert size_text(size) == said
