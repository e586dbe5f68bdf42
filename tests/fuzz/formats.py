"""The formats that are fuzzed: good files to start from, and what reads them.

A reader may return or raise `LoraCError`; everything else is a finding.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import lora_c as lc
from lora_c.checkpoints.safetensors_file import SafetensorsFile
from lora_c.checkpoints.safetensors_writer import TensorEntry, write_model_files
from lora_c.data import load_dataset
from lora_c.families.architectures import architecture_of
from lora_c.inspection import inspect_path
from lora_c.text.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "python/lora_c/base_model"
IDS = np.array([1, 2, 3], np.int32)
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 44,
    "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 48,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
    "hidden_act": "silu", "attention_bias": False, "bos_token_id": 1, "eos_token_id": [2, 3], "torch_dtype": "float32",
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 32},
}  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }}"
    "{{ c.function.arguments | tojson }}{% endfor %}<|end|>{% endfor %}{{ tools | tojson if tools else '' }}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
RECORDS: list[dict[str, Any]] = [
    {"messages": [{"role": r, "content": c} for r, c in (("system", "s"), ("user", "ü"), ("assistant", "b"))]},
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [CALL]}], "tools": [{"name": "f"}]},
    {"prompt": "a", "completion": "b"},
    {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]},
    {"instruction": "a", "input": "b", "output": "c", "system": "d"},
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "tools": "[]"},
    {"text": "several words of text 日本"},
]


@dataclass(frozen=True)
class Format:
    """`make` fills a folder with good files, `read` reads what is in it; `files` are those to damage."""

    make: Callable[[Path], None]
    read: Callable[[Path], object]
    files: tuple[str, ...]


def _tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {s.file_name: rng.standard_normal(s.shape).astype(np.float32) * 0.1 for s in architecture_of(CONFIG).weights()}


def make_model(folder: Path) -> None:
    """Shards, an index, a tokenizer with a template, generation settings."""
    write_folder(folder, CONFIG, _tensors())


def write_folder(folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2]}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((BASE / name).read_bytes())
    entries = [TensorEntry.of(name, array.astype(np.float32)) for name, array in tensors.items()]
    write_model_files(folder, entries, 20_000)


def make_bnb(folder: Path) -> None:
    golden = np.load(ROOT / "tests/golden/bnb_folders.npz")
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes(golden[f"nf4_nested_bfloat16_storage/{name}"].tobytes())


def make_int4(folder: Path) -> None:
    """A type of our own in the same layout."""
    make_model(folder / "dense")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nobody else reads it
        lc.load_model(folder / "dense", quantize="int4", progress=False).save(folder)


def make_adapter(folder: Path) -> None:
    make_model(folder)
    model = lc.load_model(folder, progress=False)
    model.add_adapter(r=2, target_modules=["q_proj", "down_proj"], rank_pattern={"down_proj": 3}, use_rslora=True)
    model.save_adapter(folder / "adapter")
    model.save_adapter(folder / "mlx", format="mlx")
    model.delete_adapter()
    model.add_adapter(r=2, target_modules=["embed_tokens", "lm_head"])
    model.save_adapter(folder / "globals")


def make_multimodal(folder: Path) -> None:
    """The text model of a model of texts and images."""
    with np.load(ROOT / "tests/golden/families/gemma3_conditional.npz") as golden:
        config = json.loads(golden["config"].tobytes())
        tensors = {key[7:]: np.float32(golden[key] >> 8) / 256 for key in golden if key.startswith("tensor.")}
    write_folder(folder, config, tensors)


def make_gguf_gpt2(folder: Path) -> None:
    from lora_c.gguf import write_model

    with np.load(ROOT / "tests/golden/families/gpt2.npz") as golden:
        config = json.loads(golden["config"].tobytes())
        tensors = {key[7:]: np.float32(golden[key] >> 8) / 256 for key in golden if key.startswith("tensor.")}
    write_folder(folder / "model", config, tensors)
    (folder / "model/tokenizer.json").unlink()
    write_model(folder / "model.gguf", lc.load_model(folder / "model", progress=False), "Q8_0")


def make_gguf(folder: Path) -> None:
    """A model in blocks, with a tokenizer and a template, and an adapter for it."""
    from lora_c.gguf import write_model

    config = CONFIG | {"intermediate_size": 64, "vocab_size": 3000}
    rng = np.random.default_rng(0)
    shapes = {spec.file_name: spec.shape for spec in architecture_of(config).weights()}
    write_folder(folder / "model", config, {name: rng.standard_normal(shape) * 0.1 for name, shape in shapes.items()})
    model = lc.load_model(folder / "model", progress=False)
    write_model(folder / "model.gguf", model, "Q8_0")
    model.add_adapter(r=2, target_modules=["q_proj", "down_proj"], rank_pattern={"down_proj": 3})
    model.save_adapter(folder / "adapter.gguf", format="gguf")


def read_gguf(folder: Path) -> None:
    """Every tensor, the model, its tokenizer, and the adapter on it."""
    from lora_c.gguf.reader import GGUFFile

    file = GGUFFile(folder / "model.gguf")
    for name in file.tensors:
        file.read(name)
    file.close()
    inspect_path(folder / "model.gguf")
    model = lc.load_model(folder / "model.gguf", progress=False)
    if (folder / "adapter.gguf").exists():
        inspect_path(folder / "adapter.gguf")
        model.load_adapter(folder / "adapter.gguf")
    if model.has_tokenizer:
        model.tokenizer.decode(model.tokenizer.encode("several words, 12 + 3 = ü"))
    if model.config["vocab_size"] > int(IDS.max()) and model.context_length >= IDS.size:
        model.decoder.logits(IDS)


def make_jsonl(folder: Path) -> None:
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS)
    (folder / "data.jsonl").write_text(text, encoding="utf-8")


def make_json(folder: Path) -> None:
    (folder / "data.json").write_text(json.dumps(RECORDS), encoding="utf-8")


def make_csv(folder: Path) -> None:
    rows = 'prompt,completion\r\n"a, ""b""","two\r\nlines"\r\nc,日本\r\n' + "d,e\n" * 20
    (folder / "data.csv").write_text(rows, encoding="utf-8", newline="")


def make_text(folder: Path) -> None:
    (folder / "data.txt").write_text("several words\r\nof text 日本 <s> and </s> more\n" * 20, encoding="utf-8")


def make_parquet(folder: Path) -> None:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    parquet.write_table(arrow.Table.from_pylist(RECORDS[:1] * 20), folder / "data.parquet", compression="snappy")


def make_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((BASE / name).read_bytes())
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<|end|>"}}))


def read_safetensors(folder: Path) -> None:
    for path in sorted(folder.glob("*.safetensors")):
        file = SafetensorsFile(path)
        for name in file.tensors:
            bytes(file.read(name).reshape(-1).view(np.uint8))
            file.release(name)
        file.close()


def read_model(folder: Path) -> None:
    for quantize in (None, "nf4"):
        model = lc.load_model(folder, quantize=quantize, progress=False)
        if model.config["vocab_size"] > int(IDS.max()) and model.context_length >= IDS.size:
            model.decoder.logits(IDS)


_models: dict[str, Any] = {}


def read_adapter(folder: Path) -> None:
    """All kinds; the model is loaded once, because its files are not those that are damaged."""
    model = _models.setdefault("adapter", None) or lc.load_model(folder, progress=False)
    _models["adapter"] = model
    for name in ("adapter", "mlx", "globals"):
        if (folder / name).is_dir():
            try:
                model.load_adapter(folder / name)
                model.decoder.logits(IDS)
            finally:
                if model.adapter_config is not None:
                    model.delete_adapter()


def read_data(folder: Path) -> None:
    tokenizer = _models.setdefault("tokenizer", Tokenizer.from_folder(BASE))
    tokenizer.chat_template = TEMPLATE
    load_dataset(folder, tokenizer, max_seq_length=64)


def read_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer.from_folder(folder)
    tokenizer.decode(tokenizer.encode("several words, 12 + 3 = ü"))
    if tokenizer.chat_template is not None:
        tokenizer.apply_chat_template(RECORDS[0]["messages"], add_generation_prompt=True)


FORMATS = {
    "safetensors": Format(make_bnb, read_safetensors, ("model.safetensors",)),
    "folder": Format(
        make_model, read_model, ("config.json", "model.safetensors.index.json", "generation_config.json", "*.safetensors")
    ),
    "bnb": Format(make_bnb, read_model, ("model.safetensors", "config.json")),
    "int4": Format(make_int4, read_model, ("model.safetensors", "config.json")),
    "gguf": Format(make_gguf, read_gguf, ("*.gguf",)),
    "adapter": Format(make_adapter, read_adapter, ("adapter/*.json", "adapter/*.safetensors", "mlx/*", "globals/*")),
    "multimodal": Format(make_multimodal, read_model, ("config.json", "*.safetensors")),
    "gguf_gpt2": Format(make_gguf_gpt2, read_gguf, ("*.gguf",)),
    "jsonl": Format(make_jsonl, read_data, ("data.jsonl",)),
    "json": Format(make_json, read_data, ("data.json",)),
    "csv": Format(make_csv, read_data, ("data.csv",)),
    "text": Format(make_text, read_data, ("data.txt",)),
    "parquet": Format(make_parquet, read_data, ("data.parquet",)),
    "tokenizer": Format(make_tokenizer, read_tokenizer, ("*.json",)),
}
