"""Makes tests/golden/hidden_states.npz: the hidden states that transformers computes for the tiny models of families/.

    python tests/golden/make_hidden_golden.py        (needs torch, transformers and peft)

Keys: the family; (layers + 1, tokens, hidden size) float32, of the first tokens of the family's `ids`.
"""

import json
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import torch
import transformers
from safetensors.numpy import save_file

HERE = Path(__file__).parent
TOKENS = 10
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma", "gemma2", "gemma3", "olmo2", "granite", "gpt2")


def main():
    out = {}
    for name in FAMILIES:
        record = np.load(HERE / "families" / f"{name}.npz")
        with tempfile.TemporaryDirectory() as folder:
            config = json.loads(record["config"].tobytes())
            (Path(folder) / "config.json").write_text(json.dumps(config))
            tensors = {
                key[7:]: record[key].view(ml_dtypes.bfloat16).astype(np.float32)
                for key in record.files if key.startswith("tensor.")
            }  # fmt: skip
            save_file(tensors, Path(folder) / "model.safetensors", metadata={"format": "pt"})
            model = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, attn_implementation="eager"
            ).eval()
        ids = torch.tensor(record["ids"][None, :TOKENS].astype(np.int64))
        with torch.no_grad():
            states = model(ids, output_hidden_states=True).hidden_states
        out[name] = np.stack([state[0].numpy() for state in states])
    np.savez_compressed(HERE / "hidden_states.npz", **out)


main()
