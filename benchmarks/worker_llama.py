"""llama.cpp's side of a comparison (llama-cpp-python): decoding or a prompt, the same shape in Q4_0; see worker.serve.

The file is made by llama.cpp's own quantization, which keeps the head in Q6_K.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import torch
from safetensors import safe_open
from worker import serve

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
ENDS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def gguf_name(name: str) -> str:
    if name in ENDS:
        return ENDS[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"


def tensors(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():
                yield gguf_name(name), file.get_tensor(name).to(torch.float32).numpy()


def write_f16(folder: Path, path: Path) -> None:
    """Write the model of a folder without a vocabulary; rows of q and k stay in transformers' order (only speed is asked)."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    for name, array in tensors(folder):
        writer.add_tensor(name, array if array.ndim == 1 else array.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_q4_0(folder: Path, path: Path) -> None:
    wide = folder / "f16.gguf"
    write_f16(folder, wide)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
    status = llama_cpp.llama_model_quantize(str(wide).encode(), str(path).encode(), params)
    wide.unlink()
    if status:
        raise SystemExit(f"llama_model_quantize: expected 0, got {status}")


def prepare(task: dict[str, Any]) -> tuple[Callable[[int], int], dict[str, Any]]:
    path = Path(task["folder"]) / "q4_0.gguf"
    if not path.is_file():
        write_q4_0(Path(task["folder"]), path)
    threads = len(os.sched_getaffinity(0))
    model = llama_cpp._internals.LlamaModel(path_model=str(path), params=llama_cpp.llama_model_default_params(), verbose=False)
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_threads, params.n_threads_batch = task["tokens"], threads, threads
    params.n_batch = params.n_ubatch = task["tokens"]  # a prompt in one piece; its default is 512
    context = llama_cpp._internals.LlamaContext(model=model, params=params, verbose=False)
    batch = llama_cpp._internals.LlamaBatch(n_tokens=task["tokens"], embd=0, n_seq_max=1, verbose=False)
    vocab = model.n_vocab()

    def decode(tokens: list[int], past: int) -> int:
        batch.set_batch(tokens, past, logits_all=False)
        context.decode(batch)
        logits = llama_cpp.llama_get_logits_ith(context.ctx, -1)
        return int(np.ctypeslib.as_array(logits, (vocab,)).argmax())

    def run(_index: int) -> int:
        context.kv_cache_clear()
        if task["task"] == "prefill":
            return decode(list(range(task["tokens"])), 0)
        token = 0
        for i in range(task["tokens"]):
            token = decode([token], i)
        return token

    return run, {"versions": f"llama-cpp-python {llama_cpp.__version__}, {threads} threads"}


if __name__ == "__main__":
    serve(prepare)
