"""--chat-template FILE: another template in the place of the model's own, in every command, and where it is saved."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

import lora_c as lc
from lora_c.cli import cli
from lora_c.demo.run import BASE_MODEL
from lora_c.errors import DataError, LoraCError
from lora_c.model.tokenizer_of_model import load_tokenizer
from lora_c.notices import LoraCWarning
from lora_c.text.chosen_template import read_chosen_template, use_chat_template, use_template
from lora_c.text.tokenizer import Tokenizer

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
TALK = {"messages": [{"role": "user", "content": "Once"}, {"role": "assistant", "content": "upon a time"}]}


def run(*args: object, **options: Any) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args], **options)


def fine(*args: object, **options: Any) -> str:
    done = run(*args, **options)
    assert done.exit_code == 0, (done.exception, done.output)
    return done.stdout


def refused(*args: object) -> str:
    done = run(*args)
    assert isinstance(done.exception, LoraCError), (done.exception, done.output)
    return str(done.exception)


@pytest.fixture
def template(tmp_path: Path) -> Path:
    (tmp_path / "mine.jinja").write_text(TEMPLATE, encoding="utf-8")
    return tmp_path / "mine.jinja"


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    (tmp_path / "talk.jsonl").write_text(json.dumps(TALK) + "\n")
    return tmp_path / "talk.jsonl"


def examples(*args: object) -> str:
    found = json.loads(fine("data", "--json", *args))
    return "".join(piece["text"] for piece in found["examples"][0]["pieces"])


class TestFile:
    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (b"a\nb {% if %}", "mine.jinja:2: expected a chat template"),
            (b"{% for m in messages %}", "mine.jinja:1: expected a chat template"),
            (b" \n", r"mine.jinja: expected a chat template \(Jinja\), got an empty file"),
            (b"\xff", "mine.jinja: expected UTF-8 text, got byte 0xff"),
            (b"a" * 300_000, "mine.jinja: expected a chat template.*program of 300,000 characters"),
            (b"a" * 1_000_000, "mine.jinja: expected a chat template of at most 200,000 characters, got a larger file"),
            (None, "mine.jinja: expected a file, got nothing there"),
        ],
    )
    def test_what_is_no_template_is_refused(self, template: Path, data: bytes | None, message: str) -> None:
        template.unlink() if data is None else template.write_bytes(data)
        with pytest.raises(DataError, match=message):
            read_chosen_template(template)

    def test_it_takes_the_place_of_all_that_a_model_has(self, template: Path) -> None:
        tokenizer = Tokenizer.from_folder(BASE_MODEL)
        tokenizer.tool_template = "tools"
        use_template(tokenizer, template)
        assert tokenizer.templates == {"default": TEMPLATE}
        assert (
            tokenizer.apply_chat_template(TALK["messages"], tools=[{}]) == "[user] Once<|end|>[assistant] upon a time<|end|>"
        )

    def test_answers_end_as_it_ends_them(self, tmp_path: Path, make_model: Callable[..., Path]) -> None:
        model = lc.load_model(make_model(), progress=False)
        assert model.eos_token_ids == {2}
        model.tokenizer.backend.add_special_tokens(["w9"])
        (tmp_path / "mine.jinja").write_text(
            "{% for m in messages %}{{ m.role }} {{ m.content }} w9{% endfor %}"
            "{% if add_generation_prompt %}assistant{% endif %}"
        )
        with pytest.warns(LoraCWarning, match="mine.jinja: the ends of an answer differ: .* the chat template 9"):
            use_chat_template(model, tmp_path / "mine.jinja")
        assert model.eos_token_ids == {2, 9}


class TestCommands:
    def test_data_shows_it(self, template: Path, talk: Path) -> None:
        own = examples("--model", BASE_MODEL, "--data", talk)
        mine = examples("--model", BASE_MODEL, "--data", talk, "--chat-template", template)
        assert own != mine and mine.endswith("upon a time<|end|>") and "<|user|>" in own and "<|user|>" not in mine

    def test_generate_and_chat_begin_with_it(self, template: Path, tmp_path: Path) -> None:
        model = shutil.copytree(BASE_MODEL, tmp_path / "model")
        flags = ("--max-new-tokens", 5)
        used = fine("generate", "--model", model, "--chat-template", template, "Once", *flags)
        asked = fine("chat", "--model", model, "--chat-template", template, *flags, input="Once\n\n")
        shutil.copy(template, model / "chat_template.jinja")
        assert used == fine("generate", "--model", model, "Once", *flags)
        assert used.strip() in asked
        assert fine("generate", "--model", model, "Once", "--raw", *flags) == fine(
            "generate", "--model", BASE_MODEL, "Once", "--raw", *flags
        )

    def test_eval_measures_with_it(self, template: Path, talk: Path) -> None:
        flags = ("eval", "--model", BASE_MODEL, "--data", talk, "--json")
        own, mine = (json.loads(fine(*flags, *more)) for more in ((), ("--chat-template", template)))
        data = lc.load_dataset(talk, load_tokenizer(BASE_MODEL))
        assert own["tokens"] == data.n_predicted and own["loss"] != mine["loss"]

    def test_a_broken_one_is_one_line(self, template: Path, talk: Path) -> None:
        template.write_text("{% if %}")
        for command in ("data", "eval", "train"):
            flags = ("--model", BASE_MODEL, "--data", talk, "--chat-template", template)
            assert "mine.jinja:1: expected a chat template (Jinja), got: " in refused(command, *flags)
        assert "mine.jinja:1: expected" in refused("generate", "--model", BASE_MODEL, "x", "--chat-template", template)


class TestTraining:
    def train(self, talk: Path, out: Path, *more: object) -> Result:
        return run(
            "train", "--model", BASE_MODEL, "--data", talk, "--output-dir", out, "--method", "lora", "--max-steps", 2, *more
        )

    def test_config_yaml_keeps_it_and_a_resumed_run_needs_it(self, template: Path, talk: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        assert self.train(talk, out, "--chat-template", template).exit_code == 0
        assert yaml.safe_load((out / "config.yaml").read_text())["chat_template"] == "chat_template.jinja"
        assert (out / "chat_template.jinja").read_text(encoding="utf-8") == TEMPLATE
        other = self.train(talk, out, "--resume", "--max-steps", 3)
        assert "data (digest) " in str(other.exception)
        with pytest.warns(LoraCWarning, match="the run had 2 steps and has 3 now"):
            again = self.train(talk, out, "--resume", "--max-steps", 3, "--chat-template", template)
        assert again.exit_code == 0, again.exception

    def test_a_run_goes_on_with_its_own_copy_when_the_file_is_gone(self, template: Path, talk: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        assert self.train(talk, out, "--chat-template", template).exit_code == 0
        template.unlink()
        with pytest.warns(LoraCWarning, match="has 5 now"):
            done = run("train", "--config", out / "config.yaml", "--resume", "--max-steps", 5)
        assert done.exit_code == 0, done.exception
        again = run("train", "--config", out / "config.yaml", "--output-dir", tmp_path / "b")
        assert again.exit_code == 0 and (tmp_path / "b/chat_template.jinja").read_text(encoding="utf-8") == TEMPLATE

    def test_a_model_that_is_saved_has_it(self, template: Path, talk: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        done = self.train(talk, out, "--chat-template", template, "--method", "head")
        assert done.exit_code == 0, done.exception
        assert (out / "chat_template.jinja").read_text() == TEMPLATE
        assert "chat_template" not in json.loads((out / "tokenizer_config.json").read_text())
        assert Tokenizer.from_folder(out).templates == {"default": TEMPLATE}
        assert (out / "tokenizer.json").read_bytes() == (BASE_MODEL / "tokenizer.json").read_bytes()

    def test_a_template_set_in_python_is_saved_too(self, tmp_path: Path) -> None:
        model = lc.load_model(BASE_MODEL, progress=False)
        model.save(tmp_path / "same")
        config = "tokenizer_config.json"
        assert (tmp_path / "same" / config).read_bytes() == (BASE_MODEL / config).read_bytes()
        model.tokenizer.chat_template = TEMPLATE
        model.tokenizer.tool_template = "tools"
        model.save(tmp_path / "new")
        assert Tokenizer.from_folder(tmp_path / "new").templates == {"default": TEMPLATE, "tool_use": "tools"}
        model.tokenizer.chat_template = model.tokenizer.tool_template = None
        model.save(tmp_path / "none")
        assert Tokenizer.from_folder(tmp_path / "none").templates == {}

    def test_the_template_beside_an_adapter_is_the_one_it_was_trained_with(self, template, talk: Path, tmp_path: Path) -> None:
        out = tmp_path / "out"
        assert self.train(talk, out, "--chat-template", template).exit_code == 0
        shutil.copy(template, out / "chat_template.jinja")
        flags = ("generate", "--model", BASE_MODEL, "--adapter", out, "Once", "--max-new-tokens", 5)
        with pytest.warns(
            LoraCWarning, match="out: its chat template, with which the adapter was trained, takes the place of"
        ):
            beside = fine(*flags)
        assert beside == fine(*flags, "--chat-template", template)
        merges = (
            ("merge", "--model", BASE_MODEL, "--adapter", out, "--output-dir", tmp_path / "merged"),
            ("export", out, tmp_path / "exported", "--to", "hf", "--model", BASE_MODEL),
        )
        for words in merges:
            with pytest.warns(LoraCWarning, match="takes the place of the model's"):
                fine(*words)
        for name in ("merged", "exported"):
            assert Tokenizer.from_folder(tmp_path / name).templates == {"default": TEMPLATE}
