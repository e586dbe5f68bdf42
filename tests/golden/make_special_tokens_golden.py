"""Writes special_tokens_golden.json: what transformers' AutoTokenizer makes of many combinations of a folder's files.

Usage: python make_special_tokens_golden.py (needs transformers 5)
"""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer

PROBES = [
    "<s>a cat</s> <|im_end|>x", "a <|im_end|> b<img>c", "ab<|im_start|>cat", " <tool> a", "<img>", "a cat</s>",
    "<|im_end|>\n<pad>", "the<|im_end|>", "<think>ab</think>",
]  # fmt: skip
MESSAGES = [{"role": "user", "content": "a"}]
TEMPLATE = (
    "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ image_token }}|{{ video_token }}|{{ unk_token }}|{{ sep_token }}"
    "{% for m in messages %}{{ m.content }}{% endfor %}"
)


def byte_level() -> dict[str, Any]:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<s>": 0, "</s>": 1, "<|im_end|>": 2} | {c: i + 3 for i, c in enumerate(alphabet)}
    vocab |= {"ca": len(vocab), "cat": len(vocab) + 1}
    backend = Tokenizer(models.BPE(vocab, [("c", "a"), ("ca", "t")]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return json.loads(backend.to_str())


def words() -> dict[str, Any]:
    vocab = {text: i for i, text in enumerate(["<unk>", "<s>", "</s>", "a", "b", "cat", "<img>", "the", "x", "<", ">"])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return json.loads(backend.to_str())


def byte_fallback() -> dict[str, Any]:
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{i:02X}>": i + 3 for i in range(256)}
    for piece in ("▁", "a", "c", "t", "b", "ca", "cat", "▁cat"):
        vocab[piece] = len(vocab)
    merges = [("c", "a"), ("ca", "t"), ("▁", "cat")]
    backend = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(steps)
    return json.loads(backend.to_str())


BASES = {"byte_level": byte_level(), "words": words(), "byte_fallback": byte_fallback()}


def flagged(rng: random.Random, text: str, typed: bool) -> dict[str, Any]:
    flags = {key: rng.random() < 0.3 for key in ("lstrip", "rstrip", "single_word")}
    kind = {"__type": "AddedToken"} if typed else {}
    return kind | {"content": text, "normalized": rng.random() < 0.5, "special": rng.random() < 0.6} | flags


def a_case(rng: random.Random) -> dict[str, Any]:
    base = rng.choice(sorted(BASES))
    state = json.loads(json.dumps(BASES[base]))
    size = max(state["model"]["vocab"].values()) + 1
    texts = ["<|im_end|>", "<|im_start|>", "<img>", "<tool>", "<pad>", "<think>", "</think>"]
    marked = []
    for text in rng.sample(["<s>", "</s>"], rng.randint(0, 2)) + rng.sample(texts, rng.randint(0, 2)):
        index = state["model"]["vocab"].get(text)
        if index is None:
            index, size = size, size + 1
        marked.append({"id": index, **{k: v for k, v in flagged(rng, text, False).items()}})
    marked.sort(key=lambda token: token["id"])
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "image_token", "video_token"):
        if rng.random() < 0.35:
            text = rng.choice({"bos_token": ["<s>"], "unk_token": ["<unk>"]}.get(name, ["</s>", *texts]))
            config[name] = flagged(rng, text, True) if rng.random() < 0.3 else text
    if rng.random() < 0.4:
        own = {token["content"]: token["id"] for token in marked}
        chosen = rng.sample(texts, rng.randint(1, 3))
        table = {}
        for text in chosen:
            index = own.get(text, state["model"]["vocab"].get(text))
            if index is None:
                index, size = size, size + 1
            table[str(index)] = flagged(rng, text, False)
        config["added_tokens_decoder"] = table
    if rng.random() < 0.4:
        key = rng.choice(["additional_special_tokens", "extra_special_tokens"])
        config[key] = rng.sample(texts, rng.randint(0, 2))
    elif rng.random() < 0.15:
        config["extra_special_tokens"] = {"image_token": "<img>", "tool": "<tool>"}
    for key in ("add_bos_token", "add_eos_token"):
        if rng.random() < 0.3:
            config[key] = rng.random() < 0.5
    files: dict[str, Any] = {}
    if rng.random() < 0.35:
        names = rng.sample(["bos_token", "eos_token", "pad_token", "image_token"], 2)
        files["special_tokens_map.json"] = {
            name: rng.choice([text, {k: v for k, v in flagged(rng, text, False).items() if k != "special"}])
            for name, text in zip(names, rng.sample([*texts, "</s>"], 2), strict=True)
        }
        if rng.random() < 0.4:
            files["special_tokens_map.json"]["extra_special_tokens"] = rng.sample(texts, 1)
        elif rng.random() < 0.4:
            files["special_tokens_map.json"]["additional_special_tokens"] = rng.sample(texts, 1)
    if rng.random() < 0.35:
        own = {token["content"] for token in marked}
        free = [text for text in texts if text not in own and text not in state["model"]["vocab"]]
        chosen = rng.sample(free, min(len(free), rng.randint(1, 2)))
        files["added_tokens.json"] = {text: size + i for i, text in enumerate(chosen)}
    template = rng.random() < 0.5
    if template:
        bos = next((token["id"] for token in marked if token["content"] == "<s>"), None)
        if bos is not None:
            backend = Tokenizer.from_str(json.dumps(state))
            backend.add_special_tokens([AddedToken("<s>")])
            backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
            state["post_processor"] = json.loads(backend.to_str())["post_processor"]
    config["chat_template"] = TEMPLATE
    return {"base": base, "post_processor": state["post_processor"], "added_tokens": marked, "config": config, "files": files}


def write_folder(folder: Path, case: dict[str, Any]) -> None:
    state = BASES[case["base"]] | {"added_tokens": case["added_tokens"], "post_processor": case["post_processor"]}
    (folder / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
    for name, value in {"tokenizer_config.json": case["config"], **case["files"]}.items():
        (folder / name).write_text(json.dumps(value), encoding="utf-8")


def answer(case: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as root:
        write_folder(Path(root), case)
        tokenizer = AutoTokenizer.from_pretrained(root)
        ids = [tokenizer(text)["input_ids"] for text in PROBES]
        return {
            "ids": ids,
            "texts": [tokenizer.decode(row, skip_special_tokens=True) for row in ids],
            "named": {
                key: [text, tokenizer.convert_tokens_to_ids(text)] for key, text in tokenizer.special_tokens_map.items()
            },
            "extra": tokenizer.extra_special_tokens,
            "size": len(tokenizer),
            "render": tokenizer.apply_chat_template(MESSAGES, tokenize=False),
        }


def main() -> None:
    rng = random.Random(20)
    cases: list[dict[str, Any]] = []
    refused = 0
    while len(cases) < 200:
        case = a_case(rng)
        try:
            cases.append(case | {"answer": answer(case)})
        except Exception as error:
            refused += 1
            print("not a folder of transformers:", str(error)[:120])
    result = {"bases": BASES, "probes": PROBES, "messages": MESSAGES, "cases": cases}
    path = Path(__file__).with_name("special_tokens_golden.json")
    path.write_text(json.dumps(result, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{path.name}: {len(cases)} folders, {refused} left out")


if __name__ == "__main__":
    main()
