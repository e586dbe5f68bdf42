"""Make gguf_families.json: what llama.cpp's own converter writes for a small model of every family.

Needs torch, transformers and a source tree of llama.cpp (not needed by the tests themselves):

    python tests/golden/make_gguf_families.py PATH/TO/llama.cpp

The weights are `weight_of(name, shape)`, so that the test can make the same folder. Per family: the config.json, the metadata
of the file, and for each tensor its shape and two sums that any change of order or value would change.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np

SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 40, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
GPT2 = {
    "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "n_ctx": 128, "vocab_size": 40, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CASES: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("Llama", {}),
    "llama3": ("Llama", {"rope_parameters": LLAMA3 | {"rope_theta": 5e5}, "attention_bias": True, "mlp_bias": True}),
    "tied": ("Llama", {"tie_word_embeddings": True, "head_dim": 16}),
    "linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}),
    "yarn": (
        "Llama",
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 32}},
    ),
    "mistral": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "gemma": ("Gemma", {"head_dim": 16}),
    "gemma2": ("Gemma2", {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16}),
    "gemma3": ("Gemma3", {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16, "num_hidden_layers": 7}),
    "phi3": ("Phi3", {}),
    "olmo2": ("Olmo2", {}),
    "smollm3": ("SmolLM3", {"num_hidden_layers": 4}),
    "gpt2": ("GPT2", {}),
    "granite": (
        "Granite",
        {"attention_multiplier": 0.3, "embedding_multiplier": 2.0, "residual_multiplier": 0.5, "logits_scaling": 3.0},
    ),
}


def weight_of(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A random tensor that depends on its name only."""
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)


def sums_of(values: np.ndarray) -> list[float]:
    """Two sums, weighted by the index and by its cosine."""
    flat = values.astype(np.float64).reshape(-1)
    index = np.arange(flat.size)
    return [float(flat @ (index + 1.0)), float(flat @ np.cos(index))]


def convert(name: str, folder: Path) -> dict[str, object]:
    import gguf
    import torch
    import transformers
    from conversion import get_model_class
    from conversion.base import ModelBase

    kind, changes = CASES[name]
    if kind == "GPT2":
        config = transformers.GPT2Config(**GPT2)
        model = transformers.GPT2LMHeadModel(config).float()
    else:
        config = getattr(transformers, kind + ("TextConfig" if kind == "Gemma3" else "Config"))(**(SIZES | changes))
        model = getattr(transformers, f"{kind}ForCausalLM")(config).float()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(weight_of(key, tuple(parameter.shape))))
    model.save_pretrained(folder)
    shutil.copy(Path(__file__).parents[2] / "python/lora_c/base_model/tokenizer.json", folder)
    values = ModelBase.load_hparams(folder, False)
    base = get_model_class(values["architectures"][0])

    class WithoutTokenizer(base):
        model_arch = base.model_arch

        def set_vocab(self) -> None:
            self.gguf_writer.add_tokenizer_model("none")

    with torch.inference_mode():
        WithoutTokenizer(folder, gguf.LlamaFileType.ALL_F32, folder / "model.gguf", hparams=None).write()
    reader = gguf.GGUFReader(folder / "model.gguf")
    metadata = {
        f.name: f.contents() for f in reader.fields.values() if not f.name.startswith(("GGUF.", "general.", "tokenizer."))
    }
    tensors = {t.name: [list(t.data.shape), *sums_of(np.array(t.data))] for t in reader.tensors}
    config_json = json.loads((folder / "config.json").read_text())
    architecture = reader.get_field("general.architecture").contents()
    return {"config": config_json, "architecture": architecture, "metadata": metadata, "tensors": tensors}


def main() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.path[:0] = [sys.argv[1], str(Path(sys.argv[1]) / "gguf-py")]
    logging.disable(logging.WARNING)
    record = {}
    for name in CASES:
        with tempfile.TemporaryDirectory() as folder:
            record[name] = convert(name, Path(folder))
    path = Path(__file__).with_name("gguf_families.json")
    path.write_text(json.dumps(record, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
