"""Tokenizers, chat templates and streaming."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from lora_c.errors import CheckpointError, DataError
from lora_c.model.opening import load_model
from lora_c.text.tokenizer import Tokenizer

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "Bye"}]


def byte_tokenizer() -> Tokenizer:
    """Every byte is a token: each non-ASCII character needs several."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(backend, {"eos_token": "</s>"}, CHATML)


def test_special_tokens_and_ids(tiny_model_dir: Path) -> None:
    tokenizer = Tokenizer.from_folder(tiny_model_dir)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, None)
    assert tokenizer.encode("w3 w4") == [3, 4] and tokenizer.decode([3, 4]) == "w3 w4"
    assert tokenizer.encode_with_offsets("w3 w4") == ([3, 4], [(0, 2), (3, 5)])
    (tiny_model_dir / "tokenizer_config.json").unlink()
    assert Tokenizer.from_folder(tiny_model_dir, {"eos_token_id": 2}).eos_token_id == 2


def test_stories_tokenizer(stories: Path) -> None:
    tokenizer = Tokenizer.from_folder(stories)
    text = (stories / "greedy200.txt").read_text()
    ids = tokenizer.encode(text)
    assert ids[0] == tokenizer.bos_token_id == 1 and tokenizer.decode(ids) == text


def test_damaged_files_are_refused(tiny_model_dir: Path) -> None:
    (tiny_model_dir / "tokenizer_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="tokenizer_config.json"):
        Tokenizer.from_folder(tiny_model_dir)
    (tiny_model_dir / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="expected a tokenizer"):
        Tokenizer.from_folder(tiny_model_dir)
    (tiny_model_dir / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="nothing there"):
        Tokenizer.from_folder(tiny_model_dir)


def test_wrong_text_is_refused() -> None:
    tokenizer = byte_tokenizer()
    with pytest.raises(DataError, match="expected a string, got int"):
        tokenizer.encode(3)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="lone surrogate at character 1"):
        tokenizer.encode("a\ud800")


@pytest.mark.parametrize("text", ["plain", "Füße über Ärger", "日本語のテスト", "🦙🇩🇪👨‍👩‍👧 ok", "a\ufffdb\ufffd", ""])
def test_stream_never_splits_a_character(text: str) -> None:
    tokenizer = byte_tokenizer()
    stream = tokenizer.stream_decoder()
    pieces = [stream.push(i) for i in tokenizer.encode(text)]
    if "\ufffd" not in text:
        assert all("\ufffd" not in piece for piece in pieces)
    assert "".join(pieces) + stream.flush() == text


def test_stream_of_a_broken_character_ends_with_a_replacement() -> None:
    tokenizer = byte_tokenizer()
    stream = tokenizer.stream_decoder()
    assert "".join(stream.push(i) for i in tokenizer.encode("aé")[:-1]) == "a"
    assert stream.flush() == "\ufffd" and stream.flush() == ""


def test_stream_keeps_the_space_after_a_prompt(stories: Path) -> None:
    tokenizer = Tokenizer.from_folder(stories)
    text = (stories / "greedy200.txt").read_text()
    ids = tokenizer.encode(text)
    for cut in (1, 2, 5, 20):
        stream = tokenizer.stream_decoder(ids[:cut])
        rest = "".join(stream.push(i) for i in ids[cut:]) + stream.flush()
        assert tokenizer.decode(ids[:cut]) + rest == text


def test_template_and_generation_prompt() -> None:
    tokenizer = byte_tokenizer()
    text = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True)
    assert text == "<|user|>Hi</s><|assistant|>Hello</s><|user|>Bye</s><|assistant|>"
    assert tokenizer.apply_chat_template(MESSAGES) == text.removesuffix("<|assistant|>")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content }}{% endfor %}", "Hi"),
        ("{{ messages[0] | tojson }}", '{"role": "user", "content": "Hi"}'),
        ("{% generation %}{{ messages[0].content }}{% endgeneration %}", "Hi"),
        ("   {% if true %}\nx\n   {% endif %}\n", "x\n"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{{ tools[0].name }}", "f"),
    ],
)
def test_template_dialect_is_that_of_transformers(source: str, expected: str) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = source
    assert tokenizer.apply_chat_template(MESSAGES, tools=[{"name": "f"}]) == expected


@pytest.mark.parametrize(
    "source", ["{{ raise_exception('roles must alternate') }}", "{{ ''.__class__.__mro__[1].__subclasses__() }}",
               "{{ messages.append(1) }}", "{% for", "{{ messages[0].x.y }}", "{{ 1 / 0 }}"],
)  # fmt: skip
def test_bad_templates_are_one_clear_error(source: str) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = source
    with pytest.raises(DataError, match="messages: expected"):
        tokenizer.apply_chat_template(MESSAGES)


def test_no_template_names_the_way_out() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(DataError, match="chat_template.jinja"):
        tokenizer.apply_chat_template(MESSAGES)


def test_where_templates_are_found(tiny_model_dir: Path) -> None:
    file = tiny_model_dir / "tokenizer_config.json"
    options = json.loads(file.read_text())
    file.write_text(json.dumps(options | {"chat_template": "one"}))
    assert Tokenizer.from_folder(tiny_model_dir).chat_template == "one"
    named = [{"name": "default", "template": "two"}, {"name": "tool_use", "template": "three"}]
    file.write_text(json.dumps(options | {"chat_template": named}))
    tokenizer = Tokenizer.from_folder(tiny_model_dir)
    assert tokenizer.apply_chat_template(MESSAGES) == "two"
    assert tokenizer.apply_chat_template(MESSAGES, tools=[{}]) == "three"
    (tiny_model_dir / "chat_template.jinja").write_text("four")
    assert Tokenizer.from_folder(tiny_model_dir).chat_template == "four"


def test_templates_of_known_families_render(shared_data) -> None:
    found = sorted(shared_data("chat_templates").glob("*.jinja"))
    assert len(found) >= 5
    for path in found:
        tokenizer = byte_tokenizer()
        tokenizer.special_tokens = {"bos_token": "<s>", "eos_token": "</s>"}
        tokenizer.chat_template = path.read_text()
        text = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True)
        assert text.index("Hi") < text.index("Hello") < text.index("Bye"), path.name
        assert text.startswith(tokenizer.apply_chat_template(MESSAGES).rstrip()[:20])


FILES = {"chat_template.json": json.dumps({"chat_template": "processor"}), "chat_template.jinja": "jinja",
         "additional_chat_templates/tool_use.jinja": "tool file", "additional_chat_templates/rag.jinja": "rag"}  # fmt: skip
NAMED = [{"name": "default", "template": "listed"}, {"name": "tool_use", "template": "listed tools"}]


@pytest.mark.parametrize(
    ("config", "files", "plain", "with_tools"),
    [
        (None, [], None, None),
        ("config", [], "config", "config"),
        (NAMED, [], "listed", "listed tools"),
        (NAMED[1:], [], None, "listed tools"),
        ({"default": "one", "tool_use": "two"}, [], "one", "two"),
        ("config", ["chat_template.json"], "config", "config"),
        (None, ["chat_template.json"], "processor", "processor"),
        ("config", ["chat_template.jinja", "chat_template.json"], "jinja", "jinja"),
        (NAMED, ["chat_template.jinja"], "jinja", "jinja"),
        ("config", ["additional_chat_templates/tool_use.jinja"], None, "tool file"),
        (NAMED, ["chat_template.jinja", "additional_chat_templates/tool_use.jinja"], "jinja", "tool file"),
        (NAMED, ["chat_template.jinja", "additional_chat_templates/rag.jinja"], "jinja", "jinja"),
        ("", [], "", ""),
    ],
)
def test_which_of_several_templates_counts(
    tiny_model_dir: Path, config: Any, files: list[str], plain: str | None, with_tools: str | None
) -> None:
    file = tiny_model_dir / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | ({} if config is None else {"chat_template": config})))
    for name in files:
        (tiny_model_dir / name).parent.mkdir(exist_ok=True)
        (tiny_model_dir / name).write_text(FILES[name])
    tokenizer = Tokenizer.from_folder(tiny_model_dir)
    for tools, right in ((None, plain), ([], with_tools), ([{}], with_tools)):
        if right is None:
            with pytest.raises(DataError, match="expected a model with a chat template"):
                tokenizer.apply_chat_template(MESSAGES, tools=tools)
        else:
            assert tokenizer.apply_chat_template(MESSAGES, tools=tools) == right


@pytest.mark.parametrize("config", [3, [{"template": "x"}], ["x"], {"default": 3}])
def test_templates_that_are_no_text_are_refused(tiny_model_dir: Path, config: Any) -> None:
    (tiny_model_dir / "tokenizer_config.json").write_text(json.dumps({"chat_template": config}))
    with pytest.raises(CheckpointError, match="chat_template: expected"):
        Tokenizer.from_folder(tiny_model_dir)


def test_the_templates_of_a_folder_are_saved_with_the_model(tiny_model_dir: Path, tmp_path: Path) -> None:
    for name, text in FILES.items():
        (tiny_model_dir / name).parent.mkdir(exist_ok=True)
        (tiny_model_dir / name).write_text(text)
    load_model(tiny_model_dir).save(tmp_path / "saved")
    saved = Tokenizer.from_folder(tmp_path / "saved")
    assert saved.templates == {"default": "jinja", "tool_use": "tool file", "rag": "rag"}
    (tmp_path / "again").mkdir()
    saved.save(tmp_path / "again")
    assert Tokenizer.from_folder(tmp_path / "again").templates == saved.templates


OPEN = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello th"}]
TRIMMING = CHATML.replace("m.content", "m.content | trim")


@pytest.mark.parametrize(
    ("template", "content", "end"),
    [
        (CHATML, "Hello th", "<|assistant|>Hello th"),
        (CHATML, "Hello ", "<|assistant|>Hello "),
        (CHATML, "", "<|assistant|>"),
        (TRIMMING, "Hello ", "<|assistant|>Hello"),
        (CHATML.replace("m.content", "m.content[0].text"), [{"type": "text", "text": "Part"}], "<|assistant|>Part"),
    ],
)
def test_a_last_message_is_left_open(template: str, content: Any, end: str) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    messages = [{"role": "user", "content": [{"type": "text", "text": "Hi"}] if isinstance(content, list) else "Hi"},
                {"role": "assistant", "content": content}]  # fmt: skip
    text = tokenizer.apply_chat_template(messages, continue_final_message=True)
    assert text == "<|user|>Hi</s>" + end and messages[-1]["content"] == content


@pytest.mark.parametrize(
    ("template", "last"),
    [
        (CHATML, {"role": "assistant", "tool_calls": []}),
        (CHATML, {"role": "assistant", "content": [{"type": "image"}]}),
        ("{{ messages[0].content }}", OPEN[-1]),
        (CHATML.replace("m.content", "m.content | lower"), OPEN[-1]),
    ],
)
def test_a_last_message_that_is_not_there_cannot_be_left_open(template: str, last: dict[str, Any]) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(DataError, match="which is to be continued"):
        tokenizer.apply_chat_template([OPEN[0], last], continue_final_message=True)


def test_a_message_is_continued_or_another_begins() -> None:
    with pytest.raises(DataError, match="got both"):
        byte_tokenizer().apply_chat_template(OPEN, add_generation_prompt=True, continue_final_message=True)


class Elsewhere(Exception):
    """What a handler of signals throws."""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs timers")
def test_what_a_handler_throws_in_the_middle_of_a_call_passes() -> None:
    tokenizer, caught = byte_tokenizer(), 0

    def handle(*_: Any) -> None:
        raise Elsewhere

    before = signal.signal(signal.SIGALRM, handle)
    try:
        for i in range(60):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.0005 + 0.0001 * (i % 20))
                for _ in range(2000):
                    tokenizer.decode(tokenizer.encode("a text of some length " * 20))
            except Elsewhere:
                caught += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert caught == 60
