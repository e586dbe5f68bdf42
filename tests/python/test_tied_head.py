"""tie_word_embeddings against the head in the file: the file's is used, a copy of the embedding stays tied."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lora_c.checkpoints.safetensors_file import SafetensorsFile
from lora_c.checkpoints.safetensors_writer import TensorEntry, write_model_files
from lora_c.configs import LoraConfig
from lora_c.errors import CheckpointError
from lora_c.inspection import inspect_path
from lora_c.model.opening import load_model
from lora_c.notices import LoraCWarning

IDS = np.arange(3, 20, dtype=np.int32)
USED = "the file has another in .*lm_head.weight; the one in the file is used"


def change(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps(config))


def rewrite(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def contradicting(make_model) -> tuple[Path, np.ndarray]:
    """A folder that calls a head of its own tied, and the logits with that head."""
    folder = make_model()
    expected = load_model(folder).decoder.logits(IDS)
    change(folder, tie_word_embeddings=True)
    return folder, expected


@pytest.mark.parametrize("trainable", ["none", "head", "full"])
def test_a_head_that_differs_is_used_and_said_in_one_line(contradicting, trainable) -> None:
    folder, expected = contradicting
    with pytest.warns(LoraCWarning, match=USED) as notices:
        model = load_model(folder, trainable=trainable)
    assert len(notices) == 1
    assert np.array_equal(model.decoder.logits(IDS), expected) and not model.architecture.tied


def test_what_is_saved_says_that_it_is_not_tied(contradicting, tmp_path: Path) -> None:
    folder, expected = contradicting
    with pytest.warns(LoraCWarning, match=USED):
        model = load_model(folder)
    model.save(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["tie_word_embeddings"] is False
    assert np.array_equal(load_model(tmp_path / "again").decoder.logits(IDS), expected)
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj", "lm_head"], lora_dropout=0.0))
    model.save_adapter(tmp_path / "adapter")
    other = load_model(tmp_path / "again")
    other.load_adapter(tmp_path / "adapter")
    assert np.array_equal(other.decoder.logits(IDS), model.decoder.logits(IDS))


def test_in_shards_and_with_the_weights_quantized(contradicting) -> None:
    folder, expected = contradicting
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    write_model_files(folder, [TensorEntry.of(name, array) for name, array in tensors.items()], 20_000)
    with pytest.warns(LoraCWarning, match=USED):
        assert np.array_equal(load_model(folder).decoder.logits(IDS), expected)
    with pytest.warns(LoraCWarning, match=USED):
        assert not load_model(folder, quantize="nf4").architecture.tied


def test_a_quantized_head_beside_a_tied_embedding_is_used(make_model, tmp_path: Path) -> None:
    from lora_c._core import NF4Tensor

    model = load_model(make_model(), quantize="nf4")
    model.weights["lm_head"] = NF4Tensor.quantize(np.asarray(model.weights["lm_head"]))
    model.parts.set_weight("lm_head", model.weights["lm_head"])
    model.save(tmp_path / "q")
    change(tmp_path / "q", tie_word_embeddings=True)
    with pytest.warns(LoraCWarning, match=USED):
        again = load_model(tmp_path / "q")
    assert isinstance(again.weights["lm_head"], NF4Tensor)
    assert np.array_equal(again.decoder.logits(IDS), model.decoder.logits(IDS))


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_a_copy_of_the_embedding_stays_tied_in_silence(make_model, dtype: Any) -> None:
    folder = make_model(dtype=ml_dtypes.bfloat16, tie_word_embeddings=True)
    expected = load_model(folder).decoder.logits(IDS)
    tensors = SafetensorsFile(folder / "model.safetensors")
    arrays = {name: np.array(tensors.read(name)) for name in tensors.tensors}
    head = arrays["model.embed_tokens.weight"].astype(dtype)
    entries = [TensorEntry.of(name, array) for name, array in (arrays | {"lm_head.weight": head}).items()]
    write_model_files(folder, entries)
    model = load_model(folder)
    assert model.architecture.tied and np.array_equal(model.decoder.logits(IDS), expected)


def test_the_head_stands_for_an_embedding_that_the_file_leaves_out(make_model) -> None:
    folder = make_model(tie_word_embeddings=True)
    expected = load_model(folder).decoder.logits(IDS)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    rewrite(folder, tensors)
    assert np.array_equal(load_model(folder).decoder.logits(IDS), expected)


def test_a_head_that_is_called_untied_and_missing_is_refused_with_the_way_out(make_model) -> None:
    folder = make_model(tie_word_embeddings=True)
    change(folder, tie_word_embeddings=False)
    way_out = 'lm_head.weight; where the head is the embedding, .*"tie_word_embeddings": true'
    with pytest.raises(CheckpointError, match=way_out):
        load_model(folder)


@pytest.mark.parametrize("shape", [(64,), (32, 32)])
def test_a_head_of_another_shape_is_refused(make_model, shape: tuple[int, ...]) -> None:
    folder = make_model(tie_word_embeddings=True)
    rewrite(folder, load_file(folder / "model.safetensors") | {"lm_head.weight": np.ones(shape, np.float32)})
    with pytest.warns(LoraCWarning, match=USED), pytest.raises(CheckpointError, match="lm_head.weight: expected shape"):
        load_model(folder)


@pytest.mark.parametrize("name", ["lm_head.weight", "language_model.lm_head.weight"])
@pytest.mark.parametrize("family", ["gemma3", "gemma3_conditional"])
def test_every_spelling_of_the_head(family: str, name: str, tmp_path: Path) -> None:
    with np.load(Path(__file__).parents[1] / "golden" / "families" / f"{family}.npz") as file:
        record = dict(file)
    stored = {key[7:]: value.view(ml_dtypes.bfloat16) for key, value in record.items() if key.startswith("tensor.")}
    tensors = {key: value.astype(np.float32) for key, value in stored.items()}
    tensors.pop("lm_head.weight", None)
    embedding = next(value for key, value in tensors.items() if key.endswith("embed_tokens.weight"))
    tmp_path.joinpath("config.json").write_bytes(record["config"].tobytes())
    rewrite(tmp_path, tensors | {name: embedding})
    tied = load_model(tmp_path, progress=False)
    assert tied.architecture.tied
    rewrite(tmp_path, tensors | {name: embedding[::-1].copy()})
    with pytest.warns(LoraCWarning, match=USED):
        own = load_model(tmp_path, progress=False)
    assert np.array_equal(own.weights["lm_head"], embedding[::-1])
    np.testing.assert_allclose(own.decoder.logits(record["ids"]), tied.decoder.logits(record["ids"])[:, ::-1], atol=1e-5)


def test_inspect_says_what_loading_says(contradicting) -> None:
    with pytest.warns(LoraCWarning, match=USED):
        assert not inspect_path(contradicting[0]).problems
