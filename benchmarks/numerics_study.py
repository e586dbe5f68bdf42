"""Loss curves and gradients of the precisions: `lora-c bench --numerics` on three models and three sets of data.

    python benchmarks/numerics_study.py OUT --data DATA [--steps 500] [--seeds 3] [--table]

DATA holds stories260K_hf, tinystories, tinyshakespeare and wikisql. Models: the base that ships and stories260K, quantized to
NF4, and the Qwen3 of the family goldens as it is: random weights, of another family than the other two, which are Llamas, with
norms of q and k and biases. No golden has a tokenizer, and all have 64 tokens: it gets 61 characters. Each model and set
of data is a folder in OUT; one that is there already is not run again. Prints the tables of docs/NUMERICS.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

GOLDEN = Path(__file__).parents[1] / "tests/golden/families/qwen3.npz"
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789 \n.,:;?!'\"-_()/=<>*&%$#+|"
TRAIN, HELD_OUT = 500_000, 30_000  # characters of a text
PRECISIONS = ("fast", "int8")


def write_golden(folder: Path) -> Path:
    """The golden model, with a token for each character."""
    folder.mkdir(parents=True, exist_ok=True)
    with np.load(GOLDEN) as record:
        config = json.loads(record["config"].tobytes())
        bits = {key[7:]: record[key] for key in record if key.startswith("tensor.")}
    tensors = {name: value.view(ml_dtypes.bfloat16).astype(np.float32) for name, value in bits.items()}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    vocab = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *CHARACTERS])}
    assert len(vocab) <= config["vocab_size"]
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(special), encoding="utf-8")
    return folder


def write_text(source: Path, folder: Path) -> tuple[Path, Path]:
    """The beginning of a text to train on, and its end, held out."""
    folder.mkdir(parents=True, exist_ok=True)
    text = source.read_text(encoding="utf-8")
    for name, part in (("train.txt", text[:TRAIN]), ("held_out.txt", text[-HELD_OUT:])):
        (folder / name).write_text(part, encoding="utf-8")
    return folder / "train.txt", folder / "held_out.txt"


def run_all(out: Path, data: Path, options: list[str]) -> None:
    """Every model on every set of data, one after the other."""
    sets = {
        "tinystories": write_text(data / "tinystories/tinystories_sample.txt", out / "texts/tinystories"),
        "tinyshakespeare": write_text(data / "tinyshakespeare/input.txt", out / "texts/tinyshakespeare"),
        "wikisql": (data / "wikisql/train.jsonl", data / "wikisql/valid.jsonl"),
    }
    golden = write_golden(out / "models/qwen3_golden")
    bases = {"qwen3 golden": (golden, "none"), "stories260K": (data / "stories260K_hf", "nf4"), "base": ("demo", "nf4")}
    for name, (train, held_out) in sets.items():
        for model, (path, quantize) in bases.items():
            folder = out / f"{model} on {name}"
            if (folder / "numerics.json").exists():
                continue
            words = ["bench", "--numerics", "--model", path, "--quantize", quantize, "--data", train, "--eval-data", held_out]
            print(f"{model} on {name}", flush=True)
            subprocess.run(
                [sys.executable, "-m", "lora_c", *map(str, words), *options, "--output-dir", str(folder)], check=True
            )


def tables(out: Path) -> str:
    """The losses, then the gradients, in Markdown."""
    found = {folder.parent.name: json.loads(folder.read_text()) for folder in sorted(out.glob("*/numerics.json"))}
    lines = ["| model and data | exact | fast | int8 | spread between seeds | largest difference: fast | int8 |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, one in found.items():
        of = one["precisions"]
        losses = " | ".join(f"{of[p]['eval_loss']:.4f}" for p in ("exact", *PRECISIONS))
        marks = {p: "" if of[p]["is_below_spread"] else " (not below)" for p in PRECISIONS}
        largest = " | ".join(f"{of[p]['largest_difference']:.4f}{marks[p]}" for p in PRECISIONS)
        lines.append(f"| {name} | {losses} | {one['spread']:.4f} | {largest} |")
    lines += ["", "| model and data | fast: mean | least | int8: mean | least | int8's worst parameter | below 0.97 |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | --- | --- |")
    for name, one in found.items():
        of = {p: one["precisions"][p]["cosine"] for p in PRECISIONS}
        both = " | ".join(f"{of[p]['mean']:.4f} | {of[p]['least']:.4f}" for p in PRECISIONS)
        worse = ", ".join(f"`{short(w['parameter'])}` {w['cosine']:.4f}" for w in of["int8"]["worse"]) or "none"
        lines.append(f"| {name} | {both} | `{short(of['int8']['worst'])}` | {worse} |")
    lines += ["", modules_table(found)]
    return "\n".join(lines)


def modules_table(found: dict[str, Any]) -> str:
    """int8's gradients by target module: mean and least over all layers, seeds and sets of data of a model."""
    models_ = list(dict.fromkeys(name.partition(" on ")[0] for name in found))
    of_model = {m: [one for name, one in found.items() if name.startswith(f"{m} on ")] for m in models_}
    heads = [f"{model}: {what}" for model in models_ for what in ("mean", "least")]
    lines = [f"| module, int8 | {' | '.join(heads)} |", f"| --- |{' ---: |' * len(heads)}"]
    for module in next(iter(found.values()))["precisions"]["int8"]["cosine"]["modules"]:
        cells = []
        for model in models_:
            parts = [one["precisions"]["int8"]["cosine"]["modules"][module] for one in of_model[model]]
            cells += [f"{np.mean([p['mean'] for p in parts]):.4f}", f"{min(p['least'] for p in parts):.4f}"]
        lines.append(f"| `{module}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def short(parameter: str) -> str:
    """A parameter without what all of them have in their names."""
    return parameter.removeprefix("base_model.model.model.").removesuffix(".weight")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared/data")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--table", action="store_true", help="Print the tables of what is there, and run nothing.")
    args = parser.parse_args()
    if not args.table:
        length = ["--batch", "4", "--length", "64", "--rank", "8", "--learning-rate", "1e-3"]
        run_all(args.out, args.data, [*length, "--steps", str(args.steps), "--seeds", str(args.seeds)])
    print(tables(args.out))


if __name__ == "__main__":
    main()
