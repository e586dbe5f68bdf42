"""Settings have the types that they say, in Python, on the command line and in files; a file's mistakes name the line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result

import lora_c as lc
from lora_c.cli import cli
from lora_c.cli.options import Command, config_options
from lora_c.cli.paths import InputPaths, flatten, with_repeated_flags
from lora_c.configs import GenerationConfig, LoraConfig, TrainConfig
from lora_c.errors import ConfigError


def test_everything_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        LoraConfig(**{"r": 0, "rnk": 8, "lora_alpha": "x", "alhpa": 4})
    message = str(caught.value)
    assert all(f"{name}: " in message for name in ("r", "lora_alpha")), message
    assert "rnk: unknown option" in message and "alhpa: unknown option" in message


@pytest.mark.parametrize(("cls", "values"), [
    (LoraConfig, {"r": 8.9}), (LoraConfig, {"r": 8.0}), (LoraConfig, {"r": True}), (LoraConfig, {"r": "8"}),
    (LoraConfig, {"lora_alpha": True}), (LoraConfig, {"lora_alpha": "16"}), (LoraConfig, {"use_dora": 1}),
    (LoraConfig, {"use_dora": "yes"}), (LoraConfig, {"target_modules": [1]}), (LoraConfig, {"target_modules": 1}),
    (LoraConfig, {"bias": False}), (LoraConfig, {"rank_pattern": {"q_proj": 4.5}}), (LoraConfig, {"r": np.float32(8)}),
    (LoraConfig, {"layers_to_transform": [True]}), (LoraConfig, {"r": np.bool_(True)}), (LoraConfig, {"r": None}),
    (LoraConfig, {"trainable_token_indices": [1.0]}), (TrainConfig, {"seed": 1.7}), (TrainConfig, {"learning_rate": True}),
    (TrainConfig, {"learning_rate": "1e-4"}), (TrainConfig, {"max_steps": 10.0}), (TrainConfig, {"output_dir": ""}),
    (TrainConfig, {"output_dir": 5}), (TrainConfig, {"double_quant": 0}), (TrainConfig, {"recompute": None}),
    (GenerationConfig, {"max_new_tokens": 2.5}), (GenerationConfig, {"stop_strings": ["end", 3]}),
], ids=str)  # fmt: skip
def test_a_value_of_another_type_is_refused(cls: Any, values: dict[str, Any]) -> None:
    (name,) = values
    with pytest.raises(ConfigError, match=rf"{cls.__name__}: {name}.*: .*(got|have)"):
        cls(**values)
    with pytest.raises(ConfigError, match=name):
        setattr(cls(), name, values[name])


def test_numpy_scalars_paths_and_tuples_are_what_they_stand_for(tmp_path: Path) -> None:
    names = ("q_proj", "v_proj")
    config = LoraConfig(r=np.int64(4), lora_alpha=np.float32(0.5), use_dora=np.bool_(True), target_modules=names)
    assert (config.r, config.lora_alpha, config.use_dora, config.target_modules) == (4, 0.5, True, ["q_proj", "v_proj"])
    train = TrainConfig(output_dir=tmp_path, learning_rate=1, max_steps=np.int32(3))
    assert train.output_dir == str(tmp_path) and train.learning_rate == 1.0 and type(train.learning_rate) is float
    train.seed = np.uint8(7)
    assert train.seed == 7 and type(train.seed) is int


@click.command("probe", cls=Command)
@config_options(TrainConfig, "Training")
@config_options(LoraConfig, "Adapter", skip=("seed",))
@click.option("--data", type=InputPaths(), multiple=True, callback=flatten)
@click.option("--limit", type=int)
@click.option("--json", "as_json", is_flag=True)
def probe(**own: Any) -> dict[str, Any]:
    given = {name: value for name, value in own.items() if value is not None}
    train = {k: v for k, v in given.items() if k in TrainConfig.model_fields}
    lora = {k: v for k, v in given.items() if k in LoraConfig.model_fields and k != "seed"}
    return given | {"train": TrainConfig(**train), "lora": LoraConfig(**lora)}


def probed(*args: object) -> dict[str, Any]:
    result = probe.main([str(arg) for arg in args], standalone_mode=False)
    assert isinstance(result, dict)
    return result


def in_file(folder: Path, text: str | bytes) -> Path:
    path = folder / "run.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize(("line", "field", "value"), [
    ("learning_rate: 1e-4", "learning_rate", 1e-4), ("learning-rate: 5.e-5", "learning_rate", 5e-5),
    ("learning_rate: '0.5'", "learning_rate", 0.5), ("max_steps: 1_000", "max_steps", 1000), ("r: 4", "r", 4),
    ("recompute: none", "recompute", "none"), ("bias: none", "bias", "none"), ("use_dora: yes", "use_dora", True),
    ("double_quant: off", "double_quant", False), ("use_rslora: TRUE", "use_rslora", True),
    ("target_modules: [q_proj, v_proj]", "target_modules", ["q_proj", "v_proj"]),
    ("target_modules: q_proj,v_proj", "target_modules", ["q_proj", "v_proj"]),
    ("target_modules: all-linear", "target_modules", "all-linear"), ("target_modules: '12'", "target_modules", ["12"]),
    ("target_modules: [no, on, null_proj]", "target_modules", ["no", "on", "null_proj"]),
    ("layers_to_transform: 5", "layers_to_transform", [5]), ("layers_to_transform: [0, 1]", "layers_to_transform", [0, 1]),
    ("rank_pattern: {q_proj: 4, on: 2}", "rank_pattern", {"q_proj": 4, "on": 2}),
    ("alpha_pattern: {q_proj: 1e1}", "alpha_pattern", {"q_proj": 10.0}),
    ("trainable_token_indices: {embed_tokens: [1, 2]}", "trainable_token_indices", {"embed_tokens": [1, 2]}),
    ("init_lora_weights: false", "init_lora_weights", False), ("init_lora_weights: gaussian", "init_lora_weights", "gaussian"),
    ("output_dir: 2024-01-01", "output_dir", "2024-01-01"), ("output_dir: 010", "output_dir", "010"),
    ("output_dir: on", "output_dir", "on"), ("memory_limit: 3", "memory_limit", 3.0), ("limit:", "seed", 0),
    ("memory_limit: 2GiB", "memory_limit", 2.0), ("memory_limit: 1.5 GB", "memory_limit", 1.5e9 / 2**30),
    ("memory_limit:", "memory_limit", None), ("seed: +3", "seed", 3), ("max_grad_norm: .5", "max_grad_norm", 0.5),
], ids=str)  # fmt: skip
def test_a_text_of_a_file_is_read_as_its_flag_reads_it(tmp_path: Path, line: str, field: str, value: Any) -> None:
    seen = probed("--config", in_file(tmp_path, f"# first\n{line}\n"))
    config = seen["train"] if field in TrainConfig.model_fields else seen["lora"]
    assert getattr(config, field) == value and type(getattr(config, field)) is type(value)


def test_the_environment_stands_for_a_precision_that_nothing_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = in_file(tmp_path, "precision: exact\n")
    for name, words, precision in (
        ("int8", (), "int8"), ("int8", ("--precision", "fast"), "fast"), ("int8", ("--config", file), "exact"),
        ("", (), "fast"), ("half", (), "fast"),  # import refuses the second
    ):  # fmt: skip
        monkeypatch.setenv("LORA_C_PRECISION", name)
        assert probed(*words)["train"].precision == precision


@pytest.mark.parametrize(("text", "line", "said"), [
    ("r: 8.9", 1, "expected a whole number, got '8.9'"), ("\nseed: 1.7", 2, "expected a whole number, got '1.7'"),
    ("learning_rate: yes", 1, "expected a number, got 'yes'"), ("r: true", 1, "got 'true'"), ("r: 010", 1, "got '010'"),
    ("r: 0x10", 1, "got '0x10'"), ("max_steps: 1:30", 1, "got '1:30'"), ("limit: 2024-01-01", 1, "got '2024-01-01'"),
    ("learning_rate: 010.5", 1, "got '010.5'"), ("learning_rate: .", 1, "got '.'"), ("limit: 1e3", 1, "got '1e3'"),
    ("use_dora: 1", 1, "expected true or false, got '1'"), ("json: maybe", 1, "expected true or false, got 'maybe'"),
    ("use_dora: [true]", 1, "expected a single value, got a list"), ("r: {a: 1}", 1, "expected a single value, got a mapping"),
    ("save_total_limit: ~", 1, "expected a value, got nothing; leave the key out for the default (2)"),
    ("target_modules: null", 1, "leave the key out for the default (all-linear)"),
    ("a: 1\nb: 2", 1, "unknown key 'a'"), ("target_modules: 1", 1, "put it in quotes if it is a name"),
    ("target_modules: [1, 2]", 1, "target_modules"), ("recompute: no", 1, "'no' is not one of"),
    ("bias: ~\nr: 4\nr: 5", 3, "r: expected each key once, got it in line 2"),
    ("max_steps: 4\nmax-steps: 5", 2, "expected each key once, got it in line 1"),
    ("rank_pattern:\n  q_proj: 4\n  q_proj: 5", 3, "q_proj: expected each key once"),
    ("rank_pattern: {q_proj: 4.5}", 1, "rank_pattern"), ("\n\nlearning_rate: -1", 3, "expected greater than 0"),
    ("max_grad_norm: .inf", 1, "expected a number, got '.inf'"), ("memory_limit: 1e999", 1, "finite"),
    ("memory_limit: 12 apples", 1, "such as 12GB or 900MiB, got '12 apples'"), ("memory_limit: 0GB", 1, "greater than 0"),
    ("? [a]\n: 1", 1, "expected a name before the colon"), ("r: !!python/object:os.system 4", 1, "without a tag"),
    ("r: !mine 4", 1, "without a tag"), ("output_dir: ''", 1, "expected the name of a folder"),
    ("r: 4\n\n\tbias: none", 3, "in line 3"),
    ("data: {a: b}", 1, "expected a single value, got a mapping"), ("data: [[a]]", 1, "expected a single value, got a list"),
], ids=str)  # fmt: skip
def test_a_wrong_value_of_a_file_names_the_line(tmp_path: Path, text: str, line: int, said: str) -> None:
    path = in_file(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        probed("--config", path)
    message = str(error.value)
    assert said in message and (f"{path}:{line}: " in message or f"line {line}" in message), message


@pytest.mark.parametrize("text", [
    b"\xff\xfe\x00r: 4", b"\x00\x01\x02", b"- 1\n- 2", b"just a text", b"r: [1", b"r: 4\n--- \nr: 5", b"[" * 100_000, b"r: *a",
    b"a: &a [x]\n" + b"".join(b"%c: &%c [%s]\n" % (98 + i, 98 + i, b",".join([b"*%c" % (97 + i)] * 9)) for i in range(9)),
    b"r: &a [*a]", b"#" * (1 << 21), b"\tr: 4",
], ids=lambda text: repr(text[:12]))  # fmt: skip
def test_a_file_that_is_no_file_of_settings_is_one_error(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(ConfigError, match="expected"):
        probed("--config", in_file(tmp_path, text))


def test_pipes_folders_and_missing_files_are_one_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, said in (("pipe", "not a regular"), (".", "not a regular"), ("none", "No such file"), ("/dev/zero", "not a")):
        with pytest.raises(ConfigError, match=f"expected a readable YAML file.*{said}"):
            probed("--config", tmp_path / name)


def test_a_flag_wins_over_the_file_and_its_mistakes_name_the_flag(tmp_path: Path) -> None:
    path = in_file(tmp_path, "r: 4\nlearning_rate: 1e-3\njson: true\n")
    seen = probed("--config", path, "--r", 2)
    assert seen["lora"].r == 2 and seen["as_json"] is True
    for flag, value in (("--r", "8.9"), ("--learning-rate", "yes"), ("--rank-pattern", "q=x"), ("--recompute", "no")):
        with pytest.raises(click.UsageError) as usage:
            probed("--config", path, flag, value)
        assert flag in usage.value.format_message()
    with pytest.raises(ConfigError) as error:
        probed("--config", path, "--learning-rate", "-1")
    assert str(path) not in str(error.value)  # it is not the file's mistake


def test_paths_are_texts_and_a_path_that_exists_is_one_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert probed("--data", "2024")["data"] == ["2024"]
    assert probed("--data", "a, b,3")["data"] == ["a", "b", "3"]
    assert probed("--data", "a,b", "--data", "c")["data"] == ["a", "b", "c"]
    Path("a,b").mkdir()
    assert probed("--data", "a,b", "--data", "c")["data"] == ["a,b", "c"]
    assert probed("--config", in_file(tmp_path, "data: a,b"))["data"] == ["a,b"]
    assert probed("--config", in_file(tmp_path, "data: 2024"))["data"] == ["2024"]
    assert probed("--config", in_file(tmp_path, "data: [2024, 1e5, 'x,y', on]"))["data"] == ["2024", "1e5", "x,y", "on"]
    assert probed().get("data") is None


def invoke(*args: object) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args])


def test_a_run_with_odd_names_starts_again_from_its_own_settings(tiny_model_dir: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "2024,on.txt", tmp_path / "no"
    data.write_text("w3 w4 w5 w6 w7 w8 " * 20)
    flags = ["--max-steps", 1, "--method", "lora", "--rank-pattern", "q_proj=2", "--layers-to-transform", 0, "--bias", "none"]
    flags += ["--learning-rate", "1e-5"]
    first = invoke("train", "--model", tiny_model_dir, "--data", data, "--output-dir", out, *flags)
    assert first.exit_code == 0, first.exception
    again = invoke("train", "--config", out / "config.yaml", "--output-dir", tmp_path / "b")
    assert again.exit_code == 0, again.exception
    a, b = ((folder / "adapter_model.safetensors").read_bytes() for folder in (out, tmp_path / "b"))
    assert a == b


def test_resume_on_the_command_line_and_in_a_file(tiny_model_dir: Path, tmp_path: Path) -> None:
    data = tmp_path / "d.txt"
    data.write_text("w3 w4 w5 w6 w7 w8 " * 20)
    text = f"model: {tiny_model_dir}\ndata: {data}\noutput_dir: {tmp_path}/out\nmax_steps: 2\nmethod: lora\nsave_steps: 1\n"
    run = ("train", "--config", in_file(tmp_path, text))
    assert "expected a checkpoint to resume from" in str(invoke(*run, "--resume").exception)
    assert not (tmp_path / "out/config.yaml").exists()
    assert invoke(*run, "--resume", "auto").exit_code == 0
    assert invoke(*run, "--resume").exit_code == 0 and invoke(*run, "--resume", tmp_path / "out/checkpoint-1").exit_code == 0
    before = (tmp_path / "out/config.yaml").read_bytes()
    refused = invoke(*run, "--resume", "--learning-rate", "1e-3")
    assert "learning_rate 0.0002 -> 0.001" in str(refused.exception)
    assert (tmp_path / "out/config.yaml").read_bytes() == before  # of the run that it is not
    for value, works in (("true", True), ("auto", True), ("false", False), (f"{tmp_path}/nowhere", False)):
        in_file(tmp_path, text + f"resume: {value}\n")
        assert (invoke(*run).exit_code == 0) is works, value
    with pytest.warns(lc.notices.LoraCWarning, match="resumed with changes: learning_rate"):
        invoke(*run, "--resume", tmp_path / "out/checkpoint-1", "--learning-rate", "1e-3", "--allow-changes")


@pytest.mark.parametrize(("cls", "name", "value"), [
    (TrainConfig, "seed", 2**63), (LoraConfig, "seed", 2**63), (GenerationConfig, "seed", 2**63), (LoraConfig, "r", 2**63),
    (LoraConfig, "rank_pattern", {"q_proj": 10**20}), (TrainConfig, "max_steps", 2**63),
    (TrainConfig, "num_train_epochs", 1e300), (GenerationConfig, "repetition_penalty", 1e300),
], ids=str)  # fmt: skip
def test_numbers_that_no_machine_holds_are_refused(cls: Any, name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"{cls.__name__}: {name}.*: expected less than"):
        cls(**{name: value})


def test_the_largest_seed_is_one(tiny_model_dir: Path, tmp_path: Path) -> None:
    data = tmp_path / "d.txt"
    data.write_text("w3 w4 w5 w6 w7 w8 " * 20)
    words = ["--model", tiny_model_dir, "--data", data, "--output-dir", tmp_path / "o", "--max-steps", 1, "--method", "lora"]
    assert invoke("train", *words, "--seed", 2**63 - 1).exit_code == 0
    for limit in (0, -1):
        assert "limit: expected at least 1 example" in str(invoke("train", *words, "--limit", limit, "--overwrite").exception)
    assert "--batch-tokens: expected 1" in str(invoke("eval", *words[:4], "--batch-tokens", 0).exception)


@pytest.mark.parametrize("pairs", ["q_proj=0", "q_proj=4,v_proj=0"])
def test_a_zero_in_a_pair_is_a_value(pairs: str) -> None:
    with pytest.raises(ConfigError, match=r"--rank-pattern: \w+: expected greater than 0, got 0"):
        probed("--rank-pattern", pairs)
    with pytest.raises(ConfigError, match=r"--alpha-pattern: \w+: expected greater than 0, got 0"):
        probed("--alpha-pattern", pairs)


@pytest.mark.parametrize("pairs", ["=4", "4", "q_proj=4,q_proj=5", "q_proj=", "q_proj=nan", "q_proj=1e"])
def test_pairs_have_a_name_and_a_number_each_once(pairs: str) -> None:
    with pytest.raises(click.UsageError, match="expected"):
        probed("--rank-pattern", pairs)


@pytest.mark.parametrize(
    ("given", "spread"),
    [
        ("--data a b --seed 1", "--data a --data b --seed 1"),
        ("--data=a b - -v", "--data=a --data b --data - -v"),
        ("--seed 1 2 --data a", "--seed 1 2 --data a"),
        ("--data a b -- c --data d e", "--data a --data b -- c --data d e"),
        ("-- --data a b", "-- --data a b"),
    ],
)
def test_a_flag_is_repeated_for_each_path_up_to_two_dashes(given: str, spread: str) -> None:
    data = click.Option(["--data"], type=InputPaths(), multiple=True)
    assert with_repeated_flags(given.split(), [data]) == spread.split()
    assert with_repeated_flags(given.split(), [data, click.Argument(["words"])]) == given.split()
