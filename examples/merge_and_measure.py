"""What merging an adapter into its base costs: loss and size of the base, the adapter, and the merged model in four types.

python examples/merge_and_measure.py [--out DIR] [--steps N]
"""

import argparse
from pathlib import Path

import numpy as np

import lora_c as lc
from lora_c.demo.world import task


def mean_loss(model: lc.Model, examples: list[dict]) -> float:
    return float(np.mean([model.loss(example["messages"]) for example in examples]))


def size(path: Path) -> int:
    """Bytes of the weights: of the safetensors files of a folder."""
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("lora-c-output/merge_and_measure"))
    parser.add_argument("--steps", type=int, default=150)
    args = parser.parse_args()

    model = lc.load_model("demo")
    conversations, held_out = task(seed=0, n_train=16 * args.steps, n_held_out=100)
    model.save(args.out / "base")
    rows = [("base", mean_loss(model, held_out), size(args.out / "base"))]

    model.add_adapter(lc.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    config = lc.TrainConfig(
        output_dir=str(args.out / "adapter"), method="lora", max_steps=args.steps, per_device_train_batch_size=16,
        learning_rate=4e-3, lr_scheduler_type="cosine", warmup_ratio=0.05, adam_beta2=0.99,
    )  # fmt: skip
    trainer = lc.Trainer(model, lc.load_dataset(conversations, model.tokenizer), config)
    trainer.train(overwrite=True)  # the example may run again
    model.save_adapter(args.out / "adapter")
    rows.append(("base and adapter", mean_loss(model, held_out), rows[0][2] + size(args.out / "adapter")))

    for dtype in ("float32", "bfloat16", "float16", "nf4"):
        merged = model.merge(dtype=dtype)
        merged.save(args.out / dtype)
        rows.append((f"merged, {dtype}", mean_loss(merged, held_out), size(args.out / dtype)))

    adapted = rows[1][1]
    print(f"\n{'':18} {'loss':>8} {'to adapter':>11} {'MB':>7}")
    for name, loss, n_bytes in rows:
        print(f"{name:18} {loss:8.4f} {loss - adapted:+11.1e} {n_bytes / 1e6:7.2f}")
    print(f"\nall of them in {args.out}")


if __name__ == "__main__":
    main()
