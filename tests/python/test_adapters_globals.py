"""Adapters on the embedding and on the head against PEFT: files, logits, gradients, merges, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lora_c import _core, get_num_threads
from lora_c.configs import LoraConfig
from lora_c.errors import AdapterError
from lora_c.model.merge_report import merge_with_report
from lora_c.model.model import Model
from lora_c.model.opening import load_model

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = ["head", "embedding", "both", "head_tied", "embedding_tied"]
PREFIX = "base_model.model."


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "global_adapters/golden.npz") as file, np.load(GOLDEN / "adapters/golden.npz") as other:
        return dict(file) | {"ids": other["ids"].astype(np.int32)}


def base_of(name: str) -> Path:
    return GOLDEN / "adapters" / ("tied" if name.endswith("tied") else "biased")


def adapted(name: str, **options: object) -> Model:
    model = load_model(base_of(name), **options)  # type: ignore[arg-type]
    model.load_adapter(GOLDEN / "global_adapters" / name)
    return model


def step(model: Model, ids: np.ndarray) -> float:
    n = len(ids) - 1
    weight = np.ones(len(ids), np.float32)
    weight[-1] = 0
    for parameter in model.trainable_parameters():
        parameter.zero_grad()
    cu = np.array([0, len(ids)], np.int32)
    return model.decoder.forward_backward(ids, cu, np.roll(ids, -1), weight, grad_scale=1 / n, dropout_step=0) / n


def expected_gradient(golden: dict[str, np.ndarray], name: str, parameter: str) -> np.ndarray:
    """An embedding's A and B are the transposes of PEFT's lora_embedding_B and lora_embedding_A."""
    if parameter.startswith(PREFIX + "model.embed_tokens."):
        other = {"lora_A.weight": "lora_embedding_B", "lora_B.weight": "lora_embedding_A"}
        module, part = parameter.split(".lora_")
        return golden[f"{name}.grad.{module}.{other['lora_' + part]}"].T
    return golden[f"{name}.grad.{parameter}"]


@pytest.mark.parametrize("name", CASES)
def test_logits_loss_and_gradients(name: str, golden: dict[str, np.ndarray]) -> None:
    model = adapted(name)
    before = _core.get_isa()
    try:
        for rung in _core.supported_isas():
            _core.set_isa(rung)
            assert np.abs(model.decoder.logits(golden["ids"]) - golden[f"{name}.logits"]).max() < 1e-4, rung
            assert step(model, golden["ids"]) == pytest.approx(golden[f"{name}.loss"], abs=1e-5)
            parameters = model.trainable_parameters()
            assert len(parameters) == sum(key.startswith(f"{name}.grad.") for key in golden)
            for parameter in parameters:
                want = expected_gradient(golden, name, parameter.name)
                assert np.linalg.norm(parameter.grad - want) <= 1e-4 * np.linalg.norm(want), (rung, parameter.name)
    finally:
        _core.set_isa(before)


@pytest.mark.parametrize("name", CASES)
def test_files_hold_what_peft_wrote(name: str, tmp_path: Path) -> None:
    """All but the base's own embedding or head, which PEFT writes along."""
    model = adapted(name)
    model.save_adapter(tmp_path / "a")
    theirs = load_file(GOLDEN / "global_adapters" / name / "adapter_model.safetensors")
    ours = load_file(tmp_path / "a/adapter_model.safetensors")
    assert set(theirs) - set(ours) == {key for key in theirs if ".base_layer." in key}
    for key, array in ours.items():
        np.testing.assert_array_equal(array, theirs[key], err_msg=key)
    again = load_model(base_of(name))
    again.load_adapter(tmp_path / "a")
    ids = np.arange(3, 20, dtype=np.int32)
    assert np.array_equal(again.decoder.logits(ids), model.decoder.logits(ids))


@pytest.mark.parametrize("name", CASES)
def test_merge_unties_what_the_adapter_tells_apart(name: str, golden: dict[str, np.ndarray], tmp_path: Path) -> None:
    model = adapted(name)
    for merged in (model.merge(), merge_with_report(model, "float32", [golden["ids"].tolist()])[0]):
        assert not merged.architecture.tied
        assert np.abs(merged.decoder.logits(golden["ids"]) - golden[f"{name}.logits"]).max() < 1e-4
    merged.save(tmp_path / "m")
    assert json.loads((tmp_path / "m/config.json").read_text())["tie_word_embeddings"] is False
    assert np.array_equal(load_model(tmp_path / "m").decoder.logits(golden["ids"]), merged.decoder.logits(golden["ids"]))
    for dtype in ("nf4", "bfloat16", "q8_0"):
        assert np.isfinite(model.merge(dtype=dtype).decoder.logits(golden["ids"])).all()


@pytest.mark.parametrize("name", CASES)
def test_swapped_off_and_on_and_decoded(name: str, golden: dict[str, np.ndarray]) -> None:
    ids = golden["ids"]
    plain = load_model(base_of(name)).decoder.logits(ids)
    model = adapted(name)
    with_it = model.decoder.logits(ids)
    model.set_adapter(None)
    assert np.array_equal(model.decoder.logits(ids), plain) and not np.allclose(plain, with_it)
    model.set_adapter("default")
    assert np.array_equal(model.decoder.logits(ids), with_it)
    cache = model.decoder.new_cache(len(ids))
    for i, token in enumerate(ids):
        np.testing.assert_allclose(model.decoder.decode(cache, [int(token)])[0], with_it[i], atol=2e-5)


@pytest.mark.parametrize("options", [{"quantize": "nf4"}, {"dtype": "bfloat16"}])
def test_on_a_base_of_fewer_bits(options: dict[str, str], golden: dict[str, np.ndarray]) -> None:
    model = adapted("both", **options)
    dense = {name: np.asarray(model.dense_weight(name), np.float32) for name in ("embed_tokens", "lm_head")}
    again = load_model(base_of("both"), **options)  # type: ignore[arg-type]
    for name, weight in dense.items():
        layer = model.adapters[name]
        again.decoder.set_weight(name, weight + layer.scale * layer.B.data @ layer.A.data)
    np.testing.assert_allclose(again.decoder.logits(golden["ids"]), model.decoder.logits(golden["ids"]), atol=1e-4)


def test_threads_and_recomputation_change_no_bit(golden: dict[str, np.ndarray]) -> None:
    threads = _core.get_num_threads()
    runs = []
    try:
        for n, recompute in ((1, "none"), (3, "none"), (2, "layer"), (2, "attention")):
            _core.set_num_threads(n)
            model = adapted("both")
            model.decoder.recompute = recompute
            runs.append((step(model, golden["ids"]), [p.grad.tobytes() for p in model.trainable_parameters()]))
    finally:
        _core.set_num_threads(threads)
    assert all(run == runs[0] for run in runs[1:])


def test_fresh_ones_change_nothing_and_learn(stories: Path, tmp_path: Path) -> None:
    from lora_c import TrainConfig, Trainer, load_dataset

    (tmp_path / "t.txt").write_text("Once upon a time there was a little dog. " * 40)
    model = load_model(stories, quantize="nf4")
    before = model.decoder.logits(np.arange(3, 40, dtype=np.int32))
    model.add_adapter(r=4, target_modules=["embed_tokens", "lm_head", "q_proj"], lora_dropout=0.0)
    assert np.array_equal(model.decoder.logits(np.arange(3, 40, dtype=np.int32)), before)
    data = load_dataset(str(tmp_path / "t.txt"), model.tokenizer)
    config = TrainConfig(output_dir=str(tmp_path / "out"), max_steps=6, learning_rate=1e-2, val_fraction=0.0)
    Trainer(model, data, config).train()
    for name in ("embed_tokens", "lm_head"):
        assert np.abs(model.adapters[name].B.data).max() > 0
    rows = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < losses[0]


def test_what_is_refused(tiny_model_dir: Path, tmp_path: Path, golden: dict[str, np.ndarray]) -> None:
    model = load_model(tiny_model_dir)
    for options, match in [
        ({"use_dora": True}, "use_dora unset with an adapter on 'lm_head'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights unset"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices unset"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save|target_modules: expected to match"),
    ]:
        with pytest.raises(AdapterError, match=match):
            model.add_adapter(LoraConfig(target_modules=["lm_head"], **options))
    with pytest.raises(AdapterError, match="lora_dropout: expected 0 with an adapter on the head, got 0.1"):
        model.add_adapter(r=2, target_modules=["lm_head", "q_proj"], lora_dropout=0.1)
    model.add_adapter(r=2, target_modules=["lm_head", "q_proj"])
    model.save_adapter(tmp_path / "a")
    config = tmp_path / "a/adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_dropout": 0.1}))
    dropping = load_model(tiny_model_dir)
    dropping.load_adapter(tmp_path / "a")
    dropping.decoder.logits(np.arange(3, 9, dtype=np.int32))  # no dropout outside training
    with pytest.raises(ValueError, match="lm_head: expected lora_dropout 0 for a trained adapter on it, got 0.1"):
        step(dropping, np.arange(3, 9, dtype=np.int32))
    for format in ("mlx", "gguf"):
        with pytest.raises(AdapterError, match="lm_head|the head"):
            model.save_adapter(tmp_path / "x", format=format)  # type: ignore[arg-type]
    shutil.copytree(GOLDEN / "global_adapters/head_tied", tmp_path / "tying")
    config = tmp_path / "tying/adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"ensure_weight_tying": True}))
    with pytest.raises(AdapterError, match="ensure_weight_tying: expected it unset with an adapter on lm_head"):
        load_model(base_of("head_tied")).load_adapter(tmp_path / "tying")
    tied = adapted("head_tied")
    with pytest.raises(AdapterError, match="embedding and head share"):
        tied.merge_adapter()
    head = load_model(tiny_model_dir, trainable="head")
    with pytest.raises(AdapterError, match="expected matrices that are frozen, got lm_head"):
        head.add_adapter(r=2, target_modules=["lm_head"])
    a, b = (_core.Parameter(np.ones(shape, np.float32), device=head.device) for shape in ((2, 32), (64, 2)))
    head.decoder.set_adapter("lm_head", a, b, scale=1.0)
    with pytest.raises(ValueError, match="lm_head: expected a frozen weight under an adapter"):
        head.decoder.logits(np.arange(3, 9, dtype=np.int32))


def test_a_base_that_the_adapter_brings_along(tmp_path: Path, golden: dict[str, np.ndarray]) -> None:
    """Of the model's own value it says nothing; another one counts, but not where embedding and head share it."""
    for name in ("head", "head_tied"):
        shutil.copytree(GOLDEN / "global_adapters" / name, tmp_path / name)
        file = tmp_path / name / "adapter_model.safetensors"
        tensors = load_file(file)
        tensors[PREFIX + "lm_head.base_layer.weight"] *= 2
        save_file(tensors, file)
    model = load_model(base_of("head"))
    model.load_adapter(tmp_path / "head")
    other = adapted("head")
    layer, weight = other.adapters["lm_head"], np.asarray(other.weights["lm_head"])
    other.decoder.remove_adapter("lm_head")
    other.decoder.set_weight("lm_head", 2 * weight + layer.scale * layer.B.data @ layer.A.data)
    np.testing.assert_allclose(model.decoder.logits(golden["ids"]), other.decoder.logits(golden["ids"]), atol=1e-4)
    with pytest.raises(AdapterError, match="lm_head: expected the model's own weight"):
        load_model(base_of("head_tied")).load_adapter(tmp_path / "head_tied")


def test_several_at_once(make_model: Callable[..., Path], golden: dict[str, np.ndarray]) -> None:
    model = adapted("both")
    model.load_adapter(GOLDEN / "global_adapters/head", name="second")
    model.add_weighted_adapter(["default", "second"], [0.5, 2.0], "sum", "cat")
    model.set_adapter("sum")
    ids = golden["ids"]
    parts = [adapted("both").adapters, adapted("head").adapters]
    again = load_model(base_of("both"))
    for name in {**parts[0], **parts[1]}:
        whole = np.asarray(again.weights[name], np.float32)
        for factor, part in zip((0.5, 2.0), parts, strict=True):
            if name in part:
                whole = whole + factor * part[name].scale * part[name].B.data @ part[name].A.data
        again.decoder.set_weight(name, whole.astype(np.float32))
    np.testing.assert_allclose(model.decoder.logits(ids), again.decoder.logits(ids), atol=1e-4)


@pytest.mark.parametrize(("name", "modules"), [("head", 1), ("both", 2)])
@pytest.mark.parametrize("is_trainable", [True, False])
def test_a_forecast_knows_the_whole_matrices(name: str, modules: int, is_trainable: bool) -> None:
    """W + scale B A in float32, and its gradient where A and B train; another device works on A and B in memory of its own."""
    model = load_model(base_of(name))
    before = model.decoder.scratch_bytes(8)
    model.load_adapter(GOLDEN / "global_adapters" / name, is_trainable=is_trainable)
    wanted = modules * (1 + is_trainable) * 4 * model.config["vocab_size"] * model.config["hidden_size"]
    grown = model.decoder.scratch_bytes(8) - before
    if is_trainable and model.device == "cpu":  # and a slice of logits for each token and thread
        wanted += 4 * 4096 * (8 + get_num_threads())
        assert wanted <= grown < 1.02 * wanted
    else:
        assert grown == wanted or (model.device != "cpu" and wanted < grown < 1.1 * wanted)
