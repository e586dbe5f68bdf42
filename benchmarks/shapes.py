"""Well-known shapes of models, and the resident memory of a process: what both sides of a comparison share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5}
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": LLAMA
    | {"hidden_size": 128, "num_hidden_layers": 5, "num_attention_heads": 4, "num_key_value_heads": 2}
    | {"intermediate_size": 384, "vocab_size": 512, "max_position_embeddings": 512, "tie_word_embeddings": True},
    "135m": LLAMA
    | {"hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3}
    | {"intermediate_size": 1536, "vocab_size": 49152, "max_position_embeddings": 8192, "tie_word_embeddings": True},
    "1.1b": LLAMA
    | {"hidden_size": 2048, "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4}
    | {"intermediate_size": 5632, "vocab_size": 32000, "max_position_embeddings": 2048, "tie_word_embeddings": False},
}


def reset_peak_resident() -> None:
    """Start the peak of this process again at what is resident now (Linux)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_resident_bytes() -> int:
    """The largest resident size of this process since the last reset (Linux)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("VmHWM: expected a line of /proc/self/status, got none")
