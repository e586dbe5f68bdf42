"""Penalties, forbidden and forced tokens, draws: as transformers has them, and as generation_config.json asks for them."""

from __future__ import annotations

import json
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lora_c as lc
from lora_c.configs import GenerationConfig
from lora_c.errors import CheckpointError, ConfigError, LoraCError
from lora_c.generation.answers import generate_ids
from lora_c.generation.logits import LogitsProcessor, bad_word_ids
from lora_c.generation.sampling import probabilities
from lora_c.notices import LoraCWarning

GOLDEN = Path(__file__).parents[1] / "golden" / "generation_golden.npz"


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    with np.load(GOLDEN) as record:
        values = dict(record)
    return values | json.loads(values["options"].tobytes())


def test_greedy_answers_are_those_of_transformers(golden: dict[str, Any], stories: Path) -> None:
    model = lc.load_model(stories, progress=False)
    differing = set()
    for n, options in enumerate(golden["greedy"]):
        settings = {key: value for key, value in options.items() if key != "eos_token_id"}
        model.eos_token_ids = frozenset(np.atleast_1d(options.get("eos_token_id", 2)).tolist())
        for i, prompt in enumerate(golden["prompts"]):
            ids = model.tokenizer.encode(prompt)
            config = GenerationConfig(max_new_tokens=40, precision="exact", **settings)
            right = golden[f"greedy.{n}.{i}"].tolist()
            ended = right[:-1] if right[-1] in model.eos_token_ids else right
            assert list(generate_ids(model, ids, config)) == ended, (options, prompt)
            differing.add(tuple(right))
    assert len(differing) > 30  # the settings do change the answers


def test_what_is_drawn_from_is_that_of_transformers(golden: dict[str, Any]) -> None:
    for n, options in enumerate(golden["sampled"]):
        for i in range(3):
            config, ids = GenerationConfig(do_sample=True, **options), golden[f"ids.{i}"].tolist()
            logits = LogitsProcessor(config, len(ids), 10)(golden[f"logits.{i}"], ids)
            right = golden[f"weights.{n}.{i}"]
            got = probabilities(logits, config)
            np.testing.assert_array_equal(got > 0, right > 0, err_msg=str(options))
            np.testing.assert_allclose(got, right, rtol=2e-5, atol=1e-9, err_msg=str(options))


def test_a_batch_with_settings_equals_one_by_one(stories: Path) -> None:
    model = lc.load_model(stories, progress=False)
    prompts = ["Once upon a time", "The cat", "Lily"]
    options = {"max_new_tokens": 20, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "top_k": 5, "min_p": 0.1, "seed": 4}
    assert model.generate(prompts, **options) == [model.generate(prompt, **options) for prompt in prompts]


def test_bad_words_are_not_written(stories: Path) -> None:
    model = lc.load_model(stories, progress=False)
    free = model.generate("Once upon a time", max_new_tokens=40)
    assert " girl" in free and "Lily" in free
    text = model.generate("Once upon a time", max_new_tokens=40, bad_words=["girl", "Lily"])
    assert "girl" not in text and "Lily" not in text
    assert bad_word_ids(GenerationConfig(bad_words="girl"), model.tokenizer, 512)
    assert bad_word_ids(GenerationConfig(bad_words=[""]), model.tokenizer, 512) == []  # and not the space alone
    with pytest.raises(ConfigError, match="expected a model with a tokenizer"):
        bad_word_ids(GenerationConfig(bad_words=["x"]), None, 512)
    with pytest.raises(ConfigError, match="from 0 to 511, got 512"):
        model.generate("Once", bad_words_ids=[[512]])


def test_forbidding_every_token_is_refused(stories: Path) -> None:
    model = lc.load_model(stories, progress=False)
    for draw in ({}, {"temperature": 1.0}):
        with pytest.raises(ConfigError, match="expected a token that may be written, got none"):
            model.generate("Once", suppress_tokens=list(range(512)), **draw)


@pytest.mark.parametrize("name", ["suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id"])
@pytest.mark.parametrize("token", [512, 2**40])
def test_a_token_beyond_the_vocabulary_is_refused_before_the_first_one(stories: Path, name: str, token: int) -> None:
    model = lc.load_model(stories, progress=False)
    value = token if name.startswith("forced") else [3, token]
    with pytest.raises(ConfigError, match=f"{name}: expected token ids from 0 to 511, got {token}"):
        next(iter(model.stream("Once", max_new_tokens=50, **{name: value})))
    with pytest.raises(ConfigError, match=f"{name}: expected token ids from 0 to 511, got {token}"):
        model.generate(["Once", "One"], max_new_tokens=50, **{name: value})


@pytest.mark.parametrize(
    ("name", "value"), [("forced_eos_token_id", 2), ("forced_eos_token_id", [2, 3]), ("forced_bos_token_id", 3)]
)
def test_a_forced_token_that_is_suppressed_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{name}: expected a token that may be written, got .* in suppress_tokens"):
        GenerationConfig(**{name: value}, suppress_tokens=[1, 2, 3])
    GenerationConfig(**{name: value}, suppress_tokens=[1])
    GenerationConfig(forced_eos_token_id=[2, 4], suppress_tokens=[2])


def test_a_penalty_that_overflows_is_refused(stories: Path) -> None:
    model = lc.load_model(stories, progress=False)
    for draw in ({}, {"temperature": 1.0}):
        with pytest.raises(CheckpointError, match="or a penalty overflow"):
            model.generate("Once upon a time", repetition_penalty=1e-45, max_new_tokens=4, **draw)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"repetition_penalty": 1.2}])
def test_logits_that_are_no_numbers_are_refused(tiny_model_dir: Path, bad: float, options: dict[str, Any]) -> None:
    model = lc.load_model(tiny_model_dir)
    model.weights["lm_head"][7] = bad
    model.decoder.set_weight("lm_head", model.weights["lm_head"])  # of which a device has a copy
    for prompt in ("w3", ["w3", "w4"]):
        with pytest.raises(CheckpointError, match="expected finite numbers, got NaN or infinity .* lora_alpha"):
            model.generate(prompt, **options)
    with pytest.raises(LoraCError, match="NaN"):
        next(model.stream("w3", **options))


# -- generation_config.json -------------------------------------------------------------------------------------------


@pytest.fixture
def with_file(stories: Path, tmp_path: Path) -> Callable[[dict[str, Any]], lc.Model]:
    """Load the stories model with another generation_config.json."""

    def load(options: dict[str, Any]) -> lc.Model:
        folder = tmp_path / "model"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(stories, folder)
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2} | options))
        return lc.load_model(folder, progress=False)

    return load


def test_what_is_left_aside_of_the_file_is_said_once(with_file: Any) -> None:
    model = with_file({"repetition_penalty": 1.3, "suppress_tokens": [426]})
    with pytest.warns(
        LoraCWarning, match=r"left aside is repetition_penalty=1.3, suppress_tokens=\[426\] \(config=model"
    ) as seen:
        text = model.generate("Once upon a time", max_new_tokens=30)
        assert model.generate("Once upon a time", max_new_tokens=30) == text and "." in text
    assert len(seen) == 1
    taken = model.generate("Once upon a time", model.generation_config, max_new_tokens=30)
    assert "." not in taken and taken != text


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.7, "top_p": 0.9}, {"do_sample": False, "top_k": 5}, {"repetition_penalty": 1.0},
     {"max_new_tokens": 9}, {"epsilon_cutoff": 3e-4, "eta_cutoff": 1e-3},
     {"transformers_version": "5.0", "num_beams": 1, "suppress_tokens": None, "top_k": None}],
)  # fmt: skip
def test_a_file_that_changes_nothing_is_not_mentioned(with_file: Any, options: dict[str, Any]) -> None:
    model = with_file(options)
    assert not model.generation_config.sampling
    model.generate("Once", max_new_tokens=2)


@pytest.mark.parametrize(
    "options",
    [{"num_beams": 4}, {"encoder_repetition_penalty": 1.2}, {"encoder_no_repeat_ngram_size": 3}, {"token_healing": True}],
)
def test_what_other_programs_do_with_the_file_and_this_one_cannot_is_said(with_file: Any, options: dict[str, Any]) -> None:
    ((name, value),) = options.items()
    with pytest.warns(LoraCWarning, match=f"not supported is {name}={value}"):
        with_file(options).generate("Once", max_new_tokens=2)


def test_what_the_caller_decides_is_not_left_aside(with_file: Any) -> None:
    sampling = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
    with pytest.warns(LoraCWarning, match=r"left aside is do_sample=True, temperature=0.6, top_p=0.9 \("):
        with_file(sampling).generate("Once", max_new_tokens=2)
    with pytest.warns(LoraCWarning, match=r"left aside is top_p=0.9 \("):
        with_file(sampling).generate("Once", max_new_tokens=2, temperature=0.8)
    for decided in ({"temperature": 0.0}, {"do_sample": False}, {"temperature": 0.8, "top_p": 1.0}):
        with_file(sampling).generate("Once", max_new_tokens=2, **decided)
    model = with_file(sampling)
    model.generate("Once", model.generation_config, max_new_tokens=2)


def test_settings_of_the_file() -> None:
    from lora_c.generation.generation_file import generation_config_of, left_aside

    config = generation_config_of({"do_sample": True, "temperature": 0.6, "stop_strings": "x", "top_p": None}, "f")
    assert (config.sampling, config.temperature, config.top_k, config.stop_strings) == (True, 0.6, 50, ["x"])
    assert generation_config_of({"do_sample": True, "temperature": 0}, "f").sampling is False
    assert "not supported is num_beams=4" in str(left_aside({"num_beams": 4}, GenerationConfig(), "f"))
    with pytest.raises(CheckpointError, match="^f: top_k: expected greater than or equal to 0, got -1"):
        generation_config_of({"do_sample": True, "top_k": -1}, "f")


def test_settings_that_cannot_be_are_said_or_refused(with_file: Any) -> None:
    model = with_file({"repetition_penalty": "much"})
    with pytest.warns(LoraCWarning, match="generation_config.json: repetition_penalty: expected a valid number"):
        model.generate("Once", max_new_tokens=2)
    with pytest.raises(CheckpointError, match="repetition_penalty"):
        model.generate("Once", model.generation_config)


def test_settings_survive_a_save(with_file: Any, tmp_path: Path) -> None:
    options = {"repetition_penalty": 1.3, "eos_token_id": 2, "transformers_version": "5.0"}
    with_file(options).save(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "generation_config.json").read_text()) == options


def test_no_file_no_word(stories: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lc.load_model(stories, progress=False).generate("Once", max_new_tokens=2)


def test_a_million_forbidden_tokens_cost_nothing_per_token() -> None:
    words = [[i % 100, i // 100 % 100, 7] for i in range(10_000)]
    words += [[50, 2**40], [51, 3], [51, 4], *([i] for i in range(40, 60))]
    config = GenerationConfig(suppress_tokens=[*range(200_000, 1_200_000), 5, 2**40], begin_suppress_tokens=[6, 6, 2**70])
    process = LogitsProcessor(config, 3, 10, [41], words)
    start = time.perf_counter()
    for _ in range(200):
        scores = process(np.zeros(64, np.float32), [9, 51, 51])
    assert time.perf_counter() - start < 5
    forbidden = {5, 6, 3, 4, 7, *range(40, 60)} - {41}
    assert set(np.flatnonzero(scores == -np.inf).tolist()) == forbidden


def test_many_stop_texts_are_held_back_as_few(stories: Path) -> None:
    model = lc.load_model(stories, progress=False)
    plain = model.generate("Once upon a time", max_new_tokens=60)
    stop = plain[40:47]
    many = [f"zq{i}" for i in range(100_000)] + [plain[40:60] + "#", stop]
    start = time.perf_counter()
    assert model.generate("Once upon a time", max_new_tokens=60, stop_strings=many) == plain[: plain.index(stop)]
    assert time.perf_counter() - start < 30
