"""What int8 products do to gradients, and what splitting outliers off would win: simulated in float64 from lora_c.reference.

    python benchmarks/int8_outliers.py MODEL --text FILE [--quantize nf4] [--adapter FOLDER] [--tokens 64] [--windows 8]

MODEL is a folder of a Llama, "demo", or "llama": the golden with its own ids, repeated. The base products of a pass, forward
and backward, are rounded as int8 rounds them (gemm_kernels.h); everything else is exact. Prints, for x and dy of the linear
layers, how far the largest of 64 values lies above their root mean square, and the cosines of LoRA's gradients with exact ones
where only some operands are rounded, or where the largest values of a block are multiplied apart in float32. `real` is the
library's own int8.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

import lora_c as lc
from lora_c import reference as ref

GOLDEN = Path(__file__).parents[1] / "tests/golden/families/llama.npz"
BLOCK, LEVELS = 64, 127
BEST_OF_NF4 = (
    124.12  # the largest of NF4's values becomes so many levels with the least error of all 16, as often as they occur
)
F64 = Any
EVERYTHING = ("x", "dy", "W forward", "W backward")


def blocks_of(values: F64) -> F64:
    """(rows, blocks, 64), what is missing is zero."""
    padded = np.pad(values, ((0, 0), (0, -values.shape[1] % BLOCK)))
    return padded.reshape(len(values), -1, BLOCK)


def rounded(values: F64, levels: float = LEVELS) -> F64:
    """Each row with a scale for 64 values: the largest over 127."""
    blocks = blocks_of(values)
    step = np.maximum(np.abs(blocks).max(axis=2, keepdims=True), 1e-36) / levels
    return (np.rint(blocks / step) * step).reshape(len(values), -1)[:, : values.shape[1]]


def rounded_squares(w: F64) -> F64:
    """One scale for 64 x 64 values: 4-bit weights in backward."""
    squares = w.reshape(w.shape[0] // BLOCK, BLOCK, w.shape[1] // BLOCK, BLOCK)
    step = np.abs(squares).max(axis=(1, 3), keepdims=True) / LEVELS
    return (np.rint(squares / step) * step).reshape(w.shape)


@dataclass
class Products:
    """Products with base weights, of which some operands are rounded; `split` values of a block are kept apart and exact.

    levels: what the largest value of a block of W becomes in forward; 4-bit weights have 16 values, which 127ths may not fit.
    """

    kinds: tuple[str, ...]
    split: int = 0
    levels: float = LEVELS
    squares: bool = False
    seen: dict[str, list[F64]] = field(default_factory=dict)

    def _rounded(self, values: F64) -> F64:
        if not self.split:
            return rounded(values)
        blocks = blocks_of(values)
        order = np.argsort(-np.abs(blocks), axis=2)[:, :, : self.split]
        apart = np.zeros_like(blocks)
        np.put_along_axis(apart, order, np.take_along_axis(blocks, order, axis=2), axis=2)
        apart = apart.reshape(len(values), -1)[:, : values.shape[1]]
        return rounded(values - apart) + apart

    def forward(self, name: str, x: F64, w: F64) -> F64:
        self.seen.setdefault(f"{name} x", []).append(x)
        return (self._rounded(x) if "x" in self.kinds else x) @ (rounded(w, self.levels) if "W forward" in self.kinds else w).T

    def backward(self, name: str, dy: F64, w: F64) -> F64:
        self.seen.setdefault(f"{name} dy", []).append(dy)
        fits = self.squares and w.shape[0] % BLOCK == 0 and w.shape[1] % BLOCK == 0
        if "W backward" in self.kinds:
            w = rounded_squares(w) if fits else rounded(w.T).T
        return (self._rounded(dy) if "dy" in self.kinds else dy) @ w


class Llama:
    """A decoder of the Llama family with LoRA, forward and backward of one sequence."""

    def __init__(self, model: Any) -> None:
        self.config, self.scale = model.decoder.config, {}
        self.w = {name: np.asarray(model.dense_weight(name), np.float64) for name in model.weights}
        self.a: dict[str, F64] = {}
        self.names: dict[str, str] = {}
        for parameter in model.trainable_parameters():
            short = parameter.name.removeprefix("base_model.model.model.").removesuffix(".weight")
            key = short.replace("self_attn.", "").replace("mlp.", "")
            self.a[key], self.names[key] = np.asarray(parameter.data, np.float64), parameter.name
        self.lora = model.adapter_config.lora_alpha / model.adapter_config.r

    def gradients(self, ids: F64, targets: F64, weight: F64, products: Products) -> dict[str, F64]:
        """Of the adapter, by the names of its parameters."""
        c, w = self.config, self.w
        heads, kv = c["num_attention_heads"], c["num_key_value_heads"]
        cu, positions = np.array([0, len(ids)]), np.arange(len(ids))
        found: dict[str, F64] = {}

        def linear(name: str, x: F64) -> F64:
            a, b = self.a[f"{name}.lora_A"], self.a[f"{name}.lora_B"]
            y = products.forward(name, x, w[name]) + self.lora * (x @ a.T) @ b.T
            return y + w[f"{name}.bias"] if f"{name}.bias" in w else y

        def back(name: str, dy: F64, x: F64) -> F64:
            a, b = self.a[f"{name}.lora_A"], self.a[f"{name}.lora_B"]
            _, found[f"{name}.lora_A"], found[f"{name}.lora_B"] = ref.lora_linear_backward(dy, x, w[name], a, b, self.lora)
            return products.backward(name, dy, w[name]) + self.lora * (dy @ b) @ a

        def turn(y: F64, back: bool = False) -> F64:
            return ref.rope(y, positions, c["rope_inv_freq"], c["rope_scale"], back)

        x, kept = ref.embedding(ids, w["embed_tokens"]), []
        for n in range(c["num_hidden_layers"]):
            p = f"layers.{n}."
            h = ref.rmsnorm(x, w[p + "input_layernorm"], c["norm_eps"])
            q, k, v = (
                linear(p + part, h).reshape(len(ids), count, -1)
                for part, count in (("q_proj", heads), ("k_proj", kv), ("v_proj", kv))
            )
            q, k = turn(q), turn(k)
            a = ref.attention(q, k, v, cu).reshape(len(ids), -1)
            mid = x + linear(p + "o_proj", a)
            m = ref.rmsnorm(mid, w[p + "post_attention_layernorm"], c["norm_eps"])
            gate, up = linear(p + "gate_proj", m), linear(p + "up_proj", m)
            s = ref.swiglu(gate, up)
            kept.append((x, h, q, k, v, a, mid, m, gate, up, s))
            x = mid + linear(p + "down_proj", s)
        head = w["embed_tokens"] if c["tie_word_embeddings"] else w["lm_head"]
        dx, _ = ref.linear_cross_entropy_backward(ref.rmsnorm(x, w["norm"], c["norm_eps"]), head, targets, weight)
        dx, _ = ref.rmsnorm_backward(dx, x, w["norm"], c["norm_eps"])
        for n in reversed(range(c["num_hidden_layers"])):
            p = f"layers.{n}."
            x, h, q, k, v, a, mid, m, gate, up, s = kept[n]
            dgate, dup = ref.swiglu_backward(back(p + "down_proj", dx, s), gate, up)
            dm = back(p + "gate_proj", dgate, m) + back(p + "up_proj", dup, m)
            dx = dx + ref.rmsnorm_backward(dm, mid, w[p + "post_attention_layernorm"], c["norm_eps"])[0]
            da = back(p + "o_proj", dx, a).reshape(len(ids), heads, -1)
            dq, dk, dv = ref.attention_backward(da, q, k, v, cu)
            parts = (("q_proj", turn(dq, True)), ("k_proj", turn(dk, True)), ("v_proj", dv))
            dh = sum(back(p + part, np.asarray(dy).reshape(len(ids), -1), h) for part, dy in parts)
            dx = dx + ref.rmsnorm_backward(dh, x, w[p + "input_layernorm"], c["norm_eps"])[0]
        return found


def cosines(exact: dict[str, F64], other: dict[str, F64]) -> dict[str, float]:
    """By parameter."""
    lengths = {name: np.linalg.norm(a) * np.linalg.norm(other[name]) for name, a in exact.items()}
    return {name: float(np.sum(a * other[name]) / lengths[name]) for name, a in exact.items() if lengths[name]}


def said(windows: list[dict[str, float]]) -> str:
    """The mean over parameters and windows, how much of 1 it lacks, the least and whose it is."""
    values = np.array([list(found.values()) for found in windows])
    least = min(windows, key=lambda found: min(found.values()))
    worst = min(least, key=lambda name: least[name])
    return f"mean {values.mean():.5f}, least {least[worst]:.4f} at {worst}"


def real_gradients(model: Any, net: Llama, batch: tuple[F64, F64, F64], precision: str) -> dict[str, F64]:
    """The library's own, by the same names."""
    model.decoder.precision = precision
    ids, targets, weight = batch
    for parameter in model.trainable_parameters():
        parameter.zero_grad()
    cu = np.array([0, len(ids)], np.int32)
    model.decoder.forward_backward(
        ids.astype(np.int32), cu, targets.astype(np.int32), weight.astype(np.float32), grad_scale=1.0
    )
    found = {parameter.name: np.asarray(parameter.grad, np.float64).copy() for parameter in model.trainable_parameters()}
    return {key: found[name] for key, name in net.names.items()}


def golden_llama(place: Path) -> tuple[Any, F64]:
    """The tiny random Llama of the family tests with the adapter and the ids of its record."""
    with np.load(GOLDEN) as record:
        config, ids = record["config"].tobytes(), record["ids"]
        values = {
            name: record[name].view(ml_dtypes.bfloat16).astype(np.float32)
            for name in record
            if name[:7] in ("tensor.", "adapter")
        }
    (place / "config.json").write_bytes(config)
    tensors = {name[7:]: value for name, value in values.items() if name.startswith("tensor.")}
    save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    model = lc.load_model(place, progress=False)
    model.add_adapter(lc.LoraConfig(r=4, lora_alpha=8))
    for parameter in model.trainable_parameters():
        parameter.write(values[f"adapter.{parameter.name}"])
    return model, ids


def open_model(args: argparse.Namespace) -> tuple[Any, list[F64]]:
    """The model with an adapter whose B is not zero, and windows of ids."""
    if args.model == "llama":
        with tempfile.TemporaryDirectory() as place:
            model, ids = golden_llama(Path(place))
        return model, [np.resize(ids, args.tokens)]
    model = lc.load_model(args.model, quantize=args.quantize, progress=False)
    if args.adapter:
        model.load_adapter(args.adapter)
    else:
        model.add_adapter(lc.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
        for i, parameter in enumerate(model.trainable_parameters()):
            noise = np.random.default_rng(i).standard_normal(parameter.shape, np.float32)
            parameter.write(parameter.data + 0.02 * noise)
    ids = np.array(model.tokenizer.encode(Path(args.text).read_text(encoding="utf-8")[: 40 * args.tokens * args.windows]))
    return model, [ids[i * args.tokens : (i + 1) * args.tokens] for i in range(args.windows)]


def tell_blocks(seen: dict[str, list[F64]]) -> None:
    """Of each operand: the largest of 64 values over their root mean square, and what rounding does to the other 63."""
    print(f"{'operand':<14}{'blocks':>8}{'max/rms':>9}{'most':>7}{'> 4.4':>9}{'others err':>12}{'> 2 %':>9}{'> 10 %':>9}")
    for which in ("x", "dy"):
        for module in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"):
            found = [rows for name, rows in seen.items() if name.endswith(f".{module} {which}")]
            blocks = np.concatenate([blocks_of(x).reshape(-1, BLOCK) for rows in found for x in rows])
            blocks = blocks[np.abs(blocks).max(axis=1) > 0]
            count = np.maximum((blocks != 0).sum(axis=1), 2)
            top, squares = np.abs(blocks).max(axis=1), (blocks**2).sum(axis=1)
            ratio = top / np.sqrt(squares / count)
            wrong = (rounded(blocks) - blocks) ** 2  # the largest value itself is exact
            error = np.sqrt(wrong.sum(axis=1) / np.maximum(squares - top**2, 1e-300))
            shares = [f"{100 * np.mean(part):>7.2f} %" for part in (ratio > 4.4, error > 0.02, error > 0.1)]
            print(f"{which + ' ' + module:<14}{len(blocks):>8,}{np.median(ratio):>9.2f}{ratio.max():>7.2f}{shares[0]}"
                  f"{100 * np.median(error):>10.2f} %{shares[1]}{shares[2]}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--quantize")
    parser.add_argument("--text", help="File whose first tokens are taken, in windows.")
    parser.add_argument("--tokens", type=int, default=64, help="Of a window.")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--adapter", help="Folder; by default random values.")
    args = parser.parse_args()
    model, windows = open_model(args)
    net, plain = Llama(model), Products(())
    fixed = {"squares": args.quantize is not None, "levels": BEST_OF_NF4 if args.quantize == "nf4" else LEVELS}
    ways: dict[str, dict[str, Any]] = {"int8": {}} | {f"only {kind}": {"kinds": (kind,)} for kind in EVERYTHING}
    ways |= {f"int8, {n} of 64 apart": {"split": n} for n in (1, 2, 4)}
    if args.quantize == "nf4":
        ways |= {"int8, NF4 in 127ths": {"levels": LEVELS}}
    found: dict[str, list[dict[str, float]]] = {f"real {name}": [] for name in ("exact", "fast", "int8")} | {
        name: [] for name in ways
    }
    for ids in windows:
        weight = np.ones(len(ids))
        weight[-1] = 0
        batch = ids, np.roll(ids, -1), weight
        exact = net.gradients(*batch, plain)
        for name in ("exact", "fast", "int8"):
            found[f"real {name}"].append(cosines(exact, real_gradients(model, net, batch, name)))
        for name, how in ways.items():
            found[name].append(cosines(exact, net.gradients(*batch, Products(**{"kinds": EVERYTHING} | fixed | how))))
    tell_blocks(plain.seen)
    for name, of in found.items():
        print(f"{name:<22} {said(of)}")


if __name__ == "__main__":
    main()
