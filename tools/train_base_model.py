"""Train the base model that ships, from scratch, with the package's own full-training mode.

    python tools/train_base_model.py --out python/lora_c/base_model

A byte-level BPE tokenizer and a Llama of about 1M parameters learn the small world of ``lora_c.demo.world``. Everything
is seeded: the same version of the package on the same kind of CPU writes the same bytes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

import lora_c as lc
from lora_c.data import Dataset, Sample
from lora_c.demo.world import conversations, stories

SPECIAL = ["<|end|>", "<|user|>", "<|assistant|>"]
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "torch_dtype": "bfloat16",
}


def make_tokenizer(folder: Path, vocab_size: int) -> int:
    """Write tokenizer.json and its config; returns the vocabulary size. The words of the questions are known."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = [chr(c) for c in range(32, 127)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(t, special=True) for t in SPECIAL],
        initial_alphabet=[_byte_char(c) for c in alphabet],
    )
    words = [m["content"] for c in conversations(seed=17, n=2000, n_questions=3) for m in c["messages"]]
    tokenizer.train_from_iterator([*stories(seed=17, n=4000), *words], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": "<|end|>",
        "pad_token": None,
        "chat_template": TEMPLATE,
        "model_max_length": CONFIG["max_position_embeddings"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    return tokenizer.get_vocab_size()


def _byte_char(c: str) -> str:
    """The letter that stands for an ASCII byte in a byte-level vocabulary."""
    return "Ġ" if c == " " else c


def make_random_model(folder: Path, vocab_size: int, seed: int) -> None:
    """A float32 folder of normal weights.

    A matrix gets the standard deviation 0.7 / sqrt(inputs), the two that write to the residual stream 1 / sqrt(2 layers) of
    that: at a width of 128 the usual 0.02 leaves the attention logits near zero, and looking back is learned far later.
    """
    config = CONFIG | {"vocab_size": vocab_size, "torch_dtype": "float32"}
    rng = np.random.Generator(np.random.Philox(key=[seed, 3]))
    hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    kv = config["num_key_value_heads"] * config["head_dim"]

    def normal(rows: int, columns: int, scale: float) -> np.ndarray:
        return (rng.standard_normal((rows, columns)) * scale).astype(np.float32)

    def matrix(rows: int, columns: int, scale: float = 1.0) -> np.ndarray:
        return normal(rows, columns, 0.7 * scale * columns**-0.5)

    tensors = {"model.embed_tokens.weight": normal(vocab_size, hidden, 0.06), "model.norm.weight": np.ones(hidden, np.float32)}
    for i in range(layers):
        p, out = f"model.layers.{i}.", (2 * layers) ** -0.5
        tensors |= {
            p + "input_layernorm.weight": np.ones(hidden, np.float32),
            p + "post_attention_layernorm.weight": np.ones(hidden, np.float32),
            p + "self_attn.q_proj.weight": matrix(hidden, hidden),
            p + "self_attn.k_proj.weight": matrix(kv, hidden),
            p + "self_attn.v_proj.weight": matrix(kv, hidden),
            p + "self_attn.o_proj.weight": matrix(hidden, hidden, out),
            p + "mlp.gate_proj.weight": matrix(inner, hidden),
            p + "mlp.up_proj.weight": matrix(inner, hidden),
            p + "mlp.down_proj.weight": matrix(hidden, inner, out),
        }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 0, "do_sample": False}, indent=2) + "\n")


def story_samples(tokenizer: lc.Tokenizer, n: int, seed: int) -> Dataset:
    samples = []
    for text in stories(seed, n):
        ids = [*tokenizer.encode(text), tokenizer.eos_token_id]
        samples.append(Sample(np.asarray(ids, np.int32), np.ones(len(ids), np.float32)))
    return Dataset(samples)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stories", type=int, default=32_000)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--vocab-size", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as start:
        vocab_size = make_tokenizer(Path(start), args.vocab_size)
        make_random_model(Path(start), vocab_size, args.seed)
        model = lc.load_model(start, trainable="full", progress=False)
        train, held_out = story_samples(model.tokenizer, args.stories, 100), story_samples(model.tokenizer, 200, 101)
        config = lc.TrainConfig(
            output_dir=str(Path(start) / "run"),
            method="full",
            max_steps=args.steps,
            per_device_train_batch_size=32,
            learning_rate=2e-3,
            lr_scheduler_type="cosine",
            warmup_steps=min(100, args.steps),
            weight_decay=0.01,
            adam_beta2=0.98,
            eval_steps=200,
            seed=args.seed,
        )
        result = lc.Trainer(model, train, config, held_out).train()
        model.save(args.out, dtype="bfloat16")
    size = sum(f.stat().st_size for f in args.out.iterdir())
    print(f"{model.num_parameters():,} parameters, held-out loss {result.eval_loss:.4f}, {size / 1e6:.2f} MB in {args.out}")


if __name__ == "__main__":
    main()
