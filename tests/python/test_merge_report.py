"""The merge report: figures against their definitions, refusals, and the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from device_values import write_values
from safetensors.numpy import load_file

from lora_c.cli import cli
from lora_c.cli.export import is_adapter
from lora_c.errors import AdapterError, CheckpointError
from lora_c.model.merge_report import TARGETS, default_segments, merge_with_report
from lora_c.model.model import Model
from lora_c.model.opening import load_model

GOLDEN = Path(__file__).parents[1] / "golden" / "adapters"
SEGMENTS = [list(range(3, 40)), [5, 9, 2, 30, 11]]


def adapted(name: str = "patterns", base: str = "biased", **options: object) -> Model:
    model = load_model(GOLDEN / base, **options)
    model.load_adapter(GOLDEN / name)
    return model


def distributions(model: Model) -> np.ndarray:
    rows = [model.decoder.logits(np.array(ids, np.int32)).astype(np.float64) for ids in SEGMENTS]
    exp = np.exp(np.concatenate(rows))
    return exp / exp.sum(axis=1, keepdims=True)


def perplexity(model: Model) -> float:
    weight = np.ones(sum(map(len, SEGMENTS)), np.float32)
    ends = np.cumsum([len(ids) for ids in SEGMENTS])
    weight[ends - 1] = 0
    ids = np.concatenate(SEGMENTS).astype(np.int32)
    loss = model.decoder.loss(ids, np.array([0, *ends], np.int32), np.append(ids[1:], 0).astype(np.int32), weight)
    return float(np.exp(loss / weight.sum()))


@pytest.mark.parametrize("dtype", TARGETS)
def test_figures_follow_their_definitions(dtype: str) -> None:
    model = adapted()
    before = model.decoder.logits(np.array(SEGMENTS[0], np.int32))
    merged, report = merge_with_report(model, dtype, SEGMENTS)
    p, q = distributions(model), distributions(merged)
    kl = (p * np.log(p / q)).sum(axis=1)
    np.testing.assert_allclose([report.merged.mean_kl, report.merged.max_kl], [kl.mean(), kl.max()], rtol=1e-6, atol=1e-12)
    assert report.merged.equal_top1 == (p.argmax(axis=1) == q.argmax(axis=1)).mean()
    assert report.tokens == 42 and report.merged == report.targets[dtype] and set(report.targets) == set(TARGETS)
    np.testing.assert_allclose(report.adapter_perplexity, perplexity(model), rtol=1e-5)
    np.testing.assert_allclose(report.merged.perplexity, perplexity(merged), rtol=1e-5)
    model.set_adapter(None)
    np.testing.assert_allclose(report.base_perplexity, perplexity(model), rtol=1e-5)
    model.set_adapter("default")
    assert np.array_equal(model.decoder.logits(np.array(SEGMENTS[0], np.int32)), before)


def test_targets_are_ordered_by_what_they_lose() -> None:
    _, report = merge_with_report(adapted(), "bfloat16", SEGMENTS)
    lost = [report.targets[target].mean_kl for target in ("float32", "float16", "bfloat16", "nf4")]
    assert lost == sorted(lost) and lost[0] < 1e-10 and lost[3] > 1e-5
    errors = [report.target_weight_error[target] for target in ("float32", "float16", "bfloat16", "nf4")]
    assert errors == sorted(errors) and errors[0] == 0 and errors[2] < 2**-8
    names = {layer.name for layer in report.layers}
    assert "layers.0.q_proj" in names and "embed_tokens" in names and "norm" not in names
    text = report.as_text()
    assert "bfloat16" in text and "bfloat16*" in text and "largest weight errors" in text


def test_a_quantized_base_and_an_untied_head() -> None:
    model = adapted("save_head_tied", "tied", quantize="nf4")
    merged, report = merge_with_report(model, "nf4", SEGMENTS)
    assert merged.is_quantized and "untied" in report.tied_embeddings and not merged.architecture.tied
    assert report.target_weight_error["nf4"] > 1e-3  # q and v are quantized again
    assert {layer.name: layer.relative_error for layer in report.layers}["layers.0.up_proj"] == 0
    assert "tied, as in the base" in merge_with_report(adapted("defaults", "tied"), "float32", SEGMENTS)[1].tied_embeddings


def test_float16_that_overflows_is_refused_by_name_and_listed() -> None:
    model = adapted()
    write_values(model.adapters["layers.1.q_proj"].B, 1e7, where=(0, 0))
    with pytest.raises(
        AdapterError, match=r"merge: model.layers.1.self_attn.q_proj: expected finite numbers, got .*use bfloat16"
    ):
        merge_with_report(model, "float16", SEGMENTS)
    _, report = merge_with_report(model, "float32", SEGMENTS)
    assert "float16" not in report.targets and "float16" in report.details["impossible_targets"]
    write_values(model.adapters["layers.1.q_proj"].B, np.nan, where=(0, 0))
    with pytest.raises(AdapterError, match="layers.1.self_attn.q_proj: expected finite numbers, got nan"):
        merge_with_report(model, "float32", SEGMENTS)


def test_the_default_sample(tiny_model_dir: Path) -> None:
    model = load_model(tiny_model_dir)
    model.add_adapter(r=2)
    segments = default_segments(model)
    assert len(segments) > 1 and all(1 < len(ids) <= model.context_length for ids in segments)
    assert len(default_segments(adapted())) == 1  # without a tokenizer: its own text alone
    _, report = merge_with_report(model, "float32")
    assert report.tokens <= 1024 and report.merged.equal_top1 == 1.0


def run(*args: object) -> str:
    result = CliRunner().invoke(cli, [str(arg) for arg in args], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_command_merges_several_adapters(tmp_path: Path) -> None:
    out = tmp_path / "out"
    paths = ["--adapter", GOLDEN / "first", "--adapter", GOLDEN / "third"]
    text = run("merge", "--model", GOLDEN / "tied", *paths, "--weights", 0.7, -0.4, "--output-dir", out, "--dtype", "float32")
    saved = json.loads((out / "merge_report.json").read_text())
    assert (out / "merge_report.txt").read_text() in text
    assert saved["details"]["weights"] == [0.7, -0.4] and saved["details"]["combination"] == "cat"
    assert saved["dtype"] == "float32" and saved["merged"]["equal_top1"] == 1.0
    with np.load(GOLDEN / "combine.npz") as file:
        record = dict(file)
    with np.load(GOLDEN / "golden.npz") as file:
        ids = file["ids"].astype(np.int32)
    assert np.abs(load_model(out).decoder.logits(ids) - record["cat.logits"]).max() < 1e-4
    config = tmp_path / "merge.yaml"
    config.write_text(
        f"model: {GOLDEN / 'tied'}\nadapter: {GOLDEN / 'first'}\noutput_dir: {tmp_path / 'one'}\nreport: false\n"
    )
    run("merge", "--config", config, "--weights", "0.4", "--dtype", "float16")
    one = load_model(tmp_path / "one")
    assert one.stored_dtypes["embed_tokens"] == np.float16 and not (tmp_path / "one" / "merge_report.json").exists()
    assert np.abs(one.decoder.logits(ids) - record["one.logits"]).max() < 0.02


def test_a_single_module_name_on_the_command_line_is_a_name(stories: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("Once upon a time there was a little dog. " * 20)
    run("train", "--model", stories, "--data", tmp_path / "text.txt", "--output-dir", tmp_path / "a", "--max-steps", 1,
        "--target-modules", "q_proj", "--modules-to-save", "lm_head", "--use-dora", "--trainable-token-indices", 5,
        "--modules-to-save", "norm")  # fmt: skip
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["q_proj"] and config["modules_to_save"] == ["norm"] and config["use_dora"]
    assert config["trainable_token_indices"] == [5]


def test_command_measures_on_given_data(stories: Path, tmp_path: Path) -> None:
    model = load_model(stories)
    model.add_adapter(r=2)
    model.save_adapter(tmp_path / "a")
    (tmp_path / "text.txt").write_text("Once upon a time there was a little dog. " * 20)
    run(
        "merge",
        "--model",
        stories,
        "--adapter",
        tmp_path / "a",
        "--output-dir",
        tmp_path / "m",
        "--data",
        tmp_path / "text.txt",
    )
    saved = json.loads((tmp_path / "m" / "merge_report.json").read_text())
    assert saved["sample"].endswith("text.txt") and saved["tokens"] > 100
    assert saved["base_perplexity"] == saved["adapter_perplexity"]


@pytest.mark.parametrize("target", ["peft", "mlx", "hf"])
@pytest.mark.parametrize("source", ["rslora", "mlx_dora"])
def test_export_of_adapters(source: str, target: str, tmp_path: Path) -> None:
    with np.load(GOLDEN / "golden.npz") as file:
        ids = file["ids"].astype(np.int32)
    model = load_model(GOLDEN / "tied")
    model.load_adapter(GOLDEN / source)
    run("export", GOLDEN / source, tmp_path / "out", "--to", target, "--model", GOLDEN / "tied")
    again = load_model(tmp_path / "out" if target == "hf" else GOLDEN / "tied")
    if target != "hf":
        again.load_adapter(tmp_path / "out")
    assert np.abs(again.decoder.logits(ids) - model.decoder.logits(ids)).max() < 2e-5


def test_what_lies_in_a_folder_of_a_model_makes_it_no_adapter(tmp_path: Path) -> None:
    for name, files in {
        "adapter": ["adapter_config.json"], "run": ["checkpoint-1/adapter_config.json"], "empty": [],
        "model": ["config.json"], "model with a run": ["config.json", "lora/adapter_config.json"],
    }.items():  # fmt: skip
        for file in files:
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_text("{}")
        assert is_adapter(str(tmp_path / name)) == (name in ("adapter", "run")), name


def test_export_of_models_and_its_refusals(tmp_path: Path) -> None:
    run("export", GOLDEN / "tied", tmp_path / "half", "--to", "hf", "--dtype", "bfloat16")
    assert load_model(tmp_path / "half").stored_dtypes["embed_tokens"].name == "bfloat16"
    run("export", GOLDEN / "tied", tmp_path / "f16", "--to", "hf", "--dtype", "float16")
    half = load_file(tmp_path / "f16/model.safetensors")
    assert json.loads((tmp_path / "f16/config.json").read_text())["dtype"] == "float16"
    for name, array in load_file(GOLDEN / "tied/model.safetensors").items():
        np.testing.assert_array_equal(half[name], array.astype(np.float16))
    model = load_model(GOLDEN / "tied")
    model.weights["layers.1.q_proj"] = np.full((24, 24), 70000.0, np.float32)
    with pytest.raises(
        CheckpointError, match="layers.1.self_attn.q_proj.weight: expected values that float16 can hold, got inf"
    ):
        model.save(tmp_path / "over", dtype="float16")
    assert not (tmp_path / "over").exists()
    for args, match in [
        ((GOLDEN / "tied", tmp_path / "x", "--to", "mlx"), "only an adapter"),
        ((GOLDEN / "rslora", tmp_path / "x", "--to", "mlx"), "give --model PATH"),
        ((GOLDEN / "rslora", tmp_path / "x", "--to", "peft", "--model", tmp_path / "none"), "folder of the base model"),
        ((GOLDEN / "rslora", tmp_path / "x", "--to", "peft", "--model", GOLDEN / "tied", "--dtype", "nf4"), "got 'nf4'"),
        *(
            ((GOLDEN / source, tmp_path / "x", "--to", target, "--dtype", "q8_0"), "'q8_0' for a model with --to gguf only")
            for source, target in (("tied", "hf"), ("tied", "mlx"), ("tied", "peft"), ("rslora", "gguf"))
        ),
    ]:
        with pytest.raises(ValueError, match=match):
            run("export", *args)
    assert not (tmp_path / "x").exists()
