"""A fine-tuned model as a GGUF file and back: how far the logits move with each type, against a stated bound.

    python examples/gguf_roundtrip.py [--out DIR] [--steps N]

The bound, relative to the largest logit: eight times what a single weight is rounded by, as the errors of many weights largely
cancel each other. F32 keeps every bit. llama.cpp and ollama read the same files.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

import lora_c as lc
from lora_c.demo.world import task
from lora_c.gguf import write_model

ROUNDING = {"F32": 0.0, "F16": 2.0**-11, "BF16": 2.0**-9, "Q8_0": 1 / 254}  # Q8_0: half a step of a block's largest / 127


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("lora-c-output/gguf_roundtrip"))
    parser.add_argument("--steps", type=int, default=120)
    args = parser.parse_args()

    model = lc.load_model("demo")
    conversations, held_out = task(seed=0, n_train=4 * args.steps, n_held_out=20)
    model.add_adapter(lc.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    config = lc.TrainConfig(output_dir=str(args.out / "run"), method="lora", max_steps=args.steps, learning_rate=4e-3)
    trainer = lc.Trainer(model, lc.load_dataset(conversations, model.tokenizer), config)
    trainer.train(overwrite=True)  # the example may run again

    merged = model.merge(dtype="float32")
    texts = [example["messages"] for example in held_out]
    logits = [merged.logits(text) for text in texts]
    answers = merged.generate([text[:1] for text in texts], max_new_tokens=10)
    kept = True
    for kind, rounding in ROUNDING.items():
        path = args.out / f"model-{kind}.gguf"
        write_model(path, merged, kind)
        loaded = lc.load_model(path)
        moved = max(np.abs(loaded.logits(text) - y).max() / np.abs(y).max() for text, y in zip(texts, logits, strict=True))
        again = loaded.generate([text[:1] for text in texts], max_new_tokens=10)
        same = sum(a == b for a, b in zip(answers, again, strict=True))
        size = path.stat().st_size / 1e6
        print(
            f"{kind:5} {size:5.2f} MB  logits move {moved:.1e}, bound {8 * rounding:.1e}  {same} of {len(texts)} answers same"
        )
        kept &= moved <= 8 * rounding
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
