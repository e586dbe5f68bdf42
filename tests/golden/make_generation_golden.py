"""Writes generation_golden.npz: what transformers generates and which tokens it draws from, under many settings.

Usage: python make_generation_golden.py FOLDER_OF_STORIES260K (needs transformers 5)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

PROMPTS = ["Once upon a time", "Lily and Tom went to the", "The cat", ""]
GREEDY: list[dict[str, Any]] = [
    {}, {"repetition_penalty": 1.3}, {"repetition_penalty": 0.8}, {"repetition_penalty": 5.0}, {"no_repeat_ngram_size": 1},
    {"no_repeat_ngram_size": 2}, {"no_repeat_ngram_size": 3}, {"suppress_tokens": [426, 262]},
    {"begin_suppress_tokens": [432, 426, 338, 317]}, {"bad_words_ids": [[426], [2], [403, 407], [432, 338, 317]]},
    {"min_new_tokens": 30, "eos_token_id": [426, 2]}, {"eos_token_id": [426, 2], "bad_words_ids": [[426], [432]]},
    {"forced_eos_token_id": 2}, {"forced_eos_token_id": [426, 2]}, {"forced_bos_token_id": 410},
    {"forced_bos_token_id": 410, "begin_suppress_tokens": [432, 426]},
    {"repetition_penalty": 1.5, "no_repeat_ngram_size": 3, "suppress_tokens": [426], "min_new_tokens": 10,
     "forced_eos_token_id": 2},
]  # fmt: skip
SAMPLED: list[dict[str, Any]] = [
    {}, {"temperature": 0.5}, {"temperature": 1.7}, {"top_k": 1}, {"top_k": 7}, {"top_p": 0.5}, {"top_p": 0.95},
    {"min_p": 0.05}, {"min_p": 0.5}, {"typical_p": 0.3}, {"typical_p": 0.9},
    {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.1},
    {"temperature": 1.3, "top_k": 40, "top_p": 0.9, "typical_p": 0.8, "repetition_penalty": 1.2},
]  # fmt: skip


@torch.no_grad()
def main() -> None:
    folder = sys.argv[1]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    result: dict[str, Any] = {}
    for n, options in enumerate(GREEDY):
        for i, prompt in enumerate(PROMPTS):
            ids = tokenizer(prompt, return_tensors="pt").input_ids
            config = GenerationConfig(do_sample=False, **{"eos_token_id": 2, "bos_token_id": 1, **options}, max_new_tokens=40)
            result[f"greedy.{n}.{i}"] = (
                model.generate(ids, generation_config=config)[0, ids.shape[1] :].numpy().astype(np.int32)
            )
    for i, prompt in enumerate(PROMPTS[:3]):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        logits = model(ids).logits[:, -1]
        result[f"ids.{i}"], result[f"logits.{i}"] = ids[0].numpy().astype(np.int32), logits[0].numpy()
        for n, options in enumerate(SAMPLED):
            config = GenerationConfig(**{"do_sample": True, "top_k": 0, **options})
            config, _ = model._prepare_generation_config(config)
            processors = model._get_logits_processor(config, input_ids_seq_length=ids.shape[1])
            result[f"weights.{n}.{i}"] = processors(ids, logits.clone()).softmax(-1)[0].numpy()
    options = {"prompts": PROMPTS, "greedy": GREEDY, "sampled": SAMPLED}
    path = Path(__file__).with_name("generation_golden.npz")
    np.savez_compressed(path, options=np.frombuffer(json.dumps(options).encode(), np.uint8), **result)
    print(f"{path.name}: {len(GREEDY)} greedy and {len(SAMPLED)} sampled settings")


if __name__ == "__main__":
    main()
