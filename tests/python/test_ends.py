"""The tokens that end an answer: one set, from every source, in every file."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tokenizers

from lora_c.configs import GenerationConfig, LoraConfig, TrainConfig
from lora_c.data import load_dataset
from lora_c.errors import CheckpointError
from lora_c.generation.answers import generate_ids
from lora_c.gguf.models import write_model
from lora_c.model.opening import load_model
from lora_c.notices import LoraCWarning
from lora_c.text.ends import Ends, find_ends, turn_end, untrained_ends, with_ends
from lora_c.text.tokenizer import Tokenizer
from lora_c.training.trainer import Trainer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chat_folder(stories: Path, folder: Path, template: str | None = CHATML, **generation: Any) -> Path:
    """The stories model with two of its tokens renamed to those of ChatML; config.json and generation_config.json end at 2."""
    folder.mkdir()
    for file in ("config.json", "model.safetensors", "generation_config.json"):
        (folder / file).write_bytes((stories / file).read_bytes())
    state = json.loads((stories / "tokenizer.json").read_text())
    for old, new in ((".", "<|im_end|>"), ("!", "<|im_start|>")):
        index = state["model"]["vocab"].pop(old)
        state["model"]["vocab"][new] = index
        flags = {key: False for key in ("single_word", "lstrip", "rstrip", "normalized")} | {"special": True}
        state["added_tokens"].append({"id": index, "content": new} | flags)
    (folder / "tokenizer.json").write_text(json.dumps(state))
    options = json.loads((stories / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(options))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    if generation:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def test_ends_are_the_union_of_what_the_sources_say(stories: Path, tmp_path: Path) -> None:
    folder = chat_folder(stories, tmp_path / "m")
    with pytest.warns(LoraCWarning, match=r"generation_config.json 2 \(</s>\).*the chat template 426 \(<\|im_end\|>\)"):
        model = load_model(folder)
    assert model.eos_token_ids == {2, 426}
    assert len(list(generate_ids(model, [1], GenerationConfig(max_new_tokens=60)))) < 60
    assert len(list(generate_ids(model, [1], GenerationConfig(max_new_tokens=60, ignore_eos=True)))) == 60


def test_sources_that_agree_are_not_told(stories: Path, tmp_path: Path) -> None:
    assert load_model(chat_folder(stories, tmp_path / "m", eos_token_id=[2, 426])).eos_token_ids == {2, 426}


def test_every_source_counts() -> None:
    config = {"eos_token_id": [1, 2], "text_config": {"eos_token_id": 3}}
    ends = find_ends(config, {"eos_token_id": 4}, None)
    assert ends.ids == {1, 2, 3, 4} and ends.disagreement(None) is not None
    assert find_ends({}, {}, None).ids == set() and find_ends({"eos_token_id": -1}, {}, None).ids == set()
    assert Ends({"config.json": (1,), "generation_config.json": (1, 2)}).disagreement(None) is None


@pytest.mark.parametrize("value", ["2", 2.0, True, [2, None], {"a": 1}])
def test_ends_that_are_no_ids_are_refused(value: Any) -> None:
    with pytest.raises(CheckpointError, match="eos_token_id: expected a token id"):
        find_ends({"eos_token_id": value}, {}, None)


ENDS = {
    "Qwen-Qwen2.5-7B-Instruct": "<|im_end|>", "google-gemma-2-2b-it": "<end_of_turn>",
    "meta-llama-Llama-3.2-3B-Instruct": "<|eot_id|>",
    "microsoft-Phi-3.5-mini-instruct": "<|end|>", "mistralai-Mistral-Nemo-Instruct-2407": "</s>",
}  # fmt: skip


@pytest.mark.parametrize("name", ENDS)
def test_the_end_of_a_turn_is_found_by_rendering(name: str, shared_data: Any) -> None:
    vocab = {text: i for i, text in enumerate(["<unk>", "<s>", "</s>", *dict.fromkeys(ENDS.values()), "<|im_start|>"])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="<unk>"))
    backend.add_special_tokens([text for text in vocab if text != "<unk>"])
    source = (shared_data("chat_templates") / f"{name}.jinja").read_text(encoding="utf-8")
    tokenizer = Tokenizer(backend, {"bos_token": "<s>", "eos_token": "</s>"}, source)
    found = turn_end(tokenizer)
    assert found is not None and tokenizer.id_to_token(found) == ENDS[name]


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ m.content }}\n{% endfor %}",
        "{{ raise_exception('no') }}",
        "fixed",
    ],
)
def test_a_template_without_an_end_names_none(source: str) -> None:
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"x": 0, "</s>": 1}, unk_token="x"))
    backend.add_special_tokens(["</s>"])
    assert turn_end(Tokenizer(backend, {}, source)) is None


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[-1].content }} x</s>",
        "{{ raise_exception('no') if messages[0].role != 'system' else '' }}{{ messages[-1].content }}</s>",
    ],
)
def test_an_end_is_found_behind_other_text_and_with_a_system_message(source: str) -> None:
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"x": 0, "</s>": 1}, unk_token="x"))
    backend.add_special_tokens(["</s>"])
    assert turn_end(Tokenizer(backend, {}, source)) == 1


def test_ends_stay_through_every_kind_of_file(stories: Path, tmp_path: Path) -> None:
    folder = chat_folder(stories, tmp_path / "m", eos_token_id=[2, 426])
    (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | {"eos_token_id": 400}))
    with pytest.warns(LoraCWarning, match="config.json 400"):
        model = load_model(folder)
    ends = {2, 400, 426}
    assert model.eos_token_ids == ends
    model.save(tmp_path / "saved")
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "saved" / name).read_text())["eos_token_id"] == sorted(ends)
    write_model(tmp_path / "m.gguf", load_model(tmp_path / "saved"), "F32")
    from_gguf = load_model(tmp_path / "m.gguf")
    assert from_gguf.eos_token_ids == ends
    from_gguf.save(tmp_path / "again")
    again = load_model(tmp_path / "again")
    again.add_adapter(r=2)
    merged = again.merge()
    merged.save(tmp_path / "merged")
    write_model(tmp_path / "merged.gguf", load_model(tmp_path / "merged"), "F16")
    for path in ("again", "merged", "merged.gguf"):
        assert load_model(tmp_path / path).eos_token_ids == ends, path
    assert merged.eos_token_ids == ends


def test_more_ends_than_llama_cpp_has_keys_stay(stories: Path, tmp_path: Path) -> None:
    ends = [2, 300, 400, 410, 426]
    write_model(tmp_path / "m.gguf", load_model(chat_folder(stories, tmp_path / "m", eos_token_id=ends)), "F32")
    assert load_model(tmp_path / "m.gguf").eos_token_ids == set(ends)


def test_files_that_name_the_ends_stay_as_they_are() -> None:
    options = {"eos_token_id": [5, 3], "x": 1}
    assert with_ends(options, {3, 5}) == options
    assert with_ends({"eos_token_id": 3}, {3}) == {"eos_token_id": 3}
    assert with_ends({"eos_token_id": 3}, {3, 1})["eos_token_id"] == [1, 3]
    assert with_ends({}, set()) == {} and with_ends({}, {4}) == {"eos_token_id": 4}


def trained_on(model: Any, data: Path, tmp_path: Path, **adapter: Any) -> Trainer:
    model.add_adapter(LoraConfig(r=2, **adapter))
    return Trainer(model, load_dataset(data, model.tokenizer), TrainConfig(output_dir=str(tmp_path / "out"), max_steps=1))


@pytest.fixture
def base(tiny: SimpleNamespace, tmp_path: Path) -> Any:
    """Write a base model: what to make of row 2 of the embedding, and of the head."""

    def write(change: Any, tied: bool = False) -> Path:
        config = tiny.config | {"tie_word_embeddings": tied}
        tensors = tiny.tensors(config)
        change(tensors)
        return tiny.write(tmp_path / "base", config, tensors)

    return write


def zero(tensors: dict[str, np.ndarray]) -> None:
    tensors["model.embed_tokens.weight"][2] = 0


def short(tensors: dict[str, np.ndarray]) -> None:
    tensors["model.embed_tokens.weight"][2] *= 1e-4


def equal(tensors: dict[str, np.ndarray]) -> None:
    tensors["model.embed_tokens.weight"][2] = tensors["model.embed_tokens.weight"][60]


def in_the_head(tensors: dict[str, np.ndarray]) -> None:
    tensors["lm_head.weight"][2] = 0


@pytest.mark.parametrize("change", [zero, short, equal, in_the_head])
def test_an_end_that_nothing_has_trained_is_said_before_training(base: Any, tmp_path: Path, change: Any) -> None:
    (tmp_path / "d.jsonl").write_text('{"text": "w3 w4 w5"}\n')
    folder = base(change)
    model = load_model(folder)
    assert untrained_ends(model) == [2]
    flags = r"--trainable-token-indices 2 --modules-to-save lm_head"
    names = r"\(trainable_token_indices=\[2\], modules_to_save=\['lm_head'\]\)"
    with pytest.warns(LoraCWarning, match=rf"</s> \(2\), whose row.*{flags} {names}"):
        trained_on(model, tmp_path / "d.jsonl", tmp_path)
    trained_on(load_model(folder), tmp_path / "d.jsonl", tmp_path, trainable_token_indices=[2])
    trained_on(load_model(folder), tmp_path / "d.jsonl", tmp_path, modules_to_save=["lm_head"])


def test_ends_that_are_trained_are_not_said(base: Any, tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"text": "w3 w4 w5"}\n')
    model = load_model(base(lambda tensors: None))
    assert untrained_ends(model) == []
    trained_on(model, tmp_path / "d.jsonl", tmp_path)


def test_an_untrained_end_that_the_data_does_not_teach_is_not_said(base: Any, tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_text("w3 w4 w5 w6")
    trained_on(load_model(base(zero)), tmp_path / "d.txt", tmp_path)


def test_with_a_tied_head_the_rows_of_the_embedding_are_enough(base: Any, tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"text": "w3 w4 w5"}\n')
    with pytest.warns(LoraCWarning, match=r"--trainable-token-indices 2 \(trainable_token_indices=\[2\]\)$"):
        trained_on(load_model(base(zero, tied=True)), tmp_path / "d.jsonl", tmp_path)


@pytest.mark.parametrize("completion", [" w5", " w5 w6 w7 w8"])
def test_answers_that_never_end_are_said_before_training(base: Any, tmp_path: Path, completion: str) -> None:
    (tmp_path / "d.jsonl").write_text(json.dumps({"prompt": "w3 w4", "completion": completion}) + "\n")
    model = load_model(base(lambda tensors: None))
    model.add_adapter(LoraConfig(r=2))
    config = TrainConfig(output_dir=str(tmp_path / "out"), max_steps=1)
    Trainer(model, load_dataset(tmp_path / "d.jsonl", model.tokenizer), config)
    cut = load_dataset(tmp_path / "d.jsonl", model.tokenizer, max_seq_length=3)
    with pytest.warns(LoraCWarning, match=r"no answer of the data teaches an end of the model \(</s> \(2\)\)"):
        Trainer(model, cut, config)


def test_a_template_that_writes_no_end_is_said_before_training(base: Any, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "w3 w4"}, {"role": "assistant", "content": "w5"}]
    (tmp_path / "d.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    model = load_model(base(lambda tensors: None))
    model.tokenizer.chat_template = "{% for m in messages %}{{ m.content }} w9 {% endfor %}"
    with pytest.warns(LoraCWarning, match="no answer of the data teaches an end of the model"):
        trained_on(model, tmp_path / "d.jsonl", tmp_path)
    model = load_model(base(lambda tensors: None))
    model.tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {{ eos_token }} w9 {% endfor %}"
    trained_on(model, tmp_path / "d.jsonl", tmp_path)
