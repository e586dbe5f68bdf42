"""Tokenizers of the kinds that models have, small and trained on the spot, each with what must become of it in a GGUF file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from lora_c.gguf.sample_texts import SAMPLE_TEXTS

ROWS = 1500  # of the embedding: more than any of these tokenizers has ids
SPECIAL = ("<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>")
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Case:
    """A tokenizer, and the words of the refusal where the format has no place for it."""

    name: str
    build: Callable[[], Tokenizer]
    refused: str | None = None
    change: Callable[[dict[str, Any]], None] = lambda state: None  # what tokenizer.json has beyond what the library writes
    special: dict[str, str] = field(default_factory=lambda: {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})


class Trained:
    """Vocabularies of a text, each trained once."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines
        self.byte_level = lru_cache(self._byte_level)
        self.pieces = lru_cache(self._pieces)

    def _byte_level(self, rule: str) -> dict[str, Any]:
        """The model of a byte-level tokenizer that cuts words by a rule."""
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = cut(rule)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=1000, initial_alphabet=alphabet, show_progress=False)  # type: ignore[call-arg]
        backend.train_from_iterator(self.lines, trainer)
        model: dict[str, Any] = json.loads(backend.to_str())["model"]
        return model

    def _pieces(self) -> tuple[dict[str, int], list[tuple[str, str]]]:
        """Vocabulary and merges as transformers makes them of a SentencePiece model: every way to cut a piece, by its rank."""
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="always", split=True)
        trainer = trainers.BpeTrainer(vocab_size=1000, show_progress=False)  # type: ignore[call-arg]
        backend.train_from_iterator(self.lines, trainer)
        pieces = sorted(backend.get_vocab().items(), key=lambda item: item[1])
        names = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *(piece for piece, _ in pieces)]
        names += [n * "▁" for n in (2, 4, 8) if n * "▁" not in names]
        vocabulary = {name: i for i, name in enumerate(names)}
        merges = []
        for piece in names[259:]:
            cuts = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
            cuts = [cut for cut in cuts if cut[0] in vocabulary and cut[1] in vocabulary]
            merges += sorted(cuts, key=lambda cut: (vocabulary[cut[0]], vocabulary[cut[1]]))
        return vocabulary, merges


def cut(rule: str, prefix: bool = False, behavior: str = "isolated", invert: bool = False) -> pre_tokenizers.PreTokenizer:
    """The pre_tokenizer of a rule."""
    if rule == "gpt2":
        return pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    if rule == "digits":
        own = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), own])
    split = pre_tokenizers.Split(Regex(rule), behavior, invert)
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False)])


def around(before: list[str], after: list[str], backend: Tokenizer) -> processors.PostProcessor:
    """Tokens before and behind every text."""
    named = [(name, backend.token_to_id(name)) for name in dict.fromkeys(before + after)]
    return processors.TemplateProcessing(single=[*before, "$A", *after], special_tokens=named)


def byte_level(
    trained: Trained, rule: str = "gpt2", *, normalizer: Any = None, pre_tokenizer: Any = None, added: Any = (),
    before: Any = ("<s>",), after: Any = (), change: Callable[[dict[str, Any]], None] | None = None,
) -> Tokenizer:  # fmt: skip
    """A tokenizer on bytes as a model's tokenizer.json has it."""
    model = json.loads(json.dumps(trained.byte_level(rule)))
    if change:
        change(model)
    backend = Tokenizer.from_str(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizer or cut(rule)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, normalized=False) for name in SPECIAL])
    for token in added:
        (backend.add_special_tokens if token.special else backend.add_tokens)([token])
    backend.post_processor = around(list(before), list(after), backend) if before or after else processors.ByteLevel()
    return backend


def sentencepiece(
    trained: Trained, *, normalizer: Any = "legacy", pre_tokenizer: Any = None, strip: bool = True, added: Any = (),
    before: Any = ("<s>",), after: Any = (), drop: tuple[str, ...] = (), **options: Any,
) -> Tokenizer:  # fmt: skip
    """A tokenizer like Llama 2's, Gemma's or Phi-3's."""
    vocabulary, merges = trained.pieces()
    names = [name for name in vocabulary if name not in drop]
    options = {"byte_fallback": True, "fuse_unk": True, "unk_token": "<unk>"} | options
    backend = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=merges, **options))
    if normalizer == "legacy":
        normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    if normalizer is not None:
        backend.normalizer = normalizer
    if pre_tokenizer is not None:
        backend.pre_tokenizer = pre_tokenizer
    ends = [decoders.Strip(" ", 1, 0)] if strip else []
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *ends])
    given = {token.content for token in added}
    backend.add_special_tokens([AddedToken(name, normalized=False) for name in SPECIAL if name not in given])
    for token in added:
        (backend.add_special_tokens if token.special else backend.add_tokens)([token])
    backend.post_processor = around(list(before), list(after), backend)
    return backend


def token(content: str, special: bool = True, **flags: bool) -> AddedToken:
    """An added token that is matched as it stands."""
    return AddedToken(content, special=special, **({"normalized": False} | flags))


def _drop_byte(model: dict[str, Any]) -> None:
    """Without é's second byte there is an unknown token."""
    model["vocab"] = {name: i for name, i in model["vocab"].items() if "©" not in name} | {"<unk>": 1100}
    model["merges"] = [pair for pair in model["merges"] if "©" not in "".join(pair)]
    model["unk_token"] = "<unk>"


def _unreachable(model: dict[str, Any]) -> None:
    model["vocab"]["ĠOncezq"] = 1100
    model["ignore_merges"] = True


def _double(state: dict[str, Any]) -> None:
    state["model"]["vocab"]["zq"] = state["model"]["vocab"]["ÿ"]  # a byte that UTF-8 has no use for, and no merge


def _hole(model: dict[str, Any]) -> None:
    _shared_ids(model)
    model["vocab"] |= {name: 1100 + 9 * i for i, name in enumerate(SPECIAL)}


def _shared_ids(model: dict[str, Any]) -> None:
    """The library numbers added tokens from the number of tokens on, whatever stands there."""
    model["vocab"] = {name: i + 7 * (i > 300) for name, i in model["vocab"].items()}


def _set(**options: Any) -> Callable[[dict[str, Any]], None]:
    return lambda model: model.update(options)


def byte_level_cases(t: Trained) -> Iterator[Case]:
    """Tokenizers on bytes."""
    yield Case("gpt-2", lambda: byte_level(t))
    yield Case("gpt-2 without tokens around a text", lambda: byte_level(t, before=()), special={"eos_token": "</s>"})
    yield Case("gpt-2 spelled out", lambda: byte_level(t, pre_tokenizer=cut(GPT2)))
    yield Case("gpt-2 with an end", lambda: byte_level(t, before=(), after=("</s>",)))
    yield Case("gpt-2 with begin and end", lambda: byte_level(t, after=("</s>",)))
    yield Case("gpt-2 with holes", lambda: byte_level(t, change=_hole))
    yield Case("gpt-2 with user-defined tokens", lambda: byte_level(t, added=[token("  ", False), token("<think>", False)]))
    yield Case("gpt-2 with an added word", lambda: byte_level(t, added=[token("little", False)]))
    yield Case("gpt-2 ignoring merges without effect", lambda: byte_level(t, change=_set(ignore_merges=True)))
    yield Case("llama-bpe", lambda: byte_level(t, LLAMA3, change=_set(ignore_merges=True)))
    yield Case("llama-bpe with words that no merge makes", lambda: byte_level(t, LLAMA3, change=_unreachable))
    yield Case("dbrx", lambda: byte_level(t, LLAMA3))
    yield Case(
        "dbrx in tiktoken's form", lambda: byte_level(t, LLAMA3, pre_tokenizer=cut(LLAMA3, behavior="removed", invert=True))
    )
    yield Case("stablelm2", lambda: byte_level(t, QWEN2))
    yield Case("smollm", lambda: byte_level(t, "digits"))
    yield Case("tekken", lambda: byte_level(t, TEKKEN, change=_set(ignore_merges=True)))
    yield Case("gpt-4o", lambda: byte_level(t, GPT4O))
    qwen: dict[str, Any] = {"normalizer": normalizers.NFC(), "before": ()}
    yield Case("qwen2", lambda: byte_level(t, QWEN2, **qwen), special={"eos_token": "</s>", "pad_token": "<unk>"})
    lower = normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase()])
    yield Case("lowercase", lambda: byte_level(t, normalizer=lower), r"the normalizer NFD\(\)")
    yield Case("NFKC", lambda: byte_level(t, QWEN2, normalizer=normalizers.NFKC()), r"the normalizer NFKC\(\)")
    yield Case("stripped", lambda: byte_level(t, normalizer=normalizers.Strip()), r"the normalizer Strip\(")
    replaced = normalizers.Replace("zebra", "horse")
    yield Case("a word replaced", lambda: byte_level(t, normalizer=replaced), "the normalizer Replace.*zebra.*horse")
    yield Case("gpt-2 with NFC", lambda: byte_level(t, normalizer=normalizers.NFC()), r"words as one of .*NFC\(\), ByteLevel")
    yield Case("prefix space", lambda: byte_level(t, pre_tokenizer=cut("gpt2", True)), "add_prefix_space=true")
    yield Case(
        "llama-bpe with prefix space", lambda: byte_level(t, LLAMA3, pre_tokenizer=cut(LLAMA3, True)), "add_prefix_space=true"
    )
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    yield Case("whole texts", lambda: byte_level(t, pre_tokenizer=plain), "use_regex=false")
    yield Case("another split", lambda: byte_level(t, pre_tokenizer=cut(r"\w+|\s+|[^\w\s]+")), r"words as one of .*\\w\+")
    gaps = cut(r"\s+", behavior="merged_with_next")
    yield Case("split at spaces", lambda: byte_level(t, pre_tokenizer=gaps), "MergedWithNext")
    groups = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=False), cut("gpt2")])
    yield Case("groups of digits", lambda: byte_level(t, pre_tokenizer=groups), "individual_digits=false")
    marks = pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), cut("gpt2")])
    yield Case("punctuation apart", lambda: byte_level(t, pre_tokenizer=marks), "Punctuation")
    for flag, text in (("rstrip", "<|end|>"), ("lstrip", "<|end|>"), ("single_word", "<|end|>")):
        added = [token(text, **{flag: True})]
        yield Case(flag, lambda added=added: byte_level(t, added=added), rf"no place for {flag} of '<\|end\|>'")
    added = [token("zebra", False, single_word=True)]
    yield Case("single_word of a word", lambda added=added: byte_level(t, added=added), "no place for single_word of 'zebra'")
    yield Case(
        "two tokens before", lambda: byte_level(t, before=("<s>", "<|user|>")), r"the post_processor .*\(<s> <\|user\|> …\)"
    )
    yield Case("another end", lambda: byte_level(t, after=("<|user|>",)), r"the post_processor .*\(<s> … <\|user\|>\)")
    yield Case("bytes that are unknown", lambda: byte_level(t, change=_drop_byte), "no place for the unknown token '<unk>'")
    ignored = _unreachable
    yield Case("gpt-2 ignoring merges", lambda: byte_level(t, change=ignored), "no place for ignore_merges true")
    yield Case("dropout", lambda: byte_level(t, change=_set(dropout=0.1)), "the model's dropout")
    yield Case("suffix", lambda: byte_level(t, change=_set(end_of_word_suffix="</w>")), "end_of_word_suffix")


def sentencepiece_cases(t: Trained) -> Iterator[Case]:
    """Tokenizers on pieces with bytes to fall back to."""
    escape = normalizers.Replace(" ", "▁")
    yield Case("llama", lambda: sentencepiece(t))
    yield Case("llama with begin and end", lambda: sentencepiece(t, after=("</s>",)))
    yield Case("llama without a begin", lambda: sentencepiece(t, before=(), after=("</s>",)))
    gemma: dict[str, Any] = {"normalizer": escape, "strip": False}
    yield Case("gemma", lambda: sentencepiece(t, pre_tokenizer=pre_tokenizers.Split(" ", "merged_with_previous"), **gemma))
    runs = [token("▁▁", False), token("\n\n", False), token("<unused0>", False)]
    yield Case("gemma with runs of spaces", lambda: sentencepiece(t, added=runs, **gemma))
    never = pre_tokenizers.Metaspace("▁", prepend_scheme="never", split=False)
    yield Case("Metaspace that prepends nothing", lambda: sentencepiece(t, normalizer=None, pre_tokenizer=never, strip=False))
    phi = [
        token("</s>", False, rstrip=True),
        token("<|endoftext|>"),
        token("<|user|>", rstrip=True),
        token("<|assistant|>", rstrip=True),
    ]
    yield Case("phi-3", lambda: sentencepiece(t, added=phi))
    for scheme in ("first", "always"):
        space = pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=False)
        build = lambda space=space: sentencepiece(t, normalizer=None, pre_tokenizer=space)  # noqa: E731
        yield Case(f"Metaspace {scheme}", build, f'Metaspace.*prepend_scheme="{scheme}"')
    words = pre_tokenizers.Metaspace("▁", prepend_scheme="never", split=True)
    yield Case(
        "Metaspace that splits",
        lambda: sentencepiece(t, normalizer=None, pre_tokenizer=words, strip=False),
        "Metaspace.*split=true",
    )
    lines = pre_tokenizers.Split("e", "isolated")
    yield Case("split at a letter", lambda: sentencepiece(t, pre_tokenizer=lines), "with the pre_tokenizer Split")
    rare = {"rare": pre_tokenizers.Split("ry day t", "isolated"), "removed": pre_tokenizers.Split("ry day t", "removed")}
    rare |= {"snowman": pre_tokenizers.CharDelimiterSplit("\u2603")}
    rare |= {"pattern": pre_tokenizers.Split(Regex("ry d[a]y"), "isolated")}
    for name, step in rare.items():  # no sample text has it
        yield Case(f"split that is {name}", lambda step=step: sentencepiece(t, pre_tokenizer=step), "with the pre_tokenizer ")
    for name, step in (("NFKC", normalizers.NFKC()), ("Lowercase", normalizers.Lowercase()), ("Strip", normalizers.Strip())):
        steps = normalizers.Sequence([step, normalizers.Prepend("▁"), escape])
        yield Case(f"llama with {name}", lambda steps=steps: sentencepiece(t, normalizer=steps), rf"the normalizer {name}\(")
    twice = normalizers.Sequence([normalizers.Replace("``", '"'), escape])
    yield Case("quotes replaced", lambda: sentencepiece(t, normalizer=twice), "the normalizer Replace")
    yield Case(
        "one token with rstrip",
        lambda: sentencepiece(t, added=[token("<|user|>", rstrip=True)]),
        r"no place for rstrip of '<\|user\|>'",
    )
    yield Case(
        "one token with lstrip",
        lambda: sentencepiece(t, added=[token("<|user|>", lstrip=True)]),
        r"no place for lstrip of '<\|user\|>'",
    )
    loose = [token("<|user|>", normalized=True)]
    yield Case("a token of normalized text", lambda: sentencepiece(t, added=loose), r"no place for normalized of '<\|user\|>'")
    yield Case("no bytes", lambda: sentencepiece(t, byte_fallback=False), "expected a tokenizer with bytes")
    yield Case("a byte missing", lambda: sentencepiece(t, drop=("<0xE9>",)), "got none for <0xE9>")
    null = [token("a\0b", False)]
    yield Case("a token with a null character", lambda: sentencepiece(t, added=null), r"one with the token 'a\\x00b'")
    kept = lambda: sentencepiece(t, strip=False)  # noqa: E731
    yield Case("a decoder that keeps the space", kept, "expected the text .*no place for the decoder")


def other_cases(t: Trained) -> Iterator[Case]:
    """Models that are no BPE, and ids that contradict each other."""
    words = {
        word: i
        for i, word in enumerate(["<unk>", "<s>", "</s>", *sorted({w for line in t.lines[:50] for w in line.split()})[:300]])
    }

    def of(model: Any) -> Callable[[], Tokenizer]:
        def build() -> Tokenizer:
            backend = Tokenizer(model)
            backend.pre_tokenizer = pre_tokenizers.Whitespace()
            return backend

        return build

    yield Case("WordLevel", of(models.WordLevel(words, "<unk>")), "got 'WordLevel'")
    yield Case("WordPiece", of(models.WordPiece(words, unk_token="<unk>")), "got 'WordPiece'")
    yield Case("Unigram", of(models.Unigram([(word, -float(i)) for word, i in words.items()], 0, False)), "got 'Unigram'")
    yield Case("ids that added tokens share", lambda: byte_level(t, change=_shared_ids), "one token for each id, got .*'<")
    yield Case("an id for two tokens", lambda: byte_level(t), "one token for each id, got .*'zq'", change=_double)


def all_cases(lines: list[str]) -> list[Case]:
    """Every case; vocabularies are trained on the lines."""
    samples = [text for text in SAMPLE_TEXTS if "\0" not in text]
    trained = Trained([*lines, *samples * 4])  # so that there are merges in every script
    return [*byte_level_cases(trained), *sentencepiece_cases(trained), *other_cases(trained)]


def write_folder(folder: Path, case: Case) -> None:
    """Put a case's tokenizer into a model folder."""
    state = json.loads(case.build().to_str())
    case.change(state)
    (folder / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(case.special), encoding="utf-8")
