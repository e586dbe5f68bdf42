"""A training loop of one's own, without `Trainer`: batches, `Decoder.forward_backward`, `AdamW`.

python examples/own_training_loop.py [--out DIR] [--steps N]
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import lora_c as lc
from lora_c.demo.world import task

Batch = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def pack(samples: Sequence) -> Batch:
    """Samples behind each other, without padding: ids, where each begins, the token to predict at each place, its weight."""
    ids = np.concatenate([sample.input_ids for sample in samples])
    cu_seqlens = np.cumsum([0, *map(len, samples)], dtype=np.int32)
    targets = np.append(ids[1:], 0).astype(np.int32)
    loss_weight = np.append(np.concatenate([sample.loss_mask for sample in samples])[1:], 0).astype(np.float32)
    loss_weight[cu_seqlens[1:] - 1] = 0  # behind the last token of a sample nothing is predicted
    return ids, cu_seqlens, targets, loss_weight


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("lora-c-output/own_training_loop"))
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()

    model = lc.load_model("demo", quantize="nf4")
    model.add_adapter(lc.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    examples, held_out = task(seed=0, n_train=2000, n_held_out=40)
    data, tests = (list(lc.load_dataset(part, model.tokenizer)) for part in (examples, held_out))
    test, rng = pack(tests), np.random.default_rng(0)
    model.decoder.precision = "fast"  # operands in 16 bits where the CPU is faster with them; sums in float32

    optimizer = lc.AdamW(model.trainable_parameters(), lr=4e-3, betas=(0.9, 0.99), weight_decay=0.0)
    for step in range(args.steps + 1):
        if step % max(1, args.steps // 5) == 0 or step == args.steps:
            print(f"step {step:4}  held-out loss {model.decoder.loss(*test) / test[3].sum():.4f}")
        if step == args.steps:
            break
        micro_batches = [pack([data[i] for i in rng.integers(len(data), size=8)]) for _ in range(2)]
        tokens = sum(batch[3].sum() for batch in micro_batches)  # normalised by all tokens with loss, as one batch would be
        optimizer.zero_grad()
        for batch in micro_batches:  # gradients are added: accumulation needs nothing else
            model.decoder.forward_backward(*batch, grad_scale=1 / tokens)
        rate = 4e-3 * min(1.0, (step + 1) / 10) * (1 + math.cos(math.pi * step / args.steps)) / 2
        optimizer.step(lr=rate, max_grad_norm=1.0)
    model.save_adapter(args.out)


if __name__ == "__main__":
    main()
