"""`lora-c compare`: what each row changes, means and intervals, the table, the advice; no row is trained here."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from lora_c import AdapterError, LoraConfig, load_model
from lora_c.checkpoints.model_names import BASE_MODEL
from lora_c.comparison import compare as comparison
from lora_c.comparison.advice import advice_of
from lora_c.comparison.budget import steps_for_tokens
from lora_c.comparison.costs import steps_per_second
from lora_c.comparison.intervals import mean_of
from lora_c.comparison.processes import JOB, RESULT, JobFailedError
from lora_c.comparison.record import CompareRecord, RowRecord
from lora_c.comparison.rows import QUICK, ROWS, Row, chosen_rows
from lora_c.comparison.settings import adapter_of, run_values
from lora_c.comparison.table import loading_line, table_lines
from lora_c.configs import BottleneckConfig, PrefixTuningConfig, PromptTuningConfig, StackConfig, TrainConfig
from lora_c.data import Dataset, Sample
from lora_c.errors import CheckpointError, ConfigError
from lora_c.families.architectures import Architecture, architecture_of
from lora_c.files.atomic import write_json


@pytest.fixture(scope="module")
def architecture() -> Architecture:
    return load_model(BASE_MODEL, progress=False).architecture  # 5 layers, hidden 128, MLP 384, k and v 64 wide


# --- rows and their settings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ROWS)
def test_every_row_is_a_run_that_the_trainer_knows(name: str, architecture: Architecture) -> None:
    config = TrainConfig(**run_values(ROWS[name], {"block_size": 32, "loraplus_lr_ratio": 2.0}, 3, "out"))
    adapter = adapter_of(ROWS[name], {"lora_dropout": 0.1}, 3, architecture)
    assert config.seed == 3 and config.output_dir == "out"
    assert (adapter is None) == (config.method in ("head", "full"))
    assert ("block_size" in config.model_fields_set) == (config.method == "qlora" and config.quant_type != "q8_0")
    assert ("loraplus_lr_ratio" in config.model_fields_set) == (adapter is not None)
    if isinstance(adapter, LoraConfig):
        assert adapter.seed == 3 and adapter.lora_dropout == 0.1


def test_quick_has_at_most_twelve_rows() -> None:
    assert len(QUICK) <= 12 and set(QUICK) <= set(ROWS)


def test_what_a_row_changes_is_what_its_name_says(architecture: Architecture) -> None:
    def of(name: str, **shared: Any) -> Any:
        return adapter_of(ROWS[name], shared, 0, architecture)

    assert [of(f"lora-r{r}").r for r in (1, 2, 4, 8, 16, 64)] == [1, 2, 4, 8, 16, 64]
    assert of("dora").use_dora and of("rslora").use_rslora and of("pissa").init_lora_weights == "pissa"
    assert isinstance(of("bottleneck"), BottleneckConfig) and of("bottleneck").mh_adapter and of("bottleneck").output_adapter
    assert isinstance(of("prefix"), PrefixTuningConfig) and isinstance(of("prompt"), PromptTuningConfig)
    stack = of("lora+prefix", num_virtual_tokens=5, r=4)
    assert isinstance(stack, StackConfig) and stack.adapters["prefix_tuning"].num_virtual_tokens == 5
    assert stack.adapters["lora"].r == 4
    assert set(of("lora+prompt").adapters) == {"lora", "prompt_tuning"}
    kinds = {name: run_values(ROWS[name], {}, 0, "x") for name in ROWS if name.startswith("qlora")}
    assert [(v["quant_type"], v.get("double_quant")) for v in kinds.values()] == [
        ("nf4", True), ("nf4", False), ("fp4", True), ("int4", True), ("q8_0", None),
    ]  # fmt: skip


def test_alpha_keeps_its_quotient_with_the_rank(architecture: Architecture) -> None:
    found = adapter_of(ROWS["lora-r64"], {"r": 4, "lora_alpha": 8}, 0, architecture)
    assert isinstance(found, LoraConfig) and (found.r, found.lora_alpha) == (64, 128)


def test_rates_of_other_methods_are_a_part_of_the_shared_one() -> None:
    rates = {
        name: run_values(ROWS[name], {"learning_rate": 1e-2}, 0, "x")["learning_rate"] for name in ("full", "qlora", "prefix")
    }
    assert rates == pytest.approx({"full": 1e-3, "qlora": 1e-2, "prefix": 1e-1})
    assert run_values(ROWS["full"], {}, 0, "x")["learning_rate"] == pytest.approx(2e-5)


def test_matrices_are_compared_at_one_budget(architecture: Architecture) -> None:
    # (in + out) of one layer: q 256, k 192, v 192, o 256, gate, up, down 512 each; q and v with rank 8 have 8 * 448 = 3584.
    by_rank = {"q": 256, "k": 192, "v": 192, "o": 256, "qv": 448, "qkvo": 896, "mlp": 1536, "all": 2432}
    for name, one in by_rank.items():
        found = adapter_of(ROWS[f"lora-{name}"], {}, 0, architecture)
        assert isinstance(found, LoraConfig) and found.r == max(1, round(3584 / one)), name
    found = adapter_of(ROWS["lora-mlp"], {"r": 1}, 0, architecture)
    assert isinstance(found, LoraConfig) and found.r == 1  # never 0


def test_rows_of_a_family_with_matrices_in_one() -> None:
    shape = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 96, "n_positions": 64}
    gpt2 = architecture_of({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], **shape})
    # (in + out) of a layer: c_attn 64 + 192, c_proj 128, the MLP's 320 twice; attention with rank 8 has 8 * 384 = 3072.
    found = {name: adapter_of(ROWS[f"lora-{name}"], {}, 0, gpt2) for name in ("qkvo", "mlp", "all")}
    assert [config.r for config in found.values()] == [8, round(3072 / 640), round(3072 / 1024)]  # type: ignore[union-attr]
    with pytest.raises(AdapterError, match="target_modules: expected names among .*, got 'q_proj'"):
        adapter_of(ROWS["lora-q"], {}, 0, gpt2)


def test_matrices_that_a_model_has_not_are_refused_by_name(architecture: Architecture) -> None:
    with pytest.raises(AdapterError, match="target_modules: expected names among .*, got 'c_attn'"):
        adapter_of(Row("x", {"method": "lora", "target_modules": ["c_attn"]}, is_budgeted=True), {}, 0, architecture)


@pytest.mark.parametrize(("names", "said"), [
    (["lora-r5"], "rows: expected names among head, .*, got 'lora-r5', did you mean 'lora-r"), (["head", "head"], "each once"),
    ([], "got none"),
])  # fmt: skip
def test_wrong_rows_are_refused(names: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        chosen_rows(names)


def test_rows_keep_the_order_that_they_are_named_in() -> None:
    assert list(chosen_rows(["qlora", "head"])) == ["qlora", "head"] and list(chosen_rows(None)) == list(ROWS)


# --- numbers -------------------------------------------------------------------------------------------------------------


def test_an_interval_is_students() -> None:
    found = mean_of([1.0, 2.0, 4.0])  # mean 7/3, standard deviation sqrt(7/3), t(2) = 4.303
    assert found.value == pytest.approx(7 / 3) and found.half == pytest.approx(4.303 * (7 / 3) ** 0.5 / 3**0.5)
    two = mean_of([1.0, 3.0])  # standard deviation sqrt(2), over sqrt(2) 1, t(1) = 12.706
    assert (two.low, two.high) == pytest.approx((2 - 12.706, 2 + 12.706))
    assert mean_of([5.0]).half is None and mean_of([5.0]).low == 5.0
    many = mean_of([0.0, 1.0] * 50)
    assert many.half == pytest.approx(2.042 * 0.5 * (100 / 99) ** 0.5 / 10)
    with pytest.raises(ValueError, match="one or more"):
        mean_of([])


def test_tokens_of_a_budget_are_steps_of_mean_length() -> None:
    import numpy as np

    data = Dataset([Sample(np.arange(n, dtype=np.int32), np.ones(n, np.float32)) for n in (10, 20, 30)])
    config = TrainConfig(per_device_train_batch_size=2)
    assert [steps_for_tokens(n, data, config) for n in (1, 40, 41, 400)] == [1, 1, 2, 10]
    assert steps_for_tokens(120, data, TrainConfig(per_device_train_batch_size=9)) == 2  # a step has all three


def test_speed_is_that_of_the_usual_step() -> None:
    slow = {5: 100.0}  # an evaluation or a checkpoint lies between
    records, elapsed = [], 0.0
    for step in range(1, 22):
        elapsed += slow.get(step, 0.5)
        records.append({"step": step, "tokens": 100 * step, "elapsed_seconds": elapsed})
        records.append({"step": step, "eval_loss": 1.0})
    assert steps_per_second(records) == pytest.approx((2.0, 200.0))
    assert steps_per_second(records[:1]) is None
    resumed = [{"step": 1, "tokens": 5, "elapsed_seconds": 9.0}, {"step": 2, "tokens": 9, "elapsed_seconds": 0.1}]
    assert steps_per_second(resumed) is None  # the clock began anew


# --- the table and the advice --------------------------------------------------------------------------------------------


def record_of(losses: dict[str, list[float]], memory: dict[str, float] | None = None, base: float = 9.0) -> CompareRecord:
    record = CompareRecord({}, {"results": {"eval_loss": base}, "costs": {}})
    for name, values in losses.items():
        costs = {"peak_rss_bytes": (memory or {}).get(name, 100.0) * 2**20}
        runs = {
            seed: {"results": {"eval_loss": loss, "trained_parameters": 1234567, "gap": 0.5}, "costs": costs}
            for seed, loss in enumerate(values)
        }
        record.rows[name] = RowRecord(f"title of {name}", {}, runs)
    return record


def test_the_table_has_means_intervals_and_what_was_refused() -> None:
    record = record_of({"a": [1.0, 3.0], "long-name": [2.5]}, {"a": 12.0})
    record.rows["x"] = RowRecord("", {}, {0: {"refused": "target_modules: expected another"}})
    lines = table_lines(record, None)
    assert lines[0].split() == ["trained", "held-out", "gap", "memory"]
    assert lines[2].split() == ["(base)", "9.0000"]
    assert lines[3].split() == ["a", "1,234,567", "2.0000", "±12.7060", "+0.500", "±0.000", "12"]
    assert lines[4].split() == ["long-name", "1,234,567", "2.5000", "+0.500", "100"] and lines[5] == "x"
    assert lines[6] == "x: target_modules: expected another"


def test_seconds_to_load_are_a_line() -> None:
    record = record_of({"a": [1.0]})
    assert loading_line(record) == ""
    record.loading = {"float32": {"bytes": 1, "seconds": 0.5, "quantize_seconds": 0.25}, "failed": "memory"}
    assert loading_line(record) == "float32 0.500 s (0.250 s into NF4), memory"
    record.loading = {"failed": "ended with code 1"}
    assert loading_line(record) == "ended with code 1"


@pytest.mark.parametrize(("width", "heads"), [
    (120, ["trained", "held-out", "gap", "memory"]), (46, ["trained", "held-out", "memory"]), (36, ["trained", "held-out"]),
    (10, ["held-out"]),
])  # fmt: skip
def test_a_narrow_terminal_has_the_columns_that_matter(width: int, heads: list[str]) -> None:
    assert table_lines(record_of({"a": [1.0]}), width)[0].split() == heads


def test_advice_is_the_cheapest_of_those_that_are_as_good() -> None:
    near = record_of({"big": [1.0], "small": [1.009], "worse": [1.02]}, {"big": 200, "small": 50, "worse": 10})
    assert advice_of(near).startswith(
        "Take small (title of small): held-out loss 1.0090, as good as the best (big, 1.0000) for"
    )
    assert "with 50 MiB of memory in place of 200 and 1,234,567 trained parameters." in advice_of(near)
    alone = record_of({"big": [1.0], "small": [1.2]}, {"big": 200, "small": 50})
    assert advice_of(alone).startswith("Take big (title of big): held-out loss 1.0000, the best of all rows, with 200 MiB")
    only = advice_of(record_of({"big": [1.0]}, {"big": 200}))
    said = "big (title of big) has a held-out loss of 1.0000, and no other row has one to compare it with; --rows names more."
    assert only == said
    failed = record_of({"big": [1.0]})
    failed.rows["small"] = RowRecord("title of small", {}, {}, "ended with code 1")
    assert advice_of(failed).endswith("to compare it with; see why each was refused, failed or diverged.")


def test_advice_compares_seed_by_seed() -> None:
    # Apart by 0.03 at every seed: clear, though the means have wide intervals. Apart by 0.03 in the mean only: not clear.
    clear = record_of({"big": [1.0, 1.1, 1.2], "small": [1.03, 1.13, 1.23]}, {"big": 200, "small": 50})
    assert advice_of(clear).startswith("Take big")
    unclear = record_of({"big": [1.0, 1.1, 1.2], "small": [1.2, 1.03, 1.16]}, {"big": 200, "small": 50})
    assert advice_of(unclear).startswith("Take small") and "for what 3 seeds can tell" in advice_of(unclear)
    far = record_of({"big": [1.0, 1.1, 1.2], "small": [1.0, 1.9, 1.0]}, {"big": 200, "small": 50})
    assert advice_of(far).startswith("Take big")  # beyond 5 % nothing is as good


def test_advice_where_nothing_was_learned() -> None:
    assert advice_of(record_of({"a": [9.5]})).startswith(
        "Train otherwise: no row came below the base's held-out loss of 9.0000"
    )
    assert advice_of(CompareRecord({})).startswith("No row has a held-out loss")


def test_a_record_is_what_it_was_when_it_is_read(tmp_path: Any) -> None:
    record = record_of({"a": [1.0, 2.0]})
    record.advice = "Take a."
    record.write(tmp_path)
    assert CompareRecord.read(tmp_path) == record and CompareRecord.read(tmp_path / "nothing") is None


@pytest.mark.parametrize("damage", ["{", "[]", "{}", '{"format": 1, "rows": 3}', '{"format": 9}'])
def test_a_damaged_record_is_one_clear_error(tmp_path: Any, damage: str) -> None:
    (tmp_path / "compare.json").write_text(damage)
    with pytest.raises(CheckpointError, match=r"compare.json: expected .*; remove it to begin anew"):
        CompareRecord.read(tmp_path)


def test_a_row_that_did_not_end_may_become_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it left is removed where its settings changed, and kept where only its title did; the record says what ran."""
    ends = False

    def run(module: str, folder: Path, job: dict[str, Any], result: str = RESULT) -> dict[str, Any]:
        if job["kind"] == "base":
            return {"task_type": None}
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / JOB, job)
        (folder / f"checkpoint-of-{job['row']['settings']['r']}").touch()
        if not ends:
            raise JobFailedError("ended by signal 9")
        return {"row": job["row"], "seed": job["seed"], "results": {"eval_loss": 1.0}}

    monkeypatch.setattr(comparison, "run_job", run)

    def compared(title: str, r: int) -> tuple[RowRecord, list[str]]:
        rows = {"wide": Row(title, {"method": "lora", "r": r})}
        record = comparison.compare("module", {}, rows, [0], tmp_path, with_loading=False)
        assert CompareRecord.read(tmp_path) == record or record.rows["wide"].failed
        left = tmp_path / comparison.RUNS / "wide" / "seed-0"
        return record.rows["wide"], sorted(file.name for file in left.glob("checkpoint-of-*"))

    assert compared("four", 4)[1] == ["checkpoint-of-4"]
    (tmp_path / comparison.RUNS / "wide/seed-0/checkpoint-of-3").touch()
    found, left = compared("another title", 4)
    assert found.title == "another title" and left == ["checkpoint-of-3", "checkpoint-of-4"]
    assert compared("six", 6)[1] == ["checkpoint-of-6"]
    ends = True
    found, left = compared("eight", 8)
    assert left == ["checkpoint-of-8"] and found.settings == asdict(Row("eight", {"method": "lora", "r": 8}))
    assert (found.title, found.runs) == ("eight", {0: {"results": {"eval_loss": 1.0}}})
