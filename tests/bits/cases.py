"""What is computed for the digests: logits, gradients, training, decoding and merges over families, formats and adapters.

Weights come from the golden records of the families or from the raw stream of a counter-based generator, whose bits NumPy
promises for good. Nothing here depends on time, threads or the machine but through the kernels in use.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

import lora_c as lc
from lora_c.families.architectures import architecture_of
from lora_c.model.model import Model
from lora_c.model.opening import load_model

FAMILIES = Path(__file__).parents[1] / "golden" / "families"
Results = dict[str, str]

WIDE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256, "intermediate_size": 512,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 320,
    "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
    "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32",
}  # fmt: skip
ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"r": 5, "lora_alpha": 8, "lora_dropout": 0.1},
    "one_module": {"r": 4, "target_modules": ["q_proj"], "layers_to_transform": [1]},
    "ranks": {"r": 3, "rank_pattern": {"q_proj": 9}, "alpha_pattern": {"v_proj": 32.0}, "use_rslora": True},
    "dora": {"r": 4, "use_dora": True, "lora_dropout": 0.1},
    "bias_and_whole_head": {"r": 4, "bias": "all", "modules_to_save": ["lm_head"]},
    "tokens": {"r": 4, "trainable_token_indices": [2, 7]},
    "globals": {"r": 4, "target_modules": ["q_proj", "embed_tokens", "lm_head"]},
}
# Bytes of a block, values in it, and where its float16 scales begin.
GGML_BLOCKS = {
    "Q8_0": (34, 32, [0]), "Q4_0": (18, 32, [0]), "Q4_1": (20, 32, [0, 2]), "Q5_0": (22, 32, [0]), "Q5_1": (24, 32, [0, 2]),
    "Q4_K": (144, 256, [0, 2]), "Q5_K": (176, 256, [0, 2]), "Q6_K": (210, 256, [208]), "F16": (2, 1, []), "BF16": (2, 1, []),
}  # fmt: skip


def uniform(key: int, *shape: int, scale: float = 1.0) -> np.ndarray:
    """float32 values in [-scale, scale)."""
    raw = np.random.Philox(key=key).random_raw(int(np.prod(shape)))
    return ((raw >> np.uint64(40)).astype(np.float32) / np.float32(2**23) - np.float32(1)).reshape(shape) * np.float32(scale)


def digest(*arrays: Any) -> str:
    """Sixteen hexadecimal digits of the bytes of arrays, in order."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()[:16]


def batch(vocab: int, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Three packed sequences of n tokens together: ids, cu_seqlens, targets, loss weights."""
    ids = (np.random.Philox(key=n).random_raw(n) % np.uint64(vocab)).astype(np.int32)
    cu = np.array([0, 1 + n // 7, n // 2, n], np.int32)
    weight = (np.arange(n) % 5 != 0).astype(np.float32)
    weight[cu[1:] - 1] = 0
    return ids, cu, np.roll(ids, -1), weight


def fill(model: Model) -> None:
    """Give every trained parameter of an adapter values of its own, so that no gradient is zero."""
    for i, parameter in enumerate(model.trainable_parameters()):
        if "lora_B" in parameter.name or "lora_embedding_B" in parameter.name:
            parameter.write(uniform(1000 + i, *parameter.shape, scale=0.1))


def gradients(model: Model, n: int) -> str:
    parameters = model.trainable_parameters()
    for parameter in parameters:
        parameter.zero_grad()
    ids, cu, targets, weight = batch(model.decoder.config["vocab_size"], n)
    loss = model.decoder.forward_backward(ids, cu, targets, weight, grad_scale=1 / float(weight.sum()), dropout_step=3)
    return digest(np.float64(loss), *(parameter.grad for parameter in parameters))


def training(model: Model, n: int, steps: int = 20) -> str:
    parameters = model.trainable_parameters()
    optimizer = lc.AdamW(parameters, lr=1e-2, weight_decay=0.1, no_decay=[p for p in parameters if len(p.shape) == 1])
    losses = []
    for step in range(steps):
        ids, cu, targets, weight = batch(model.decoder.config["vocab_size"], n - step % 3)
        optimizer.zero_grad()
        losses.append(
            model.decoder.forward_backward(ids, cu, targets, weight, grad_scale=1 / float(weight.sum()), dropout_step=step)
        )
        losses.append(optimizer.step(lr=1e-2 / (1 + step), max_grad_norm=0.5))
    state = optimizer.state_dict()
    return digest(np.array(losses), *(p.data for p in parameters), *state["m"], *state["v"])


def decoding(model: Model, n: int) -> str:
    """A prompt, single tokens behind it, then three sequences together."""
    decoder = model.decoder
    ids, precision = batch(decoder.config["vocab_size"], n)[0], decoder.precision
    cache = decoder.new_cache(n + 8)
    found = [decoder.decode(cache, ids, precision=precision)]
    found += [decoder.decode(cache, ids[i : i + 1], precision=precision) for i in range(4)]
    cache = decoder.new_cache(n, 3)
    cu, sequences = np.array([0, 2, n // 2, n // 2 + 1], np.int32), [0, 1, 2]
    found.append(decoder.decode(cache, ids[: n // 2 + 1], cu_seqlens=cu, sequences=sequences, precision=precision))
    found.append(
        decoder.decode(cache, ids[:3], cu_seqlens=np.arange(4, dtype=np.int32), sequences=sequences, precision=precision)
    )
    return digest(*found)


def merging(model: Model) -> str:
    merged = [model.merge(dtype=dtype) for dtype in ("float32", "bfloat16", "nf4")]
    return digest(*(m.dense_weight(name) for m in merged for name in sorted(m.weights)))


def of_model(open_model: Callable[[], Model], n: int, name: str) -> Iterator[tuple[str, str]]:
    """Everything of a model with the plain adapter."""
    model = open_model()
    model.decoder.precision = lc.get_precision()
    ids = batch(model.decoder.config["vocab_size"], n)[0]
    yield f"{name}/logits", digest(model.decoder.logits(ids))
    yield f"{name}/decode", decoding(model, n)
    yield from of_adapter(model, ADAPTERS["lora"], n, name)


def of_adapter(model: Model, options: dict[str, Any], n: int, name: str) -> Iterator[tuple[str, str]]:
    model.decoder.precision = lc.get_precision()
    model.add_adapter(**options)
    fill(model)
    yield f"{name}/gradients", gradients(model, n)
    yield f"{name}/adapted decode", decoding(model, n)
    yield f"{name}/merge", merging(model)
    yield f"{name}/train", training(model, n)


def write_folder(path: Path, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


def wide_folder(path: Path) -> Path:
    tensors = {}
    for i, spec in enumerate(architecture_of(WIDE).weights()):
        values = uniform(i, *spec.shape, scale=0.1)
        tensors[spec.file_name] = values + np.float32(1) if len(spec.shape) == 1 else values
    return write_folder(path, WIDE, tensors)


def family_folders(path: Path) -> Iterator[tuple[str, Path]]:
    for file in sorted(FAMILIES.glob("*.npz")):
        with np.load(file) as record:
            bits = {key[7:]: record[key] for key in record if key.startswith("tensor.")}
            config = json.loads(record["config"].tobytes())
        tensors = {key: value.view(ml_dtypes.bfloat16).astype(np.float32) for key, value in bits.items()}
        yield f"{file.stem}/float32", write_folder(path / file.stem, config, tensors)
        narrow = {key: value.view(ml_dtypes.bfloat16) for key, value in bits.items()}
        yield f"{file.stem}/bfloat16", write_folder(path / f"{file.stem}-bfloat16", config, narrow)


def random_blocks(name: str, rows: int, cols: int, key: int) -> lc.GGMLTensor:
    """A matrix of blocks of random bytes with small positive scales."""
    size, values, scales = GGML_BLOCKS[name]
    count = rows * cols // values
    if not scales:
        dtype = np.float16 if name == "F16" else ml_dtypes.bfloat16
        blocks = uniform(key, count, scale=0.1).astype(dtype).view(np.uint8)
        return lc.GGMLTensor.from_blocks(blocks, (rows, cols), name)
    raw = np.random.Philox(key=key).random_raw(count * size // 8 + 1).view(np.uint8)[: count * size]
    blocks = raw.reshape(count, size).copy()
    for i, at in enumerate(scales):
        scale = (np.abs(uniform(key + 100 + i, count)) * np.float32(1e-3) + np.float32(1e-4)).astype(np.float16)
        blocks[:, at : at + 2] = scale.view(np.uint8).reshape(count, 2)
    return lc.GGMLTensor.from_blocks(blocks.reshape(-1), (rows, cols), name)


def with_blocks(model: Model, name: str) -> Model:
    """The wide model with the matrices of its layers in blocks."""
    for i, key in enumerate(sorted(model.weights)):
        weight = model.weights[key]
        if key.startswith("layers.") and len(weight.shape) == 2:
            model.weights[key] = random_blocks(name, *weight.shape, key=i)
            model.parts.set_weight(key, model.weights[key])
    return model


Case = tuple[str, Callable[[], Iterator[tuple[str, str]]]]


def cases(device: str) -> Iterator[Case]:
    """(name, function that gives names and digests), each on its own."""

    def load(folder: Path, **options: Any) -> Model:
        return load_model(folder, progress=False, device=device, **options)

    with tempfile.TemporaryDirectory() as scratch:
        for name, folder in family_folders(Path(scratch)):
            yield name, lambda f=folder, n=name: of_model(lambda: load(f), 40, n)
            if name.endswith("float32"):
                nf4 = f"{name.split('/')[0]}/nf4"
                yield nf4, lambda f=folder, n=nf4: of_model(lambda: load(f, quantize="nf4"), 40, n)
        wide = wide_folder(Path(scratch) / "wide")
        yield "wide/float32", lambda: of_model(lambda: load(wide), 150, "wide/float32")
        for size, double in ((64, True), (128, False)):
            name = f"wide/nf4 {size}{' double_quant' if double else ''}"
            options = {"quantize": "nf4", "block_size": size, "double_quant": double}
            yield name, lambda n=name, o=options: of_model(lambda: load(wide, **o), 150, n)
        for name in GGML_BLOCKS:
            yield f"wide/{name}", lambda n=name: of_model(lambda: with_blocks(load(wide), n), 70, f"wide/{n}")
        for kind, options in ADAPTERS.items():
            name = f"adapter/{kind}"
            yield name, lambda n=name, o=options: of_adapter(load(wide), o, 90, n)
            yield f"{name}/nf4", lambda n=name, o=options: of_adapter(load(wide, quantize="nf4"), o, 90, f"{n}/nf4")
        for method in ("full", "head"):
            yield f"method/{method}", lambda m=method: of_method(load(wide, trainable=m), m)
        yield "memory", lambda: of_memory(lambda: load(wide, quantize="nf4"))


def of_method(model: Model, method: str) -> Iterator[tuple[str, str]]:
    model.decoder.precision = lc.get_precision()
    yield f"method/{method}/gradients", gradients(model, 90)
    yield f"method/{method}/train", training(model, 90)


def of_memory(open_model: Callable[[], Model]) -> Iterator[tuple[str, str]]:
    """Activations computed again, or kept in half the memory."""
    for recompute in ("none", "layer"):
        for kept in ("float32", "bfloat16"):
            model = open_model()
            model.decoder.precision, model.decoder.recompute = lc.get_precision(), recompute
            model.decoder.activation_dtype = kept
            model.add_adapter(**ADAPTERS["lora"])
            fill(model)
            yield f"memory/{recompute}/{kept}", gradients(model, 90)


def digests(wanted: Callable[[str], bool] = lambda name: True, device: str = "cpu") -> Results:
    """All digests with the kernels and the precision in use on a device, of the cases whose names are wanted."""
    return {key: value for name, run in cases(device) if wanted(name) for key, value in run()}
