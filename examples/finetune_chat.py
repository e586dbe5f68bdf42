"""QLoRA of a chat model: load, data, train, ask before and after.

    python examples/finetune_chat.py [--out DIR] [--steps N]

The small base that ships has read stories and never seen a question; it learns to answer questions about short scenes.
"""

import argparse
from pathlib import Path

import lora_c as lc
from lora_c.demo.world import task  # a generator of scenes, questions and answers

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--out", type=Path, default=Path("lora-c-output/finetune_chat"))
parser.add_argument("--steps", type=int, default=300)
args = parser.parse_args()

model = lc.load_model("demo", quantize="nf4")  # or a folder, a GGUF file, "Qwen/Qwen3-0.6B"
conversations, held_out = task(seed=0, n_train=16 * args.steps, n_held_out=6)
data = lc.load_dataset(conversations, model.tokenizer)  # or a file such as examples/data/chat.jsonl
print(data.report())

questions = [example["messages"][:1] for example in held_out]
before = model.generate(questions, max_new_tokens=10)

model.add_adapter(lc.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
model.print_trainable_parameters()
config = lc.TrainConfig(
    output_dir=str(args.out),
    max_steps=args.steps,
    per_device_train_batch_size=16,
    learning_rate=4e-3,  # a base this small takes large steps; 2e-4 is usual
    lr_scheduler_type="cosine",
    warmup_ratio=0.05,
    adam_beta2=0.99,
    val_fraction=0.01,
    eval_steps=max(1, args.steps // 4),
)
result = lc.Trainer(model, data, config).train(overwrite=True)  # the example may run again
model.save_adapter(args.out)  # PEFT's format

after = model.generate(questions, max_new_tokens=10)
for example, first, second in zip(held_out, before, after, strict=True):
    question, answer = (message["content"] for message in example["messages"])
    print(f"\n{question}\n  before    {first.strip()}\n  after     {second.strip()}\n  expected  {answer}")
evaluated = [record for record in result.history if "eval_loss" in record]
print("\nheld-out loss  " + "  ".join(f"step {record['step']}: {record['eval_loss']:.3f}" for record in evaluated))
print(f"talk to it:    lora-c chat --run {args.out}")
