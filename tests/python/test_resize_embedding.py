"""Rows for tokens that only the tokenizer has: made from the mean, trained, saved, and found again on the old base."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from click.testing import CliRunner
from device_values import write_values

from lora_c import LoraConfig, TrainConfig, Trainer, load_dataset, load_model
from lora_c.checkpoints.safetensors_file import SafetensorsFile
from lora_c.cli import cli
from lora_c.errors import AdapterError, ConfigError, DataError
from lora_c.gguf.models import write_model as write_gguf
from lora_c.notices import LoraCWarning

OLD = np.arange(3, 30, dtype=np.int32)


def add_tokens(folder: Path, *tokens: str) -> Path:
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.add_special_tokens(list(tokens))
    backend.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def write_data(tmp_path: Path) -> Path:
    (tmp_path / "d.jsonl").write_text('{"text": "w3 <|one|> w4 <|two|> w5"}\n' * 8)
    return tmp_path / "d.jsonl"


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"dtype": "bfloat16"}, {"quantize": "nf4"}, {"trainable": "full"}, {"trainable": "head"}]
)
def test_new_rows_are_the_mean_of_the_old_ones(make_model, tied: bool, options: dict[str, Any]) -> None:
    folder = add_tokens(make_model(tie_word_embeddings=tied), "<|one|>", "<|two|>")
    before, model = load_model(folder, **options), load_model(folder, resize_embedding=True, **options)
    for name in {"embed_tokens", "lm_head"} & set(model.weights):
        old, new = (np.asarray(merged_rows(m.weights[name]), np.float64) for m in (before, model))
        assert new.shape == (66, 32) and np.array_equal(new[:64], old)
        tolerance = 2**-8 if options.get("dtype") == "bfloat16" else 1e-6
        np.testing.assert_allclose(new[64:], np.broadcast_to(old.mean(0), (2, 32)), atol=tolerance * np.abs(old).max())
    assert ("lm_head" in model.weights) == ("lm_head" in before.weights)
    assert np.array_equal(model.decoder.logits(OLD)[:, :64], before.decoder.logits(OLD))
    assert model.config["vocab_size"] == 66 and model.added_tokens == [64, 65] and before.added_tokens == []
    assert (model.tokenizer.model_vocab_size, before.tokenizer.model_vocab_size) == (66, 64)


def merged_rows(weight: Any) -> Any:
    return weight.data if hasattr(weight, "requires_grad") else weight


def test_enough_rows_stay_as_they_are(make_model) -> None:
    model = load_model(make_model(), resize_embedding=True)
    assert model.added_tokens == [] and model.config["vocab_size"] == 64


@pytest.mark.parametrize("tied", [False, True])
def test_an_adapter_with_new_rows_works_on_the_old_base(make_model, tmp_path: Path, write_data: Path, tied: bool) -> None:
    base = add_tokens(make_model(tie_word_embeddings=tied), "<|one|>", "<|two|>")
    with pytest.raises(DataError, match="d.jsonl:1: expected token ids below 64 .*resize_embedding=True"):
        load_dataset(write_data, load_model(base).tokenizer)
    model = load_model(base, resize_embedding=True)
    start = np.array(model.weights["embed_tokens"][64:])
    model.add_adapter(r=2, trainable_token_indices=model.added_tokens, target_modules=["q_proj"])
    data = load_dataset(write_data, model.tokenizer)
    options = TrainConfig(output_dir=str(tmp_path / "out"), max_steps=3, learning_rate=1e-2)
    assert Trainer(model, data, options).train().steps == 3
    assert np.abs(model.adapter.tokens.rows.data - start).max() > 1e-3
    ids = np.array([3, 64, 4, 65, 5], np.int32)
    model.decoder.precision = "exact"  # training has set it to fast
    trained = model.decoder.logits(ids)
    model.save_adapter(tmp_path / "a")
    assert json.loads((tmp_path / "a/adapter_config.json").read_text())["trainable_token_indices"] == [64, 65]
    again = load_model(base)
    with pytest.warns(LoraCWarning, match="the embedding got 2 rows more, for tokens that the adapter was trained with"):
        again.load_adapter(tmp_path / "a")
    assert np.array_equal(again.decoder.logits(ids), trained)
    again.merge().save(tmp_path / "m")
    assert json.loads((tmp_path / "m/config.json").read_text())["vocab_size"] == 66
    merged = load_model(tmp_path / "m")
    assert merged.tokenizer.encode("<|two|>", add_special_tokens=False) == [65]
    np.testing.assert_allclose(merged.decoder.logits(ids), trained, atol=1e-4)


def test_whole_embeddings_of_another_size_work_on_the_old_base(make_model, tmp_path: Path) -> None:
    base = add_tokens(make_model(), "<|one|>")
    model = load_model(base, resize_embedding=True)
    model.add_adapter(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    write_values(model.adapter.saved["lm_head"], model.adapter.saved["lm_head"].data[64] + 1, where=64)
    model.save_adapter(tmp_path / "a")
    ids = np.array([3, 64, 4], np.int32)
    again = load_model(base)
    with pytest.warns(LoraCWarning, match="the embedding got 1 rows more"):
        again.load_adapter(tmp_path / "a")
    assert np.array_equal(again.decoder.logits(ids), model.decoder.logits(ids))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("module", ["embed_tokens", "lm_head"])
def test_updates_of_an_embedding_of_another_size_work_on_the_old_base(make_model, tmp_path, module: str, tied: bool) -> None:
    base = add_tokens(make_model(tie_word_embeddings=tied), "<|one|>", "<|two|>")
    model = load_model(base, resize_embedding=True)
    model.add_adapter(r=2, target_modules=["q_proj", module], init_lora_weights=False)
    ids = np.array([3, 64, 4, 65], np.int32)
    expected = model.decoder.logits(ids)
    model.save_adapter(tmp_path / "a")
    again = load_model(base)
    with pytest.warns(LoraCWarning, match="the embedding got 2 rows more"):
        again.load_adapter(tmp_path / "a")
    assert np.array_equal(again.decoder.logits(ids), expected)


def test_an_adapter_for_tokens_that_nobody_has_is_refused(make_model, tmp_path: Path) -> None:
    model = load_model(add_tokens(make_model(), "<|one|>"), resize_embedding=True)
    model.add_adapter(r=2, trainable_token_indices=[64])
    model.save_adapter(tmp_path / "a")
    with pytest.raises(AdapterError, match=r"expected rows for at most 64 tokens \(of the model and its tokenizer\), got 65"):
        load_model(make_model("other")).load_adapter(tmp_path / "a")


def test_what_is_refused(make_model, stories: Path, tmp_path: Path) -> None:
    model = load_model(make_model())
    with pytest.raises(ConfigError, match="expected at least the 64 rows that the model has, got 63"):
        model.resize_embedding(63)
    model.add_adapter(r=2)
    with pytest.raises(AdapterError, match="expected a model without adapters"):
        model.resize_embedding(70)
    write_gguf(tmp_path / "m.gguf", load_model(stories))
    blocks = load_model(tmp_path / "m.gguf")
    state = json.loads((tmp_path / "model/tokenizer.json").read_text())
    state["model"]["vocab"]["far"] = 4_000_000_000
    (tmp_path / "model/tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(ConfigError, match="expected the 65 tokens .* one after another, got an id of 4,000,000,000"):
        load_model(tmp_path / "model", resize_embedding=True)
    with pytest.raises(ConfigError, match="expected embed_tokens as a plain array, got GGMLTensor"):
        blocks.resize_embedding(1000)


class TestCommandLine:
    @pytest.fixture
    def run(self) -> Callable[..., str]:
        def run(*args: object) -> str:
            done = CliRunner().invoke(cli, [str(arg) for arg in args], standalone_mode=False)
            assert done.exception is None, done.output
            return done.output

        return run

    @pytest.mark.parametrize("method", ["lora", "qlora", "full"])
    def test_train_merge_generate(self, run, make_model, tmp_path: Path, write_data: Path, method: str) -> None:
        base = add_tokens(make_model(tie_word_embeddings=True), "<|one|>", "<|two|>")
        out = tmp_path / "out"
        run("train", "--model", base, "--data", write_data, "--output-dir", out, "--method", method, "--max-steps", 2,
            "--resize-embedding")  # fmt: skip
        if method == "full":
            assert load_model(out).config["vocab_size"] == 66
            return
        written = json.loads((out / "adapter_config.json").read_text())
        assert written["trainable_token_indices"] == [64, 65]
        with pytest.warns(LoraCWarning, match="2 rows more"):
            run("eval", "--model", base, "--adapter", out, "--data", write_data)
        with pytest.warns(LoraCWarning, match="2 rows more"):
            run("merge", "--model", base, "--adapter", out, "--output-dir", tmp_path / "m")
        assert load_model(tmp_path / "m").config["vocab_size"] == 66
        with pytest.warns(LoraCWarning, match="2 rows more"):
            run("export", out, tmp_path / "peft", "--to", "peft")
        files = [SafetensorsFile(folder / "adapter_model.safetensors") for folder in (out, tmp_path / "peft")]
        arrays = [{name: file.read(name) for name in file.tensors} for file in files]
        assert arrays[0].keys() == arrays[1].keys()
        assert all(np.array_equal(array, arrays[1][name]) for name, array in arrays[0].items())
        run("eval", "--model", tmp_path / "m", "--data", write_data)
        run("train", "--config", out / "config.yaml", "--output-dir", tmp_path / "again")
        losses = [
            [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
            for folder in (out, tmp_path / "again")
        ]
        assert losses[0] == losses[1]

    def test_an_untied_head_is_said(self, run, make_model, tmp_path: Path, write_data: Path) -> None:
        base = add_tokens(make_model(), "<|one|>", "<|two|>")
        flags = ("--model", base, "--data", write_data, "--max-steps", 1, "--resize-embedding", "--method", "lora")
        with pytest.warns(LoraCWarning, match="the new rows of the embedding are trained, those of the head stay the mean"):
            run("train", *flags, "--output-dir", tmp_path / "rows")
        run("train", *flags, "--output-dir", tmp_path / "whole", "--modules-to-save", "embed_tokens,lm_head")
        assert json.loads((tmp_path / "whole/adapter_config.json").read_text())["trainable_token_indices"] is None

    def test_a_head_that_is_trained_alone_is_said(self, run, make_model, tmp_path: Path, write_data: Path) -> None:
        base = add_tokens(make_model(), "<|one|>", "<|two|>")
        flags = ("--model", base, "--data", write_data, "--max-steps", 1, "--resize-embedding", "--method", "lora")
        for more in (("--modules-to-save", "lm_head"), ("--target-modules", "q_proj,lm_head")):
            with pytest.warns(LoraCWarning, match="the new rows of the embedding stay the mean of the old ones"):
                run("train", *flags, "--output-dir", tmp_path / more[-1], *more)

    def test_an_adapter_with_new_rows_is_merged_into_a_gguf_file(self, run, stories: Path, tmp_path: Path) -> None:
        base = add_tokens(Path(shutil.copytree(stories, tmp_path / "base")), "<|one|>", "<|two|>")
        (tmp_path / "d.jsonl").write_text('{"text": "Once <|one|> upon <|two|> a time"}\n' * 4)
        run("train", "--model", base, "--data", tmp_path / "d.jsonl", "--output-dir", tmp_path / "out", "--method", "lora",
            "--max-steps", 2, "--resize-embedding")  # fmt: skip
        ids = np.array([3, 512, 4, 513], np.int32)
        model = load_model(base)
        with pytest.warns(LoraCWarning, match="2 rows more"):
            model.load_adapter(tmp_path / "out")
            run("merge", "--model", base, "--adapter", tmp_path / "out", "--output-dir", tmp_path / "m.gguf",
                "--dtype", "float32", "--no-report")  # fmt: skip
        merged = load_model(tmp_path / "m.gguf")
        assert merged.tokenizer.encode("<|two|>", add_special_tokens=False) == [513]
        np.testing.assert_allclose(merged.decoder.logits(ids), model.decoder.logits(ids), atol=1e-4)

    def test_a_regular_expression_that_names_the_embedding_trains_it(self, run, make_model, tmp_path, write_data) -> None:
        base = add_tokens(make_model(tie_word_embeddings=True), "<|one|>", "<|two|>")
        run("train", "--model", base, "--data", write_data, "--output-dir", tmp_path / "out", "--method", "lora",
            "--max-steps", 1, "--resize-embedding", "--target-modules", ".*(q_proj|embed_tokens)")  # fmt: skip
        assert json.loads((tmp_path / "out/adapter_config.json").read_text())["trainable_token_indices"] is None


@pytest.mark.parametrize("given", [None, [5], {"embed_tokens": [5]}])
def test_rows_that_were_asked_for_are_trained_too(make_model, given: Any) -> None:
    from lora_c.model.resize_embedding import train_added_tokens

    model = load_model(add_tokens(make_model(tie_word_embeddings=True), "<|one|>"), resize_embedding=True)
    config = train_added_tokens(LoraConfig(r=2, trainable_token_indices=given), model)
    model.add_adapter(config)
    assert model.adapter.tokens.ids == ([64] if given is None else [5, 64])
