"""Makes tests/golden/classifiers.npz and classifier_adapters/: what transformers and PEFT compute with classifiers.

    python tests/golden/make_classifier_golden.py        (needs torch, transformers and peft)

The weights are those of `weights_of_names.py`, so that only config.json (as text), the labels and what is computed of
them lie in the file. Of each case:
  `<case>.config`, `<case>.labels`
  `<case>.logits`, `<case>.loss`         of the base, and `<case>.head_grad`, the gradient of its score
  `<case>.adapted.logits`, `.loss`       with an adapter of PEFT (task_type SEQ_CLS), its values those of their names
  `<case>.grad.<key>`                    by the keys of its file
classifier_adapters/<case>/ holds that adapter as PEFT writes it, of the cases in WRITTEN.
"""

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from make_family_golden import CASES as FAMILIES
from make_family_golden import config_of
from peft import LoraConfig, TaskType, get_peft_model
from weights_of_names import tensor

OUT = Path(__file__).parent
LENGTHS = (5, 11, 8)
WRITTEN = ("llama", "gpt2", "regression")
# case: (family, number of labels, problem_type, labels)
CASES = {
    **{name: (name, 3, None, [2, 0, 1]) for name in FAMILIES if "_" not in name and name != "granite"},
    "gemma3_conditional": ("gemma3_conditional", 3, None, [2, 0, 1]),
    "two": ("llama", 2, None, [1, 0, 1]),
    "regression": ("qwen3", 1, None, [0.5, -1.25, 3.0]),
    "numbers": ("gpt2", 2, "regression", [[0.5, 2.0], [-1.25, 0.0], [3.0, 1.0]]),
    "multi": ("llama", 4, "multi_label_classification", [[1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 0]]),
}


def ids_of(case):
    rng = np.random.default_rng(len(case))
    return [rng.integers(3, 60, n).astype(np.int32) for n in LENGTHS]


def padded(sequences):
    ids = torch.zeros((len(sequences), max(map(len, sequences))), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, sequence in enumerate(sequences):
        ids[i, : len(sequence)] = torch.tensor(sequence)
        mask[i, : len(sequence)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def name_weights(parameters, around_zero):
    with torch.no_grad():
        for key, parameter in parameters:
            parameter.copy_(torch.tensor(tensor(key, tuple(parameter.shape), around_zero)))


def record(case):
    family, n_labels, problem_type, labels = CASES[case]
    config = config_of(family)
    config.num_labels, config.pad_token_id = n_labels, 0
    if problem_type:
        config.problem_type = problem_type
    config._attn_implementation = "eager"
    model = transformers.AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).eval()
    around_zero = family.startswith("gemma")
    name_weights(model.named_parameters(), around_zero)
    batch = padded(ids_of(case)) | {"labels": torch.tensor(labels)}
    if problem_type == "multi_label_classification":
        batch["labels"] = batch["labels"].float()
    out = {"labels": np.asarray(labels)}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        out["config"] = np.frombuffer((Path(folder) / "config.json").read_bytes(), np.uint8)
    result = model(**batch)
    result.loss.backward()
    out |= {"logits": result.logits.detach().numpy(), "loss": np.float64(result.loss.item())}
    out["head_grad"] = model.score.weight.grad.numpy().copy()
    model.zero_grad()
    targets = ["q_proj", "v_proj"] if family not in ("gpt2", "phi3") else None if family == "gpt2" else ["qkv_proj"]
    if family == "gemma3_conditional":
        targets = r"model\.language_model\..*\.(q_proj|v_proj)"
    peft = get_peft_model(model, LoraConfig(r=2, lora_alpha=6, target_modules=targets, task_type=TaskType.SEQ_CLS))
    trained = {key.replace(".modules_to_save.default", "").replace(".default", ""): p for key, p in peft.named_parameters()
               if p.requires_grad}  # fmt: skip
    name_weights(trained.items(), around_zero)
    result = peft(**batch)
    result.loss.backward()
    out |= {"adapted.logits": result.logits.detach().numpy(), "adapted.loss": np.float64(result.loss.item())}
    out |= {f"grad.{key}": p.grad.numpy() for key, p in trained.items()}
    if case in WRITTEN:
        folder = OUT / "classifier_adapters" / case
        shutil.rmtree(folder, ignore_errors=True)
        peft.peft_config["default"].base_model_name_or_path = None
        peft.save_pretrained(folder)
        (folder / "README.md").unlink()
    print(f"{case:20} {json.loads(bytes(out['config']))['architectures']} {sorted(trained)[-1]} loss {out['loss']:.4f}")
    return {f"{case}.{key}": value for key, value in out.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = {}
    for case in CASES:
        found |= record(case)
    np.savez_compressed(OUT / "classifiers.npz", **found)
    print((OUT / "classifiers.npz").stat().st_size, "bytes")
