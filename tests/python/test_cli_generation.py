"""The commands that write text: prompts, stop texts, and the settings of the model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

import lora_c as lc
from lora_c.cli import cli
from lora_c.cli.options import FreeText, TextList, config_options, take
from lora_c.configs import GenerationConfig, LoraConfig
from lora_c.errors import ConfigError
from lora_c.notices import LoraCWarning

PROMPT = "Once upon a time"


def invoke(*args: object, **options: Any) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args], **options)


def run(*args: object, **options: Any) -> str:
    result = invoke(*args, **options)
    assert result.exit_code == 0, result.output
    return result.stdout


def taken(*args: str, cls: Any = GenerationConfig) -> dict[str, Any]:
    """What the flags of a config class make of arguments."""
    found: dict[str, Any] = {}

    @click.command()
    @config_options(cls, "X", skip=("bad_words_ids",))
    def command(**own: Any) -> None:
        found.update(take(own, cls))

    result = CliRunner().invoke(command, list(args))
    assert result.exit_code == 0, result.output
    return found


@pytest.mark.parametrize("text", ["little girl", "\n", "3", "User:", "a,b", " ", "1,2", "<|im_end|>", "-5", "all-linear"])
@pytest.mark.parametrize("flag", ["--stop-strings", "--bad-words"])
def test_a_free_text_is_one_text(flag: str, text: str) -> None:
    name = flag[2:].replace("-", "_")
    assert taken(flag, text) == {name: [text]}
    assert taken(flag, text, flag, "other") == {name: [text, "other"]}
    assert getattr(GenerationConfig(**taken(flag, text)), name) == [text]


def test_lists_of_names_and_of_numbers_stay_lists() -> None:
    assert taken("--suppress-tokens", "3,-4") == {"suppress_tokens": [3, -4]} and taken() == {}
    assert taken("--target-modules", "q_proj,7", cls=LoraConfig) == {"target_modules": ["q_proj", "7"]}
    assert taken("--layers-to-transform", "1,2", cls=LoraConfig) == {"layers_to_transform": [1, 2]}
    assert TextList().convert("2024", None, None) == ["2024"]
    with pytest.raises(click.BadParameter, match="put it in quotes"):
        FreeText().convert(3, None, None)


@pytest.mark.parametrize(
    ("yaml", "stops"),
    [("little girl", ["little girl"]), ('["a,b", "3"]', ["a,b", "3"]), ('"\\n"', ["\n"]), ('"3"', ["3"]),
     ("3", ["3"]), ("[3]", ["3"]), ("yes", ["yes"]), ("{a: 1}", None)],
)  # fmt: skip
def test_stop_texts_in_a_file_of_settings(stories: Path, tmp_path: Path, yaml: str, stops: list[str] | None) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"model: {stories}\nprompt: {PROMPT}\nmax_new_tokens: 30\nstop_strings: {yaml}\n")
    if stops is None:
        assert "run.yaml:4: stop_strings: expected" in str(invoke("generate", "--config", file).exception)
    else:
        right = lc.load_model(stories).generate(PROMPT, max_new_tokens=30, stop_strings=stops)
        assert run("generate", "--config", file) == right + "\n"


def test_stop_texts_on_the_command_line_stop(stories: Path) -> None:
    options = ("generate", "--model", stories, "--max-new-tokens", 60, PROMPT)
    free = run(*options)
    assert "little girl" in free and "," in free
    assert run(*options, "--stop-strings", "little girl") == free[: free.index("little girl")] + "\n"
    assert run(*options, "--stop-strings", "never", "--stop-strings", ",") == free[: free.index(",")] + "\n"


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_prompt_through_a_pipe_is_the_prompt_as_argument(stories: Path, end: str) -> None:
    options = ("generate", "--model", stories, "--max-new-tokens", 12)
    assert run(*options, input=PROMPT + end) == run(*options, PROMPT)


def test_only_one_newline_is_taken_off(stories: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(lc.Model, "stream", lambda self, prompt, config: seen.append(prompt) or iter(()))
    for text in ("a\n\n", "a\r\nb\r\n", " \n", " a \n"):
        run("generate", "--model", stories, input=text)
    assert seen == ["a\n", "a\nb", " ", " a "]
    result = invoke("generate", "--model", stories, input=b"\xff\xfe")
    assert isinstance(result.exception, ConfigError) and "UTF-8" in str(result.exception)


def test_prompts_of_a_file_are_its_lines(stories: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes("One\u2028two\r\n\nThree\x0bfour\n".encode())
    text = run("generate", "--model", stories, "--max-new-tokens", 1, "--prompts", tmp_path / "p.txt")
    assert [json.loads(line)["prompt"] for line in text.rstrip("\n").split("\n")] == ["One\u2028two", "Three\x0bfour"]


@pytest.fixture
def with_settings(stories: Path, tmp_path: Path) -> Callable[..., Path]:
    """The stories model with a generation_config.json, and a chat template on demand."""

    def make(template: str | None = None, **settings: Any) -> Path:
        folder = shutil.copytree(stories, tmp_path / "model")
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2} | settings))
        if template is not None:
            (folder / "chat_template.jinja").write_text(template)
        return Path(folder)

    return make


def test_the_settings_of_the_model_are_taken_on_demand(with_settings: Any) -> None:
    folder = with_settings(suppress_tokens=[426], repetition_penalty=1.3)
    options = ("generate", "--model", folder, "--max-new-tokens", 30, PROMPT)
    with pytest.warns(LoraCWarning, match="--use-generation-config"):
        plain = run(*options)
    taken_over = run(*options, "--use-generation-config")
    assert "." in plain and "." not in taken_over
    with pytest.warns(LoraCWarning, match="left aside is repetition_penalty"):
        assert "." not in run(*options, "--suppress-tokens", "426")
    assert run(*options, "--use-generation-config", "--repetition-penalty", "1") != taken_over


def test_chat_takes_the_settings_of_the_model_and_flags_win(with_settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = with_settings("{% for m in messages %}{{ m.content }} {% endfor %}", do_sample=True, temperature=0.6, top_p=0.9)
    seen: list[GenerationConfig] = []
    monkeypatch.setattr(lc.Model, "stream", lambda self, messages, config: seen.append(config) or iter(["x"]))
    run("chat", "--model", folder, input="hi\n\n")
    run("chat", "--model", folder, "--temperature", "0", input="hi\n\n")
    run("chat", "--model", folder, "--top-p", "0.5", "--stop-strings", "a,b", input="hi\n\n")
    assert [(c.sampling, c.temperature, c.top_k, c.top_p) for c in seen] == [
        (True, 0.6, 50, 0.9), (False, 0.0, 50, 0.9), (True, 0.6, 50, 0.5),
    ]  # fmt: skip
    assert seen[2].stop_strings == ["a,b"]
