"""lora-c inspect on GGUF files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lora_c.gguf import write_model
from lora_c.gguf.format import Value
from lora_c.gguf.writer import GGUFEntry, text, uint32, write_gguf
from lora_c.inspection import inspect_path
from lora_c.model.opening import load_model
from lora_c.notices import LoraCWarning


def test_model(stories: Path, tmp_path: Path) -> None:
    model = load_model(stories)
    with pytest.warns(LoraCWarning, match="are written as F16"):
        write_model(tmp_path / "m.gguf", model, "Q8_0")
    report = inspect_path(tmp_path / "m.gguf")
    assert report.kind == "GGUF model" and report.usable, report.problems
    facts = report.facts
    assert facts["architecture"] == "llama" and facts["family"] == "LlamaForCausalLM" and facts["block count"] == 5
    assert facts["parameters"] == model.num_parameters() and facts["tied head"] is True
    assert facts["Q8_0 in"].startswith("token_embd (1), attn_q (5)") and facts["F16 in"] == "ffn_down (5)"
    assert facts["tokenizer"] == "512 tokens, llama" and facts["chat template"] == "no"
    assert facts["end token"] == "</s>"
    assert {row["dtype"] for row in report.tensors} == {"Q8_0", "F16", "F32"}


def test_chat_template_is_said(tmp_path: Path) -> None:
    import lora_c

    write_model(tmp_path / "m.gguf", load_model(Path(lora_c.__file__).parent / "base_model"), "F16")
    report = inspect_path(tmp_path / "m.gguf")
    assert report.usable and report.facts["chat template"] == "yes"


def test_adapter(tiny_model_dir: Path, tmp_path: Path) -> None:
    model = load_model(tiny_model_dir)
    model.add_adapter(r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"], rank_pattern={"up_proj": 2})
    model.save_adapter(tmp_path / "a.gguf", format="gguf")
    report = inspect_path(tmp_path / "a.gguf")
    assert report.kind == "GGUF adapter" and report.usable
    facts = report.facts
    assert facts["ranks"] == "2 (2), 4 (2)" and facts["targets"] == "attn_q, ffn_up" and facts["adapted matrices"] == 4
    assert facts["alpha"] == 8 and facts["parameters"] == model.num_parameters(only_trainable=True)


def write(path: Path, values: dict[str, Value], tensors: dict[str, np.ndarray]) -> Path:
    entries = [GGUFEntry(name, "F32", array.shape, lambda x=array: x) for name, array in tensors.items()]
    with open(path, "wb") as file:
        write_gguf(file.write, values, entries)
    return path


@pytest.mark.parametrize(
    ("values", "kind", "problem"),
    [
        ({"general.architecture": text("mamba")}, "GGUF model", "general.architecture: expected one of .*'mamba'"),
        ({"general.architecture": text("clip"), "general.type": text("mmproj")}, "GGUF file of 'mmproj'", "expected a model"),
        ({"general.architecture": text("llama")}, "GGUF model", "attention.head_count: expected a positive number"),
        ({"general.type": text("adapter"), "adapter.type": text("lokr")}, "GGUF adapter", "adapter.type: expected 'lora'"),
        ({"general.type": text("adapter"), "adapter.type": text("lora")}, "GGUF adapter", "expected lora_a and lora_b"),
    ],
)
def test_what_would_be_refused(tmp_path: Path, values: dict[str, Value], kind: str, problem: str) -> None:
    import re

    tensors = {"token_embd.weight": np.zeros((8, 32), np.float32)}
    report = inspect_path(write(tmp_path / "m.gguf", values, tensors))
    assert report.kind == kind and any(re.search(problem, line) for line in report.problems), report.problems
    assert report.facts["parameters"] == 256


def test_a_type_that_is_not_read(make_model: Callable[..., Path], tmp_path: Path) -> None:
    path = write(
        tmp_path / "m.gguf", {"general.architecture": text("llama")}, {"output.weight": np.zeros((2, 64), np.float32)}
    )
    data = bytearray(path.read_bytes())
    at = data.index(b"output.weight") + len("output.weight") + 4 + 16
    assert data[at : at + 4] == bytes(4)
    data[at : at + 4] = (20).to_bytes(4, "little")  # IQ4_NL
    path.write_bytes(data)
    assert any("got IQ4_NL; use a file with one of these types" in line for line in inspect_path(path).problems)


def test_one_of_several_files(tmp_path: Path) -> None:
    values = {"general.architecture": text("llama"), "split.count": uint32(2), "split.no": uint32(1)}
    report = inspect_path(write(tmp_path / "m-00002-of-00002.gguf", values, {"output.weight": np.zeros((2, 32), np.float32)}))
    assert report.facts["files"] == "2 of 2" and "expected the first of 2 files" in report.problems[0]


def test_damaged(tmp_path: Path, stories: Path) -> None:
    write_model(tmp_path / "m.gguf", load_model(stories), "F16")
    whole = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(whole[: len(whole) // 2])
    report = inspect_path(tmp_path / "m.gguf")
    assert report.kind == "GGUF file" and "truncated" in report.problems[0]


def test_folder_of_files(tmp_path: Path) -> None:
    (tmp_path / "m-Q8_0.gguf").write_bytes(b"")
    report = inspect_path(tmp_path)
    assert report.kind == "folder of GGUF files" and report.problems[0].endswith("give one of its files, such as m-Q8_0.gguf")
