"""What a tokenizer becomes in a GGUF file: ids, kinds, templates, names; and that a refused file leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from gguf_files import write_file
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

import lora_c as lc
from lora_c.cli import cli
from lora_c.errors import CheckpointError
from lora_c.gguf import write_model
from lora_c.gguf.format import Value
from lora_c.gguf.reader import GGUFFile
from lora_c.gguf.same_model import PlannedFile
from lora_c.gguf.same_tokenizer import check_same_tokenizer
from lora_c.gguf.sample_texts import SAMPLE_TEXTS
from lora_c.gguf.tokenizer import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, tokenizer_of
from lora_c.gguf.vocabulary import model_name, padded, tokenizer_metadata
from lora_c.gguf.writer import text
from lora_c.notices import LoraCWarning
from lora_c.text.tokenizer import Tokenizer

NAMES = ["<unk>", "<s>", "</s>", "<pad>", "<sep>", "<mask>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "a", "b", "▁a"]
SPECIAL = {
    "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "sep_token": "<sep>",
    "mask_token": "<mask>",
}  # fmt: skip


def pieces(special: dict[str, str] | None = None, before: str = "<s>", **flags: bool) -> Tokenizer:
    """A tokenizer like Llama 2's; flags of its special tokens."""
    vocabulary = {name: i for i, name in enumerate(NAMES)}
    backend = Backend(models.BPE(vocabulary, [("▁", "a")], byte_fallback=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    ends = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(ends)
    backend.add_special_tokens([AddedToken(name, normalized=False, **flags) for name in NAMES[:6]])
    backend.add_tokens([AddedToken("<tool>", normalized=False)])
    backend.post_processor = processors.TemplateProcessing(
        single=[before, "$A"], special_tokens=[(before, vocabulary[before])]
    )
    return Tokenizer(backend, SPECIAL if special is None else special, "{{ messages }}", "{{ tools }}")


def again(values: dict[str, Value], path: Path) -> Tokenizer:
    """The tokenizer of a file with this metadata."""
    found = tokenizer_of(GGUFFile(write_file(path, values, {"a": np.zeros(1)})))
    assert found is not None
    return found


def test_special_tokens_templates_and_kinds_are_in_the_file(tmp_path: Path) -> None:
    ours = pieces()
    values = tokenizer_metadata(ours, len(NAMES) + 3)
    data = {key.removeprefix("tokenizer.ggml."): value.data for key, value in values.items()}
    keys = ("unknown", "bos", "eos", "padding", "seperator", "mask")  # the format's spelling
    assert [data[f"{key}_token_id"] for key in keys] == list(range(6))
    assert data["add_bos_token"] is True and data["add_eos_token"] is False and data["add_space_prefix"] is True
    want = [UNKNOWN, *[CONTROL] * 5, *[BYTE] * 256, *[NORMAL] * 4, USER_DEFINED, UNUSED, UNUSED]
    assert data["token_type"].tolist() == want
    assert data["tokens"] == [*NAMES, "<tool>", f"[PAD{len(NAMES) + 1}]", f"[PAD{len(NAMES) + 2}]"]
    assert data["tokenizer.chat_template"] == "{{ messages }}" and data["tokenizer.chat_templates"] == ["tool_use"]
    theirs = again(values, tmp_path / "t.gguf")
    assert theirs.special_tokens == SPECIAL and theirs.vocab_size == ours.vocab_size
    assert (theirs.chat_template, theirs.tool_template) == ("{{ messages }}", "{{ tools }}")


def test_the_sample_texts_have_every_byte_of_utf_8() -> None:
    found = set("".join(SAMPLE_TEXTS).encode())
    assert found == set(range(256)) - {0xC0, 0xC1, *range(0xF5, 0x100)} and len(set(SAMPLE_TEXTS)) == len(SAMPLE_TEXTS)
    assert not any("▁" in sample for sample in SAMPLE_TEXTS)  # the format's own sign for a space


def test_a_begin_token_that_only_the_post_processor_names_is_written(tmp_path: Path) -> None:
    values = tokenizer_metadata(pieces({"eos_token": "</s>"}), 300)
    assert values["tokenizer.ggml.bos_token_id"].data == 1 and values["tokenizer.ggml.add_bos_token"].data is True
    assert again(values, tmp_path / "t.gguf").encode("a") == [1, NAMES.index("▁a")]


def test_a_begin_token_that_is_not_the_named_one_is_refused() -> None:
    ours = pieces(before="<sep>")
    with pytest.raises(CheckpointError, match=r"no place for the post_processor TemplateProcessing \(<sep> …\)"):
        check_same_tokenizer(PlannedFile(tokenizer_metadata(ours, 300), []), ours)


def test_a_filler_keeps_clear_of_a_token_of_its_name() -> None:
    ours = pieces()
    ours.backend.add_tokens([AddedToken("[PAD268]", normalized=False)])
    tokens = tokenizer_metadata(ours, 270)["tokenizer.ggml.tokens"].data
    assert tokens[267:] == ["[PAD268]", "[[PAD268]]", "[PAD269]"] and len(set(tokens)) == 270


def test_a_name_says_what_llama_cpp_concludes_from_it() -> None:
    plain, phi = pieces(), pieces(rstrip=True)
    assert model_name("phi-3-tuned", plain) == "phi 3-tuned" and model_name("My-Phi3", plain) == "My-Phi 3"
    assert model_name("mine", plain) == "mine" and model_name("phi-4", None) == "phi-4"
    assert model_name("mine", phi) == "mine"  # these strip after <s>, too: not Phi-3's way
    with pytest.raises(CheckpointError, match="no place for rstrip of '<unk>'"):
        check_same_tokenizer(PlannedFile(tokenizer_metadata(phi, 300) | {"general.name": text("mine")}, []), phi)
    names = ("<unk>", "<s>", "<|endoftext|>", "</s>", "<|user|>")
    state = json.loads(plain.backend.to_str())
    entry = state["added_tokens"][0]
    ids = {name: 300 + i for i, name in enumerate(names)}
    state["added_tokens"] = [entry | {"content": name, "id": i, "rstrip": i > 302} for name, i in ids.items()]
    state["model"]["vocab"] = {n: i for n, i in state["model"]["vocab"].items() if n not in names} | {"<unk>": 300}
    state["post_processor"] = None
    phi_3 = Tokenizer(Backend.from_str(json.dumps(state)))
    assert model_name("mine", phi_3) == "phi-3 mine" and model_name("Phi-3-mini", phi_3) == "Phi-3-mini"


def test_rows_that_a_file_got_later_are_filled_up() -> None:
    values = tokenizer_metadata(pieces(), 267)
    more = padded(values, 269)
    assert more["tokenizer.ggml.tokens"].data[267:] == ["[PAD267]", "[PAD268]"]
    assert more["tokenizer.ggml.token_type"].data[267:].tolist() == [UNUSED, UNUSED]
    assert len(more["tokenizer.ggml.scores"].data) == 269 and padded(values, 267) is values


def test_what_llama_cpp_leaves_out_is_told(make_model: Callable[..., Path], tmp_path: Path) -> None:
    rule = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    backend = Backend(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    own = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(rule), "isolated"), own])
    backend.decoder = decoders.ByteLevel()
    folder = make_model(vocab_size=300)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.warns(LoraCWarning, match="composes Unicode"):
        write_model(tmp_path / "m.gguf", lc.load_model(folder))
    assert lc.load_model(tmp_path / "m.gguf").tokenizer.encode("e\u0301") == backend.encode("\u00e9").ids


# --- refused files leave nothing ----------------------------------------------------------------------------------------


@pytest.fixture
def refused(make_model: Callable[..., Path]) -> Path:
    """A folder whose tokenizer swallows spaces beside a special token."""
    folder = make_model(vocab_size=300)
    pieces(lstrip=True).save(folder)
    return folder


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
def test_a_refused_file_leaves_what_was_there(refused: Path, tmp_path: Path, kind: Any) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "m.gguf").write_bytes(b"before")
    with pytest.raises(CheckpointError, match=r"no place for lstrip of '<unk>'.*save the model as a folder instead$"):
        write_model(out / "m.gguf", lc.load_model(refused), kind)
    assert [(path.name, path.read_bytes()) for path in out.iterdir()] == [("m.gguf", b"before")]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "q8_0"])
@pytest.mark.parametrize("command", ["export", "merge", "merge --no-report"])
def test_commands_write_nothing_of_a_refused_file(refused: Path, tmp_path: Path, command: str, dtype: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    if command == "export":
        args = ["export", refused, out / "m.gguf", "--to", "gguf", "--dtype", dtype]
    else:
        model = lc.load_model(refused)
        model.add_adapter(lc.LoraConfig(r=2))
        model.save_adapter(tmp_path / "adapter")
        adapter = tmp_path / "adapter"
        args = ["merge", *command.split()[1:], "--model", refused, "--adapter", adapter, "--output", out / "m.gguf"]
        args += ["--dtype", dtype]
    result = CliRunner().invoke(cli, [str(arg) for arg in args])
    assert isinstance(result.exception, CheckpointError) and "no place for lstrip of '<unk>'" in str(result.exception)
    assert not list(out.iterdir())


def test_an_adapter_needs_no_tokenizer(refused: Path, tmp_path: Path) -> None:
    model = lc.load_model(refused)
    model.add_adapter(lc.LoraConfig(r=2))
    model.save_adapter(tmp_path / "a.gguf", format="gguf")
    assert not any(key.startswith("tokenizer.") for key in GGUFFile(tmp_path / "a.gguf").values)
