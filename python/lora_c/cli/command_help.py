"""What the help of each command begins with: two examples, and the flags that most people need."""

from __future__ import annotations

# Lines of 58 characters at most: they are not wrapped, so that they can be copied.
EXAMPLES: dict[str, tuple[str, str]] = {
    "train": (
        "lora-c train --model MODEL --data chat.jsonl \\\n    --output-dir out --epochs 3 --lr 2e-4",
        "lora-c train --config run.yaml --resume auto",
    ),
    "sweep": (
        "lora-c sweep --model MODEL --data chat.jsonl \\\n    --val-fraction 0.1 --output-dir sweep",
        "lora-c sweep --config run.yaml --trials 9 --lr-max 3e-2",
    ),
    "compare": (
        "lora-c compare --quick",
        "lora-c compare --model MODEL --data chat.jsonl \\\n    --val-fraction 0.1 --rows head,lora-r8,qlora --seeds 3",
    ),
    "generate": (
        'lora-c generate --model MODEL --adapter out "Hello"',
        "lora-c generate --model MODEL --prompts questions.txt \\\n    --max-new-tokens 64 > answers.jsonl",
    ),
    "chat": (
        "lora-c chat --model MODEL --adapter out",
        'lora-c chat --model MODEL --system "Answer in verse."',
    ),
    "serve": (
        "lora-c serve --model MODEL --adapters adapters/",
        "lora-c serve --model MODEL --host 0.0.0.0 \\\n    --api-key-file keys.txt --port 8080",
    ),
    "classify": (
        'lora-c classify --model MODEL --adapter out "How many?"',
        "lora-c classify --model MODEL --adapter out \\\n    --texts questions.txt > labels.jsonl",
    ),
    "eval": (
        "lora-c eval --model MODEL --data held_out.jsonl",
        "lora-c eval --model MODEL --adapter out --baseline \\\n    --data test.jsonl --task exact-match --json",
    ),
    "data": (
        "lora-c data --model MODEL --data chat.jsonl",
        "lora-c data --model MODEL --data table.csv --limit 100",
    ),
    "plan": (
        "lora-c plan --model MODEL --data chat.jsonl --r 16",
        "lora-c plan --shape llama-3.1-8b --method qlora \\\n    --device 'RTX 4090'",
    ),
    "merge": (
        "lora-c merge --model MODEL --adapter out \\\n    --output-dir merged",
        "lora-c merge --model MODEL --adapter out \\\n    --output-dir merged.gguf --dtype q8_0",
    ),
    "export": (
        "lora-c export out adapter.gguf --to gguf --model MODEL",
        "lora-c export MODEL model.gguf --to gguf --dtype q8_0",
    ),
    "inspect": (
        "lora-c inspect MODEL",
        "lora-c inspect adapter_model.safetensors --json",
    ),
    "quantize": (
        "lora-c quantize --model MODEL --output-dir MODEL-nf4",
        "lora-c quantize --model MODEL --output-dir MODEL-nf4 \\\n    --block-size 128 --no-double-quant",
    ),
    "devices": ("lora-c devices", "lora-c devices --json"),
    "bench": (
        "lora-c bench --model MODEL --batch 1 --length 256 \\\n    --profile",
        "lora-c bench --numerics --model MODEL --data chat.jsonl \\\n    --val-fraction 0.1 --output-dir numerics",
    ),
    "replay": (
        "lora-c replay out/bad-step-12",
        "lora-c replay out/bad-step-12 --model MODEL --json",
    ),
    "plot": (
        "lora-c plot out",
        "lora-c plot run-a run-b --out compared.png",
    ),
    "demo": (
        "lora-c demo",
        "lora-c demo --short --out /tmp/demo",
    ),
    "completion": (
        "lora-c completion bash >> ~/.bashrc",
        "lora-c completion fish \\\n    > ~/.config/fish/completions/lora-c.fish",
    ),
}

# Names of the parameters, in the order of the help.
MAIN_FLAGS: dict[str, tuple[str, ...]] = {
    "train": ("model", "data", "output_dir", "num_train_epochs", "learning_rate"),
    "sweep": ("model", "data", "val_fraction", "trials", "output_dir"),
    "compare": ("model", "data", "rows", "quick", "output_dir"),
    "generate": ("model", "adapter", "prompts", "max_new_tokens", "temperature"),
    "chat": ("model", "adapter", "system", "max_new_tokens", "temperature"),
    "serve": ("model", "adapters", "host", "port", "api_key_file"),
    "classify": ("model", "adapter", "texts", "text_pair", "max_seq_length"),
    "eval": ("model", "data", "adapter", "task", "baseline"),
    "data": ("model", "data", "eval_data", "max_seq_length", "limit"),
    "plan": ("model", "shape", "method", "data", "device"),
    "merge": ("model", "adapters", "output_dir", "dtype", "to"),
    "bench": ("model", "shape", "length", "profile", "numerics"),
}
