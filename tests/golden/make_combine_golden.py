"""Three small adapters, and the logits of their combinations by PEFT's add_weighted_adapter (the deterministic ones).

Usage: PYTHON_WITH_PEFT tests/golden/make_combine_golden.py      after make_adapter_golden.py, whose `tied` base it uses
Writes tests/golden/adapters/{first,second,third}/ and tests/golden/adapters/combine.npz with `<case>.logits`.
"""

from __future__ import annotations

import warnings

import numpy as np
from make_adapter_golden import OUT, clean, fresh, logits, randomize
from peft import PeftModel
from transformers import LlamaForCausalLM

ADAPTERS = {
    "first": {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "up_proj"]},
    "second": {"r": 3, "lora_alpha": 2, "target_modules": ["q_proj", "up_proj"]},
    "third": {"r": 2, "lora_alpha": 6, "target_modules": ["v_proj", "up_proj"]},
}
# case: (adapters, weights, options of add_weighted_adapter); tests/python/test_combine.py reads this table from the record
CASES = {
    "linear": (["first", "second"], [0.7, 0.3], {"combination_type": "linear"}),
    "linear_negative": (["first", "second"], [0.7, -0.4], {"combination_type": "linear"}),
    "cat": (["first", "third"], [0.7, -0.4], {"combination_type": "cat"}),
    "svd": (["first", "third"], [0.6, 0.8], {"combination_type": "svd"}),
    "svd_rank": (["first", "second", "third"], [0.6, 0.8, 1.0], {"combination_type": "svd", "svd_rank": 5}),
    "ties": (["first", "second"], [0.7, 0.3], {"combination_type": "ties", "density": 0.5}),
    "ties_frequency": (["first", "second"], [1.0, 1.5], {
        "combination_type": "ties", "density": 0.7, "majority_sign_method": "frequency",
    }),
    "ties_svd": (["first", "third"], [0.7, 0.9], {"combination_type": "ties_svd", "density": 0.4, "svd_rank": 4}),
    "magnitude_prune": (["first", "second"], [0.7, 0.3], {"combination_type": "magnitude_prune", "density": 0.5}),
    "magnitude_prune_svd": (["first", "third"], [0.7, 0.3], {"combination_type": "magnitude_prune_svd", "density": 0.5}),
    "dare_linear": (["first", "second"], [0.7, 0.3], {"combination_type": "dare_linear", "density": 1.0}),
    "dare_ties": (["first", "second"], [0.7, 0.3], {"combination_type": "dare_ties", "density": 1.0}),
    "dare_ties_svd": (["first", "third"], [0.7, 0.3], {"combination_type": "dare_ties_svd", "density": 1.0}),
    "one": (["first"], [0.4], {"combination_type": "svd"}),
}  # fmt: skip


def main() -> None:
    warnings.simplefilter("ignore")
    for name, options in ADAPTERS.items():
        model = fresh("tied", options)
        for _ in name:
            randomize(model)
        model.save_pretrained(OUT / name)
        clean(name, "tied")
    record: dict[str, np.ndarray] = {"cases": np.array(repr(CASES))}
    base = LlamaForCausalLM.from_pretrained(OUT / "tied")
    model = PeftModel.from_pretrained(base, OUT / "first", adapter_name="first")
    for name in ("second", "third"):
        model.load_adapter(OUT / name, adapter_name=name)
    for case, (names, weights, options) in CASES.items():
        model.add_weighted_adapter(names, weights, case, **options)
        model.set_adapter(case)
        record[f"{case}.logits"] = logits(model)
    np.savez_compressed(OUT / "combine.npz", **record)


if __name__ == "__main__":
    main()
