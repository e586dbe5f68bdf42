"""One begin and one end, and prompts whose tokens in training are those that generation starts from."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from lora_c.data import load_dataset, samples_from_record
from lora_c.generation.answers import prompt_ids
from lora_c.notices import LoraCWarning
from lora_c.text.text_ids import prompt_and_completion_ids, prompt_token_ids, whole_text_ids
from lora_c.text.tokenizer import Tokenizer

TEXTS = ["hello world the answer is yes. Question: what? Answer: 12 + 30 = 42\n\nnaïve 日本 don't\tstop  twice " * 20]
SPECIAL = ["<unk>", "<s>", "</s>"]
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _finish(backend: tokenizers.Tokenizer, post: str = "<s> $A") -> Tokenizer:
    tokens = [(token, backend.token_to_id(token)) for token in SPECIAL]
    backend.post_processor = processors.TemplateProcessing(single=post, pair=f"{post} $B", special_tokens=tokens)
    return Tokenizer(backend, {"bos_token": "<s>", "eos_token": "</s>"})


def gpt2_like() -> Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=500, special_tokens=SPECIAL, initial_alphabet=alphabet))
    return _finish(backend)


def llama3_like() -> Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(Regex(LLAMA3), behavior="isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    backend.decoder, alphabet = decoders.ByteLevel(), pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=500, special_tokens=SPECIAL, initial_alphabet=alphabet))
    return _finish(backend)


def metaspace() -> Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    backend.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL))
    return _finish(backend)


def word_piece() -> Tokenizer:
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=SPECIAL))
    return _finish(backend, "<s> $A </s>")


def word_level() -> Tokenizer:
    backend = tokenizers.Tokenizer(models.WordLevel(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.train_from_iterator(TEXTS, trainers.WordLevelTrainer(vocab_size=300, special_tokens=SPECIAL))
    return _finish(backend, "$A")


MADE: dict[str, Callable[[], Tokenizer]] = {
    "gpt2": gpt2_like, "llama3": llama3_like, "metaspace": metaspace, "word_piece": word_piece, "word_level": word_level,
}  # fmt: skip
WRITES_EVERYTHING = {"gpt2", "llama3", "metaspace", "stories260K"}  # what they read is what they write


def tokenizer_of(kind: str, shared_data: Any) -> Tokenizer:
    return MADE[kind]() if kind in MADE else Tokenizer.from_folder(shared_data("stories260K_hf"))


@pytest.mark.parametrize("kind", [*MADE, "stories260K"])
def test_prompts_of_training_are_those_of_generation_at_any_seam(shared_data, kind: str) -> None:
    tokenizer, rng, n_seams = tokenizer_of(kind, shared_data), random.Random(7), 0
    model: Any = SimpleNamespace(
        tokenizer=tokenizer, decoder=SimpleNamespace(config={"vocab_size": 10**6}), context_length=10**6
    )
    pieces = [
        "hello",
        " world",
        " ",
        "  ",
        "\n",
        "\n\n",
        ".",
        "A:",
        "An",
        "swer",
        "yes",
        "12",
        "3",
        "'t",
        " 日",
        "本",
        "\t",
        "?",
    ]
    for _ in range(2000):
        prompt, completion = ("".join(rng.choices(pieces, k=rng.randint(1, 5))) for _ in range(2))
        (sample,) = samples_from_record({"prompt": prompt, "completion": completion}, tokenizer, "here")
        ids, mask = sample.input_ids.tolist(), sample.loss_mask.tolist()
        expected = prompt_token_ids(tokenizer, prompt)
        if expected:
            assert prompt_ids(model, prompt) == expected
        assert ids[: len(expected)] == expected, (prompt, completion)
        n = len(expected)
        assert mask[:n] == [0] * n and (mask[n:] == [1] * (len(ids) - n) or not completion.strip())
        assert ids[-1] == tokenizer.eos_token_id and ids.count(tokenizer.eos_token_id) == 1
        if kind in WRITES_EVERYTHING:
            written, text = tokenizer.decode(ids), prompt + completion
            if kind == "metaspace":  # it does not tell a text that begins with a space from one that does not
                written, text = written.lstrip(" "), text.lstrip(" ")
            assert written == text, (prompt, completion)
        n_seams += prompt_and_completion_ids(tokenizer, prompt, completion).seam
    assert n_seams > 30 or kind == "word_piece"


@pytest.mark.parametrize("post", ["$A", "<s> $A", "<s> $A </s>", "<s> <unk> $A", "$A </s>"])
def test_there_is_one_begin_and_one_end_and_the_end_carries_loss(post: str) -> None:
    tokenizer = _finish(gpt2_like().backend, post)
    begin = [token for token in post.split()[: post.split().index("$A")]]
    for record in (
        {"text": "hello world"}, {"text": "hello world</s>"}, {"text": "hello world</s></s>"}, {"text": "<s>hello world"},
        {"prompt": "hello", "completion": " world"}, {"prompt": "hello", "completion": " world</s>"},
        {"prompt": "<s>hello", "completion": " world"}, {"prompt": "<s><s>hello", "completion": " world</s>\n"},
        {"text": "hello world</s>\n"}, {"prompt": "", "completion": "<s>hello world"},
        {"instruction": "hello", "output": "world</s>"},
    ):  # fmt: skip
        (sample,) = samples_from_record(record, tokenizer, "here")
        tokens = [tokenizer.backend.id_to_token(i) for i in sample.input_ids.tolist()]
        brought = "<s>" in str(record) and "<s>" not in begin
        expected = ["<s>", *begin] if brought else begin
        assert tokens[: len(expected)] == expected and tokens.count("<s>") == expected.count("<s>"), (record, tokens)
        assert tokens.count("</s>") == 1 and sample.loss_mask[tokens.index("</s>")] == 1, (record, tokens)
        assert "</s>" in tokens[-2:]


def test_what_the_post_processor_adds_is_looked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = gpt2_like()
    prompt_and_completion_ids(tokenizer, "Question: what?", " Answer")
    calls: list[str] = []
    encoding = Tokenizer._encoding
    monkeypatch.setattr(Tokenizer, "_encoding", lambda self, text, add: calls.append(text) or encoding(self, text, add))
    before = prompt_and_completion_ids(tokenizer, "Question: what?", " Answer")
    assert calls == ["Question: what?", "Question: what? Answer"]
    _finish(tokenizer.backend, "$A")  # another post-processor of the same tokenizer
    assert prompt_and_completion_ids(tokenizer, "Question: what?", " Answer").prompt == before.prompt[1:]


def test_a_prompt_gets_its_begin_and_never_an_end() -> None:
    tokenizer = _finish(gpt2_like().backend, "<s> $A </s>")
    for prompt in ("hello", "<s>hello", "hello</s> world", "hello</s>"):
        ids = prompt_token_ids(tokenizer, prompt)
        assert ids[0] == 1 and ids.count(1) == 1 and ids.count(2) == prompt.count("</s>"), prompt
        assert tokenizer.decode(ids, skip_special_tokens=False) == "<s>" + prompt.removeprefix("<s>")
    assert prompt_token_ids(tokenizer, "") == [1]


def test_other_tokens_of_a_post_processor_stand_where_it_puts_them() -> None:
    backend = gpt2_like().backend
    backend.add_special_tokens(["[CLS]", "[SEP]"])
    tokens = [(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=tokens)
    tokenizer = Tokenizer(backend, {})
    cls, sep = backend.token_to_id("[CLS]"), backend.token_to_id("[SEP]")
    hello = tokenizer.encode("hello", add_special_tokens=False)
    assert whole_text_ids(tokenizer, "hello") == [cls, *hello, sep] == whole_text_ids(tokenizer, "[CLS]hello[SEP]")
    assert prompt_token_ids(tokenizer, "hello") == [cls, *hello]
    tokenizer = Tokenizer(backend, {"eos_token": "</s>"})
    assert whole_text_ids(tokenizer, "hello") == [cls, *hello, sep, 2]


@pytest.mark.parametrize("record", [{"prompt": "hello", "completion": ""}, {"prompt": "hello", "completion": "</s>"},
                                    {"prompt": "hello", "completion": " \n"}, {"prompt": "hello", "completion": "</s>\n"},
                                    {"instruction": "hello", "output": ""}, {"text": ""}])  # fmt: skip
def test_an_empty_completion_teaches_no_end(record: dict[str, str], tmp_path: Path) -> None:
    import json

    tokenizer = gpt2_like()
    assert sum(sample.n_predicted for sample in samples_from_record(record, tokenizer, "here")) == 0
    (tmp_path / "a.jsonl").write_text(f'{json.dumps(record)}\n{{"text": "hello world"}}\n', encoding="utf-8")
    data = load_dataset(tmp_path / "a.jsonl", tokenizer)
    assert (len(data), data.n_without_loss) == (1, 1) and "1 left out" in data.report()


def test_seams_of_a_data_set_are_told_once_with_their_count(tmp_path: Path) -> None:
    lines = ['{"prompt": "Question: yes\\nA: ", "completion": "hello"}'] * 3 + ['{"prompt": "A:", "completion": " hello"}'] * 2
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with pytest.warns(
        LoraCWarning, match="3 of 5 examples: the prompt's last token .* belongs at the begin of the completion"
    ) as told:
        load_dataset(tmp_path / "a.jsonl", gpt2_like())
    assert len(told) == 1
