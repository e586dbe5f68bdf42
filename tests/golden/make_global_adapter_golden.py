"""Adapters on the embedding and on the head, written by PEFT for the bases of make_adapter_golden.py.

Usage: PYTHON_WITH_PEFT tests/golden/make_global_adapter_golden.py     (torch, transformers, peft)
Writes tests/golden/global_adapters/: one folder per adapter, golden.npz with `<adapter>.logits`, `<adapter>.loss` and
`<adapter>.grad.<tensor>` under the names of the adapter's file. Token ids are those of adapters/golden.npz.
"""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import numpy as np
from make_adapter_golden import IDS, fresh, logits, randomize
from make_adapter_golden import OUT as BASES

OUT = Path(__file__).parent / "global_adapters"
ADAPTERS: dict[str, tuple[str, dict]] = {
    "head": ("biased", {"r": 3, "lora_alpha": 4, "target_modules": ["q_proj", "lm_head"], "rank_pattern": {"lm_head": 2}}),
    "embedding": ("biased", {"r": 2, "lora_alpha": 3, "use_rslora": True, "target_modules": ["embed_tokens", "down_proj"]}),
    "both": ("biased", {"r": 2, "target_modules": ["embed_tokens", "lm_head"]}),
    "head_tied": ("tied", {"r": 2, "target_modules": ["lm_head", "v_proj"]}),
    "embedding_tied": ("tied", {"r": 2, "target_modules": ["embed_tokens"], "lora_dropout": 0.1}),
}


def main() -> None:
    warnings.simplefilter("ignore")
    shutil.rmtree(OUT, ignore_errors=True)
    record: dict[str, np.ndarray] = {}
    for name, (base, options) in ADAPTERS.items():
        model = fresh(base, options)
        randomize(model)
        model.save_pretrained(OUT / name)
        (OUT / name / "README.md").unlink()
        config = OUT / name / "adapter_config.json"
        config.write_text(config.read_text().replace(str(BASES / base), base))
        record[f"{name}.logits"] = logits(model)
        loss = model(input_ids=IDS[None], labels=IDS[None]).loss
        loss.backward()
        record[f"{name}.loss"] = np.float64(loss.item())
        for key, parameter in model.named_parameters():
            if parameter.grad is not None:
                record[f"{name}.grad.{key.replace('.default', '')}"] = parameter.grad.numpy()
    np.savez_compressed(OUT / "golden.npz", **record)


if __name__ == "__main__":
    main()
