"""IA3 by PEFT on the tiny models of tests/golden/families: logits, loss, gradients, merged weights, and folders.

    python tests/golden/make_ia3_golden.py        (needs torch, transformers and peft)

Writes tests/golden/ia3/: families.npz (for every family and case `<family>.<case>.config` as text, `.logits` of the first
tokens, `.loss`, and of every vector `.value.<key>` and `.grad.<key>`), stacked.npz (the same beside the LoRA adapter of
the record, whose gradients of layer 0 are `.grad.<key>`, too), the folders defaults, linear and saved (as PEFT saves them, for
tests/golden/adapters/tied and biased), and golden.npz with `<folder>.logits` in float64 and
`<folder>.merged.<key>`.
"""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import torch
from peft import IA3Config, LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent
OUT = HERE / "ia3"
SHOWN = 12  # tokens whose logits are kept
STACKED = ("llama", "qwen3", "gemma3", "gpt2", "phi3")
IDS = torch.tensor([(7 * i + 3) % 48 for i in range(18)])[None]
DEFAULTS = {"llama", "mistral", "gemma", "gemma2", "gemma3", "qwen2", "qwen3", "gpt2"}
FEEDFORWARD = ["down_proj", "up_proj", "q_proj", "qkv_proj", "c_attn", "mlp.c_proj"]  # by the end of a path
# folder: (base, IA3Config options)
FOLDERS = {
    "defaults": ("tied", {}),
    "linear": ("biased", {"target_modules": "all-linear", "feedforward_modules": r".*\.(down|k)_proj",
                          "exclude_modules": ["up_proj"]}),
    "saved": ("biased", {"modules_to_save": ["lm_head", "norm"]}),
}  # fmt: skip


def from_bits(bits: np.ndarray) -> np.ndarray:
    return bits.view(ml_dtypes.bfloat16).astype(np.float32)


def bits(values: torch.Tensor) -> np.ndarray:
    return values.detach().numpy().astype(ml_dtypes.bfloat16).view(np.uint16)


def base_of(record: dict[str, np.ndarray]) -> torch.nn.Module:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_bytes(record["config"].tobytes())
        tensors = {key[7:]: from_bits(value) for key, value in record.items() if key.startswith("tensor.")}
        save_file(tensors, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def draw(parameter: torch.Tensor, generator: torch.Generator) -> None:
    """Around one, so that no vector can be left out unseen."""
    with torch.no_grad():
        drawn = 1 + 0.3 * torch.randn(parameter.shape, generator=generator)
        parameter.copy_(drawn.to(torch.bfloat16).float())


def measure(model: torch.nn.Module, ids: torch.Tensor) -> dict[str, np.ndarray]:
    logits = model(input_ids=ids).logits[0]
    loss = torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:])
    loss.backward()
    return {"logits": logits.detach().numpy()[:SHOWN], "loss": np.float64(loss.item())}


def vectors_of(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The vectors of the text model by their key in a file."""
    named = model.named_parameters()
    return {name.replace(".default", ""): p for name, p in named if "ia3_l" in name and "vision" not in name}


def alone(record: dict[str, np.ndarray], options: dict, seed: int) -> dict[str, np.ndarray]:
    config = IA3Config(task_type="CAUSAL_LM", **options)
    model = get_peft_model(base_of(record), config).eval()
    generator = torch.Generator().manual_seed(seed)
    vectors = vectors_of(model)
    for parameter in vectors.values():
        draw(parameter, generator)
    out = measure(model, torch.tensor(record["ids"], dtype=torch.long)[None])
    out["config"] = np.frombuffer(json.dumps(options).encode(), np.uint8)
    for key, parameter in vectors.items():
        out |= {f"value.{key}": bits(parameter), f"grad.{key}": parameter.grad.numpy()}
    return out


def stacked(record: dict[str, np.ndarray], options: dict, seed: int) -> dict[str, np.ndarray]:
    """A LoRA model whose adapted modules are scaled from outside: the input of some, the output of the others."""
    shape_of = alone(record, options, seed)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base_of(record), lora).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                parameter.copy_(torch.tensor(from_bits(record["adapter." + key.replace(".default", "")])))
    modules = dict(model.named_modules())
    vectors = {}
    for name, value in shape_of.items():
        if not name.startswith("value."):
            continue
        key = name.removeprefix("value.")
        vector = torch.tensor(from_bits(value)).requires_grad_(True)
        vectors[key] = vector
        module = modules[key.removesuffix(".ia3_l")]
        if vector.shape[0] == 1:
            module.register_forward_pre_hook(lambda _, args, v=vector: (args[0] * v.flatten(), *args[1:]))
        else:
            module.register_forward_hook(lambda _, args, y, v=vector: y * v.flatten())
    out = measure(model, torch.tensor(record["ids"], dtype=torch.long)[None])
    out["config"] = shape_of["config"]
    for key, vector in vectors.items():
        out |= {f"value.{key}": shape_of[f"value.{key}"], f"grad.{key}": vector.grad.numpy()}
    for key, parameter in model.named_parameters():
        if "lora_" in key and ".0." in key:
            out["grad." + key.replace(".default", "")] = parameter.grad.numpy()
    return out


def linear_options(record: dict[str, np.ndarray]) -> dict:
    """Every matrix of the layers; some have their input scaled."""
    names = {key for key in FEEDFORWARD if any(tensor.endswith(key + ".weight") for tensor in record)}
    if "vision_config" in json.loads(record["config"].tobytes()):
        return {"target_modules": r".*language_model.*\.\w+_proj", "feedforward_modules": sorted(names)}
    return {"target_modules": "all-linear", "feedforward_modules": sorted(names)}


def folders() -> dict[str, np.ndarray]:
    out = {}
    for name, (base, options) in FOLDERS.items():
        torch.manual_seed(5)
        source = AutoModelForCausalLM.from_pretrained(HERE / "adapters" / base, dtype=torch.float32)
        model = get_peft_model(source, IA3Config(task_type="CAUSAL_LM", **options)).eval()
        generator = torch.Generator().manual_seed(9)
        for parameter in model.parameters():
            if parameter.requires_grad:
                draw(parameter, generator)
        model.peft_config["default"].base_model_name_or_path = base
        model.save_pretrained(OUT / name)
        (OUT / name / "README.md").unlink(missing_ok=True)
        assert set(get_peft_model_state_dict(model))
        if name != "saved":
            merged = copy.deepcopy(model).merge_and_unload().state_dict()
            out |= {f"{name}.merged.{key}": merged[key].numpy() for key in merged if ".1." in key}
        out[f"{name}.logits"] = model.double()(input_ids=IDS).logits[0].detach().numpy()
    return out


def main() -> None:
    torch.set_num_threads(1)
    OUT.mkdir(exist_ok=True)
    kept: dict[str, np.ndarray] = {}
    both: dict[str, np.ndarray] = {}
    for number, path in enumerate(sorted((HERE / "families").glob("*.npz"))):
        if "_" in path.stem and path.stem not in ("phi3_longrope", "gemma3_conditional"):
            continue  # these differ in what rotates queries and keys
        with np.load(path) as file:
            record = dict(file)
        cases = {"linear": alone(record, linear_options(record), 700 + number)}
        if path.stem in DEFAULTS:
            cases["defaults"] = alone(record, {}, 800 + number)
        if path.stem in STACKED:
            out = stacked(record, linear_options(record), 900 + number)
            both |= {f"{path.stem}.stacked.{key}": value for key, value in out.items()}
        kept |= {f"{path.stem}.{case}.{key}": value for case, out in cases.items() for key, value in out.items()}
        print(path.stem)
    np.savez_compressed(OUT / "families.npz", **kept)
    np.savez_compressed(OUT / "stacked.npz", **both)
    np.savez_compressed(OUT / "golden.npz", **folders())


if __name__ == "__main__":
    main()
