"""GGUF files: ours read by the gguf package, transformers and llama.cpp, theirs here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from peer_models import IDS, close, peer_logits

import lora_c as lc
from lora_c.gguf import write_model


def load_peer(path: Path) -> torch.nn.Module:
    """The model as transformers reads it from a GGUF file, in float32."""
    return transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0"])
def test_our_model_there(llama_folder, tmp_path: Path, kind: Any) -> None:
    """The gguf package decodes the same numbers; transformers computes the same logits from the file."""
    model = lc.load_model(llama_folder())
    write_model(tmp_path / "ours.gguf", model, kind)
    again = lc.load_model(tmp_path / "ours.gguf")
    reader = gguf.GGUFReader(tmp_path / "ours.gguf")
    assert reader.get_field("general.architecture").contents() == "llama"
    tensors = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    down = again.weights["layers.1.down_proj"]
    np.testing.assert_array_equal(
        tensors["blk.1.ffn_down.weight"], down if isinstance(down, np.ndarray) else down.dequantize()
    )
    close(again.decoder.logits(IDS), peer_logits(load_peer(tmp_path / "ours.gguf")))


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_their_blocks_here(llama_folder, tmp_path: Path, kind: str) -> None:
    """Matrices quantized by the gguf package in a file of its writer; transformers reads the same file."""
    write_model(tmp_path / "plain.gguf", lc.load_model(llama_folder()), "F32")
    source = gguf.GGUFReader(tmp_path / "plain.gguf")
    writer = gguf.GGUFWriter(tmp_path / "theirs.gguf", "llama")
    for field in source.fields.values():
        if field.name.startswith("llama."):
            writer.add_key_value(field.name, field.contents(), field.types[0])
    quantization = gguf.GGMLQuantizationType[kind]
    for tensor in source.tensors:
        data = np.array(tensor.data)
        if tensor.name.startswith("blk.") and data.ndim == 2:
            writer.add_tensor(tensor.name, gguf.quantize(data, quantization), raw_dtype=quantization)
        else:
            writer.add_tensor(tensor.name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model = lc.load_model(tmp_path / "theirs.gguf")
    assert model.weights["layers.0.q_proj"].type == kind
    close(model.decoder.logits(IDS), peer_logits(load_peer(tmp_path / "theirs.gguf")))


def test_our_adapter_there(llama_folder, tmp_path: Path) -> None:
    """llama.cpp with our adapter on our F32 file computes what the adapted model computes."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, which is built from source")
    model = lc.load_model(llama_folder())
    write_model(tmp_path / "base.gguf", model, "F32")
    model.add_adapter(lc.LoraConfig(r=4, lora_alpha=8, use_rslora=True, rank_pattern={"q_proj": 6}))
    rng = np.random.default_rng(0)
    for parameter in model.trainable_parameters():
        parameter.data[...] = rng.standard_normal(parameter.shape) * 0.1
    model.save_adapter(tmp_path / "adapter.gguf", format="gguf")
    want = model.decoder.logits(IDS)
    write_model(tmp_path / "merged.gguf", model.merge(), "F32")
    f32 = 0  # GGML_TYPE_F32: its key-value cache rounds to float16 otherwise
    options = {"n_ctx": 128, "logits_all": True, "verbose": False, "type_k": f32, "type_v": f32}
    for files in ({"model_path": "base.gguf", "lora_path": "adapter.gguf"}, {"model_path": "merged.gguf"}):
        peer = llama_cpp.Llama(**{key: str(tmp_path / name) for key, name in files.items()}, **options)
        peer.eval(IDS.tolist())
        close(want, np.array(peer.scores[: len(IDS)]))


def test_our_gpt2_there(tmp_path: Path) -> None:
    """LayerNorm, learned positions, fused and transposed matrices."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, which is built from source")
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=96, n_positions=64, initializer_range=0.2)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    theirs.save_pretrained(tmp_path / "base")
    model = lc.load_model(tmp_path / "base")
    write_model(tmp_path / "model.gguf", model, "F32")
    close(lc.load_model(tmp_path / "model.gguf").decoder.logits(IDS), peer_logits(theirs))
    options = {"n_ctx": 64, "logits_all": True, "verbose": False, "type_k": 0, "type_v": 0}
    peer = llama_cpp.Llama(str(tmp_path / "model.gguf"), **options)
    peer.eval(IDS.tolist())
    # llama.cpp looks GELU up in a table of float16 values.
    close(np.array(peer.scores[: len(IDS)]), peer_logits(theirs), 2e-3)


def test_our_tokenizer_there(tmp_path: Path) -> None:
    """The packaged model in llama.cpp: the same token ids, and the same greedy text."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, which is built from source")
    model = lc.load_model(Path(lc.__file__).parent / "base_model")
    write_model(tmp_path / "model.gguf", model, "F32")
    peer = llama_cpp.Llama(str(tmp_path / "model.gguf"), n_ctx=256, verbose=False, type_k=0, type_v=0)
    for line in ["Hello world, it's 12345 o'clock", "  spaces\n\n\tand tabs ", "ÀÉÎ 日本語 🙂", "I'LL don't"]:
        ids = peer.tokenize(line.encode(), add_bos=False, special=True)
        assert ids == model.tokenizer.encode(line, add_special_tokens=False)
    prompt = "Once upon a time"
    answer = peer(prompt, max_tokens=24, temperature=0.0)["choices"][0]["text"]
    assert answer == model.generate(prompt, max_new_tokens=24, precision="exact")
