"""Sequence classification: which aggregation a question asks for; the head alone, then LoRA with it.

    python examples/classify_questions.py [--data DIR] [--model MODEL] [--out DIR]

Without --data it makes questions of its own. With it DIR holds WikiSQL as mlx-examples has it (train.jsonl, valid.jsonl and
test.jsonl, a line {"text": "table: …\\nQ: question\\nA: SELECT COUNT …"} for each question).
"""

import argparse
import itertools
import json
import random
import re
from pathlib import Path

import lora_c as lc

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--data", type=Path)
parser.add_argument("--model", default="demo")
parser.add_argument("--out", type=Path, default=Path("lora-c-output/classify_questions"))
args = parser.parse_args()


def wikisql(split):
    """The question of each line, and the operator of its query."""
    for line in (args.data / f"{split}.jsonl").read_text(encoding="utf-8").splitlines():
        question, query = re.search(r"\nQ: (.*)\nA: SELECT (.*)", json.loads(line)["text"]).groups()
        operator = re.match(r"(COUNT|MIN|MAX|SUM|AVG) ", query)
        yield {"text": question.strip(), "label": operator[1] if operator else "none"}


def made_up():
    forms = {"COUNT": "how many {0} did the {1} see", "MAX": "what is the largest of the {0} of the {1}",
             "MIN": "what is the smallest of the {0} of the {1}", "none": "which {0} does the {1} like"}  # fmt: skip
    names = itertools.product(("birds", "trees", "cats", "boats", "apples", "stones"), ("girl", "boy", "man", "dog", "bear"))
    found = [{"text": form.format(*pair), "label": label} for pair in names for label, form in forms.items()]
    random.Random(0).shuffle(found)
    return {"train": found[:80], "valid": found[80:100], "test": found[100:]}


splits = {name: list(wikisql(name)) for name in ("train", "valid", "test")} if args.data else made_up()
labels = lc.find_labels(splits["train"])
print(f"{len(splits['train']):,} questions to learn from; labels: {', '.join(labels.names)}")
for method, rate, trainable in (("head", 0.1, "head"), ("lora", 2e-3, "none")):  # rates chosen on valid
    model = lc.load_model(args.model, task_type="SEQ_CLS", id2label=labels, trainable=trainable)
    if method == "lora":
        model.add_adapter(lc.LoraConfig(r=16, lora_alpha=32, task_type="SEQ_CLS"))  # its score is trained and saved with it
    data = {name: lc.load_dataset(records, model.tokenizer) for name, records in splits.items()}
    options = {"learning_rate": rate, "lr_scheduler_type": "cosine", "warmup_ratio": 0.05, "per_device_train_batch_size": 16}
    config = lc.TrainConfig(output_dir=str(args.out / method), method=method, num_train_epochs=3, **options)
    trainer = lc.Trainer(model, data["train"], config, data["valid"])
    seconds = trainer.train(overwrite=True).elapsed_seconds
    found = "  ".join(f"{name} {value:.3f}" for name, value in trainer.measure(data["test"]).items())
    print(f"{method:<5} {sum(p.size for p in trainer.parameters):>7,} parameters  {seconds:5.1f} s  test: {found}")
model.save_adapter(args.out / "lora")
print(
    model.classify(splits["test"][0]["text"]), f"\nask it:  lora-c classify --model {args.model} --adapter {args.out / 'lora'}"
)
