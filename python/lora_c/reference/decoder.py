"""The decoder as a whole, in the names of its weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .arrays import F64, f64
from .attention import attention, softcap
from .linear import linear
from .loss import embedding
from .mlp import bottleneck, gelu, silu
from .norms import layernorm, rmsnorm, rope


def prefix_encoder(embedding: ArrayLike, w1: ArrayLike, b1: ArrayLike, w2: ArrayLike, b2: ArrayLike) -> F64:
    """W2 tanh(W1 e + b1) + b2 for each row e: the prefix (n, L * 2 * KV) of prefix tuning with prefix_projection.

    Source
    ------
    Prefix tuning, arXiv:2101.00190, section 4.3.
    """
    return linear(np.tanh(linear(embedding, w1, b1)), w2, b2)


def prefix_encoder_backward(
    dprefix: ArrayLike, embedding: ArrayLike, w1: ArrayLike, b1: ArrayLike, w2: ArrayLike
) -> tuple[F64, F64, F64, F64, F64]:
    """Return dembedding, dw1, db1, dw2, db2."""
    d, e = f64(dprefix), f64(embedding)
    hidden = np.tanh(linear(e, w1, b1))
    dhidden = (d @ f64(w2)) * (1 - hidden**2)
    return dhidden @ f64(w1), dhidden.T @ e, dhidden.sum(axis=0), d.T @ hidden, d.sum(axis=0)


def decoder_logits(weights: dict[str, Any], config: dict[str, Any], input_ids: ArrayLike, cu_seqlens: ArrayLike) -> F64:
    """Logits of a decoder. ``weights`` has the names of Decoder.set_weight, ``config`` is Decoder.config.

    Virtual tokens of Decoder.set_virtual_tokens are the weights "prompt" (n, H), times its scale, or "prefix" (n, L * 2 * KV).
    A scaling vector of layers.N.q_proj is the weight layers.N.q_proj.scaling, or .input_scaling; a bottleneck behind
    layers.N.o_proj is layers.N.o_proj.bottleneck, a mapping of the arguments of `bottleneck`.

    Source
    ------
    Llama 2, arXiv:2307.09288, section 2.2; Gemma 2, arXiv:2408.00118, section 2; OLMo 2, arXiv:2501.00656, section 2.
    """
    x = hidden_states(weights, config, input_ids, cu_seqlens, config["num_hidden_layers"])
    head = weights["embed_tokens"] if config["tie_word_embeddings"] else weights["lm_head"]
    return softcap(config["logit_scale"] * linear(x, head), config["logit_softcap"])


def hidden_states(
    weights: dict[str, Any], config: dict[str, Any], input_ids: ArrayLike, cu_seqlens: ArrayLike, layer: int
) -> F64:
    """The residual stream after `layer` layers, 0: the embeddings; after the last one behind the final norm."""
    virtual = len(weights.get("prompt", weights.get("prefix", ())))
    ids, cu = np.asarray(input_ids), np.asarray(cu_seqlens)
    ids = np.concatenate([np.r_[np.full(virtual, -1), ids[a:b]] for a, b in zip(cu, cu[1:], strict=False)]).astype(int)
    cu = cu + virtual * np.arange(len(cu))
    lengths, real = np.diff(cu), ids >= 0
    positions = np.concatenate([np.arange(n) for n in lengths])
    x = np.where(real[:, None], config["embedding_scale"] * embedding(ids, weights["embed_tokens"]), 0.0)
    if "prompt" in weights:
        x[~real] = np.tile(f64(weights["prompt"]), (len(lengths), 1))
    if config["learned_positions"]:
        x = x + embedding(positions, weights["embed_positions"])
    long = np.repeat(lengths, lengths) > (config["rope_switch"] or np.inf)
    for n in range(layer):
        w = {k.split(".", 2)[2]: v for k, v in weights.items() if k.startswith(f"layers.{n}.")}
        if "prefix" in weights:
            parts = f64(weights["prefix"]).reshape(virtual, config["num_hidden_layers"], 2, -1)[:, n]
            w |= {"prefix k": parts[:, 0], "prefix v": parts[:, 1], "virtual": ~real}
        a = _attention_block(_norm(x, w, "input_layernorm", config, "pre_norm"), w, config, n, cu, positions, long)
        x = x + config["residual_scale"] * _norm(a, w, "attention_output_norm", config, "post_norm")
        m = _mlp_block(_norm(x, w, "post_attention_layernorm", config, "pre_norm"), w, config)
        x = x + config["residual_scale"] * _norm(m, w, "mlp_output_norm", config, "post_norm")
    return (_norm(x, weights, "norm", config) if layer == config["num_hidden_layers"] else x)[real]


def _norm(x: F64, w: dict[str, Any], name: str, config: dict[str, Any], switch: str | None = None) -> F64:
    if switch is not None and not config[switch]:
        return x
    if config["norm"] == "layer":
        return layernorm(x, w[name], w[name + ".bias"], config["norm_eps"])
    return rmsnorm(x, w[name], config["norm_eps"], config["norm_weight_offset"])


def _project(x: F64, w: dict[str, Any], name: str) -> F64:
    y = linear(x * f64(w.get(f"{name}.input_scaling", 1.0)), w[name], w.get(f"{name}.bias"))
    y = y * f64(w.get(f"{name}.scaling", 1.0))
    return bottleneck(y, **w[f"{name}.bottleneck"]) if f"{name}.bottleneck" in w else y


def _attention_block(
    x: F64, w: dict[str, Any], config: dict[str, Any], layer: int, cu: Any, positions: Any, long: Any
) -> F64:  # fmt: skip
    table = 0 if config["layer_rope"] is None else config["layer_rope"][layer]
    tables = [
        (config["rope_inv_freq"], config["rope_scale"]), (config["second_rope_inv_freq"], config["second_rope_scale"])
    ]  # fmt: skip
    heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"], "v": config["num_key_value_heads"]}
    made = {}
    for part, n in heads.items():
        y = _project(x, w, f"{part}_proj")
        if part != "v" and config["qk_norm"] == "row":
            y = _norm(y, w, f"{part}_norm", config)
        y = y.reshape(len(x), n, -1)
        if part != "v" and config["qk_norm"] == "head":
            y = _norm(y, w, f"{part}_norm", config)
        if part != "v" and table >= 0 and tables[table][0] is not None:
            turned = rope(y, positions, *tables[table])
            y = np.where(long[:, None, None], rope(y, positions, *tables[1]), turned) if long.any() else turned
        if f"prefix {part}" in w:  # as they are, in every segment
            y[w["virtual"]] = np.tile(w[f"prefix {part}"], (len(cu) - 1, 1)).reshape(-1, n, y.shape[2])
        made[part] = y
    window = config["sliding_window"]
    window = window if isinstance(window, int) else window[layer]
    scale = config["attention_scale"] or None
    a = attention(made["q"], made["k"], made["v"], cu, scale, window, config["attention_softcap"])
    return _project(a.reshape(len(x), -1), w, "o_proj")


def _mlp_block(x: F64, w: dict[str, Any], config: dict[str, Any]) -> F64:
    act = silu if config["activation"] == "silu" else gelu
    up = _project(x, w, "up_proj")
    return _project(act(_project(x, w, "gate_proj")) * up if config["gated_mlp"] else act(up), w, "down_proj")
