"""The text model of a model of texts and images: what is read, what it is called, and what of an adapter is refused."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from device_values import write_values
from safetensors.numpy import load_file, save_file

from lora_c.errors import AdapterError, CheckpointError
from lora_c.families.architectures import architecture_of
from lora_c.families.multimodal import text_config
from lora_c.gguf import write_model
from lora_c.inspection import inspect_path
from lora_c.model.model import Model
from lora_c.model.opening import load_model

GOLDEN = Path(__file__).parents[1] / "golden" / "families" / "gemma3_conditional.npz"
PREFIX = "base_model.model.model.language_model.layers."
VISION = "base_model.model.model.vision_tower.encoder.layers.0.self_attn.q_proj."


@pytest.fixture
def record() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as file:
        return dict(file)


@pytest.fixture
def folder(record: dict[str, np.ndarray], tmp_path: Path) -> Path:
    """The folder as transformers saved it, with the tower for images."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_bytes(record["config"].tobytes())
    tensors = {key[7:]: bits.view(ml_dtypes.bfloat16) for key, bits in record.items() if key.startswith("tensor.")}
    save_file({name: array.astype(np.float32) for name, array in tensors.items()}, path / "model.safetensors")
    return path


def adapted(folder: Path, record: dict[str, np.ndarray]) -> Model:
    model = load_model(folder)
    model.add_adapter(r=4, lora_alpha=8)
    for parameter in model.trainable_parameters():
        write_values(parameter, record["adapter." + parameter.name].view(ml_dtypes.bfloat16))
    return model


def test_one_line_says_what_is_left_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_model(folder)
    assert capsys.readouterr().err.endswith("only the text model is read, the part for images is left out\n")
    report = inspect_path(folder)
    assert report.usable and report.facts["left out"].endswith("tensors of the part for images")


@pytest.mark.parametrize("spelling", ["model.language_model.", "language_model.model."])
def test_names_of_every_release(folder: Path, record: dict[str, np.ndarray], spelling: str) -> None:
    file = folder / "model.safetensors"
    save_file({k.replace("language_model.model.", spelling): v for k, v in load_file(file).items()}, file)
    assert any(name.startswith(spelling) for name in load_file(file))
    assert np.abs(load_model(folder).decoder.logits(record["ids"]) - record["logits"]).max() < 1e-4


def test_what_the_config_leaves_out_is_what_transformers_assumes() -> None:
    """The config.json of a released model gives a few sizes only."""
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "eos_token_id": [1, 106],
        "torch_dtype": "bfloat16", "mm_tokens_per_image": 256, "vision_config": {"hidden_size": 1152},
        "text_config": {
            "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
        },
    }  # fmt: skip
    sizes = architecture_of(config).decoder_kwargs
    assert (sizes["vocab_size"], sizes["num_attention_heads"], sizes["num_key_value_heads"]) == (262208, 8, 4)
    assert (sizes["head_dim"], sizes["max_position_embeddings"], sizes["tie_word_embeddings"]) == (256, 131072, True)
    assert sizes["sliding_window"] == [1024 if (n + 1) % 6 else 0 for n in range(34)]
    assert sizes["attention_scale"] == 256**-0.5 and text_config(config)["eos_token_id"] == [1, 106]


def test_saved_alone_it_is_a_text_model(folder: Path, record: dict[str, np.ndarray], tmp_path: Path) -> None:
    load_model(folder).save(tmp_path / "text")
    config = json.loads((tmp_path / "text/config.json").read_text())
    assert config["architectures"] == ["Gemma3ForCausalLM"] and config["model_type"] == "gemma3_text"
    assert all(name.startswith("model.layers.") or name in ("model.embed_tokens.weight", "model.norm.weight")
               for name in load_file(tmp_path / "text/model.safetensors"))  # fmt: skip
    again = load_model(tmp_path / "text")
    assert np.abs(again.decoder.logits(record["ids"]) - record["logits"]).max() < 1e-4


def test_as_gguf(folder: Path, tmp_path: Path) -> None:
    """A file does not say which layers have a window: a model whose are others than every sixth is refused."""
    with pytest.raises(CheckpointError, match="sliding_window: expected"):
        write_model(tmp_path / "text.gguf", load_model(folder), "F32")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= {"layer_types": ["sliding_attention"] * 2, "query_pre_attn_scalar": 16}
    (folder / "config.json").write_text(json.dumps(config))
    model = load_model(folder)
    write_model(tmp_path / "text.gguf", model, "F32")
    again = load_model(tmp_path / "text.gguf")
    ids = np.arange(3, 40, dtype=np.int32)
    assert again.config["architectures"] == ["Gemma3ForCausalLM"]
    np.testing.assert_allclose(again.decoder.logits(ids), model.decoder.logits(ids), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_quantized_weights_have_the_names_of_the_file(folder: Path, tmp_path: Path, quantize: str | None) -> None:
    model = load_model(folder, quantize="nf4", progress=False)
    model.save(tmp_path / "q")
    weights = load_file(tmp_path / "q/model.safetensors")
    save_file({"language_model." + name: array for name, array in weights.items()}, tmp_path / "q/model.safetensors")
    text = json.loads((tmp_path / "q/config.json").read_text())
    outer = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": text}
    (tmp_path / "q/config.json").write_text(json.dumps(outer | {"quantization_config": text.pop("quantization_config")}))
    again = load_model(tmp_path / "q", quantize=quantize)
    ids = np.arange(3, 30, dtype=np.int32)
    assert again.is_quantized and np.array_equal(again.decoder.logits(ids), model.decoder.logits(ids))


def test_adapters_have_the_names_that_peft_gives_them(folder: Path, record: dict[str, np.ndarray], tmp_path: Path) -> None:
    model = adapted(folder, record)
    expected = model.decoder.logits(record["ids"])
    model.save_adapter(tmp_path / "peft")
    tensors = load_file(tmp_path / "peft/adapter_model.safetensors")
    assert set(tensors) == {key[8:] for key in record if key.startswith("adapter.")}
    config = json.loads((tmp_path / "peft/adapter_config.json").read_text())
    assert config["target_modules"].startswith(r"model\.language_model\.layers\..*\.(")  # not those of the tower for images
    model.save_adapter(tmp_path / "mlx", format="mlx")
    assert all(k.startswith("language_model.model.layers.") for k in load_file(tmp_path / "mlx/adapters.safetensors"))
    model.save_adapter(tmp_path / "a.gguf", format="gguf")
    for name in ("peft", "mlx", "a.gguf"):
        again = load_model(folder)
        again.load_adapter(tmp_path / name)
        np.testing.assert_allclose(again.decoder.logits(record["ids"]), expected, atol=1e-5)


@pytest.mark.parametrize("spelling", ["model.", "model.language_model.", "language_model.model."])
@pytest.mark.parametrize("alone", [False, True])
def test_adapters_of_every_release(
    folder: Path, record: dict[str, np.ndarray], tmp_path: Path, spelling: str, alone: bool
) -> None:
    """Also an adapter of the whole model on the text model alone, and the other way round."""
    model = adapted(folder, record)
    model.save_adapter(tmp_path / "a")
    file, config = tmp_path / "a/adapter_model.safetensors", tmp_path / "a/adapter_config.json"
    save_file({k.replace("model.language_model.", spelling): v for k, v in load_file(file).items()}, file)
    names = {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]}
    config.write_text(json.dumps(json.loads(config.read_text()) | names))
    if alone:
        load_model(folder).save(tmp_path / "text")
    base = load_model(tmp_path / "text" if alone else folder)
    base.load_adapter(tmp_path / "a")
    np.testing.assert_allclose(base.decoder.logits(record["ids"]), model.decoder.logits(record["ids"]), atol=1e-5)


def test_what_peft_adds_to_the_tower_for_images(folder: Path, record: dict[str, np.ndarray], tmp_path: Path) -> None:
    """Untrained it changes nothing; trained it is refused by name."""
    model = adapted(folder, record)
    model.save_adapter(tmp_path / "a")
    file = tmp_path / "a/adapter_model.safetensors"
    tensors = load_file(file)
    vision = {VISION + "lora_A.weight": np.ones((4, 8), np.float32), VISION + "lora_B.weight": np.zeros((8, 4), np.float32)}
    save_file(tensors | vision, file)
    again = load_model(folder)
    again.load_adapter(tmp_path / "a")
    np.testing.assert_allclose(again.decoder.logits(record["ids"]), model.decoder.logits(record["ids"]), atol=1e-5)
    vision[VISION + "lora_B.weight"][0, 0] = 1
    save_file(tensors | vision, file)
    with pytest.raises(AdapterError, match="vision_tower.*also changes the part for images"):
        load_model(folder).load_adapter(tmp_path / "a")


def test_a_text_config_that_is_none(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    for bad in ([], 3, None):
        (folder / "config.json").write_text(json.dumps(config | {"text_config": bad}))
        with pytest.raises(CheckpointError):
            load_model(folder)
