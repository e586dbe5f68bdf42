"""What help() and notebooks show: every public name is described, in NumPy's form; configurations show their fields alone."""

from __future__ import annotations

import inspect
import pydoc
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lora_c as lc

CONFIGS = [lc.TrainConfig, lc.LoraConfig, lc.GenerationConfig]
PUBLIC = [name for name in lc.__all__ if name != "__version__"]
OF_OTHERS = {"load_dataset", "Dataset"}


def members(owner: Any) -> list[tuple[str, Any]]:
    """Public methods of a class, by name."""
    return [(name, value) for name, value in vars(owner).items() if not name.startswith("_") and callable(value)]


def parameters(function: Any) -> list[str]:
    """The names of a function's parameters, but for the first of a method."""
    names = list(inspect.signature(function).parameters)
    return [name for name in names if name not in ("self", "$self", "cls", "type", "model")]


@pytest.mark.parametrize("name", PUBLIC)
def test_help_of_every_public_name_is_written(name: str) -> None:
    value = getattr(lc, name)
    doc = inspect.getdoc(value) or ""
    assert len(doc.splitlines()[0].split()) >= 3
    assert not re.search(r"^(Parameters|Returns|Raises|Yields|Shapes)\n(?!-)", doc, re.M) or name in OF_OTHERS
    assert pydoc.plain(pydoc.render_doc(value))


@pytest.mark.parametrize(
    "cls", ["Model", "NF4Tensor", "GGMLTensor", "LoRALinear", "Parameter", "AdamW", "Decoder", "KVCache", "DecoderAdapters"]
)
def test_every_public_method_is_described(cls: str) -> None:
    for name, method in members(getattr(lc, cls)):
        doc = inspect.getdoc(method) or ""
        assert doc, name
        assert not re.search(r"^(Parameters|Returns|Raises|Yields)\n(?!-)", doc, re.M), name


@pytest.mark.parametrize("name", [name for name, _ in members(lc.Model)])
def test_every_parameter_of_a_models_method_is_described(name: str) -> None:
    method = getattr(lc.Model, name)
    doc = inspect.getdoc(method) or ""
    section = re.search(r"^Parameters\n-+\n(.*?)(?=^\w+\n-{3,}|\Z)", doc, re.M | re.S)
    described = section[1] if section else ""
    for parameter in parameters(method):
        assert re.search(rf"\b{parameter}\b", described), parameter


@pytest.mark.parametrize("cls", CONFIGS)
def test_help_of_a_configuration_shows_its_fields_and_nothing_of_the_library_below(cls: Any) -> None:
    shown = pydoc.plain(pydoc.render_doc(cls))
    # The class's own text, and two lines for each field; pydantic would bring 400 lines more.
    assert len(shown.splitlines()) <= 50 + 2 * len(cls.model_fields)
    assert "model_dump" not in shown and "__pydantic" not in shown and "Annotated" not in shown and "MinLen" not in shown
    for name, info in cls.model_fields.items():
        line = re.search(rf"^ \|  ([\w, ]+, )?{name}(, [\w, ]+)? : (.*)$", shown, re.M)
        assert line is not None, name
        if line[1] is None and line[2] is None:
            expected = "optional" if info.default is None else f"default {info.default!r}"
            assert line[3].endswith(expected) and line[3].count("optional") <= 1, line[0]


@pytest.mark.parametrize("cls", CONFIGS)
def test_every_field_has_a_meaning(cls: Any) -> None:
    assert all(info.description for info in cls.model_fields.values())


def test_the_signature_of_a_configuration_completes_its_fields() -> None:
    signature = inspect.signature(lc.TrainConfig)
    assert list(signature.parameters) == list(lc.TrainConfig.model_fields)
    assert signature.parameters["learning_rate"].default == 2e-4


def test_a_notebook_shows_a_model_as_a_table(tiny_model_dir: Path) -> None:
    model = lc.load_model(tiny_model_dir, progress=False)
    assert "adapter" not in model._repr_html_()
    model.add_adapter(r=3, target_modules=["q_proj"], name="a<b")
    html = model._repr_html_()
    assert html.startswith("<table><caption>LlamaForCausalLM</caption>") and html.endswith("</table>")
    assert "a&lt;b: r=3, 2 matrices" in html and f"{model.num_parameters():,}" in html and len(html) < 2000


def test_a_notebook_shows_tensors_and_layers_as_tables() -> None:
    weight = np.ones((64, 128), np.float32)
    nf4, ggml = lc.NF4Tensor.quantize(weight), lc.GGMLTensor.quantize(weight)
    layer = lc.LoRALinear(nf4, r=4, lora_alpha=8)
    expected = {
        nf4: ("NF4Tensor", {"shape": "(64, 128)", "quant_type": "nf4", "double_quant": "True", "nbytes": f"{nf4.nbytes:,}"}),
        ggml: ("GGMLTensor", {"shape": "(64, 128)", "type": "Q8_0", "block_size": "32", "nbytes": f"{ggml.nbytes:,}"}),
        layer: ("LoRALinear", {"in_features": "128", "out_features": "64", "base": "NF4Tensor", "r": "4", "scaling": "2.0"}),
    }
    for value, (title, rows) in expected.items():
        html = value._repr_html_()
        assert html.startswith(f"<table><caption>{title}</caption><tbody>") and html.endswith("</tbody></table>")
        found = dict(re.findall(r"<tr><th[^>]*>([^<]*)</th><td[^>]*>([^<]*)</td></tr>", html))
        assert rows.items() <= found.items()
    plain = lc.LoRALinear(weight, r=4)
    assert ">ndarray<" in plain._repr_html_()


def test_the_home_folder_is_known_wherever_a_path_is_taken(tiny_model_dir: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    model = lc.load_model("~/model", progress=False)
    model.save("~/copy")
    assert (tmp_path / "copy" / "config.json").is_file()
    model.add_adapter(r=2)
    model.save_adapter(Path("~/adapter"))
    lc.load_model("~/copy", progress=False).load_adapter("~/adapter")
    (tmp_path / "d.txt").write_text("w5 w6 w7 w8 w9\n" * 3)
    data = lc.load_dataset("~/d.txt", model.tokenizer)
    lc.Trainer(model, data, lc.TrainConfig(output_dir="~/run", method="lora", max_steps=1, save_steps=1)).train()
    assert (tmp_path / "run" / "checkpoint-1").is_dir()
    again = lc.load_model("~/model", progress=False)
    again.add_adapter(r=2)
    trainer = lc.Trainer(again, data, lc.TrainConfig(output_dir="~/other", method="lora", max_steps=1))
    assert trainer.train(resume="~/run/checkpoint-1").steps == 1


def test_the_home_folder_is_known_on_the_command_line(tiny_model_dir: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from click.testing import CliRunner

    from lora_c.cli.commands import cli

    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "d.txt").write_text("w5 w6 w7 w8 w9\n" * 3)
    (tmp_path / "e.txt").write_text("w9 w8 w7 w6\n")
    (tmp_path / "run.yaml").write_text("model: ~/model\ndata: ~/d.txt\noutput_dir: ~/out\nmethod: lora\nmax_steps: 1\n")
    for args in (
        ["train", "--config", "~/run.yaml"],
        ["generate", "--model", "~/model", "--adapter=~/out", "--max-new-tokens", "2", "w5"],
        ["generate", "--run", "~/out", "--max-new-tokens", "2", "w5"],
        ["eval", "--model", "~/model", "--data", "~/d.txt,~/e.txt"],
        ["merge", "--model", "~/model", "--adapter", "~/out", "--output-dir", "~/merged", "--no-report"],
        ["export", "~/out", "~/out.gguf", "--to", "gguf"],
        ["inspect", "~/merged"],
        ["quantize", "--model", "~/model", "--output-dir", "~/nf4"],
    ):
        done = CliRunner().invoke(cli, args)
        assert done.exit_code == 0, (args, done.output, done.exception)
    assert all((tmp_path / name).exists() for name in ("out", "merged", "out.gguf", "nf4"))
