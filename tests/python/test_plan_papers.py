"""The figures of the papers: our count from a shape's sizes, the paper's figure, their difference and its reason."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lora_c.configs import LoraConfig, TrainConfig
from lora_c.families.architectures import architecture_of
from lora_c.families.shapes import SHAPES
from lora_c.planning import subject_of_shape
from lora_c.planning.papers import Figure, figures_for, gpt3_figures, nf4_figures, query_value_count, saving

GPT3 = 174_604_259_328  # 96 layers of 12 x 12288^2 + 13 x 12288, a last norm, 50,257 tokens and 2,048 positions
LLAMA = 65_285_660_672


def figures(name: str, **options: object) -> dict[str, Figure]:
    subject = subject_of_shape(name, TrainConfig(**options), LoraConfig(r=4))
    return {figure.what: figure for figure in figures_for(subject)}


@pytest.fixture(scope="module")
def gpt3() -> dict[str, Figure]:
    return figures("gpt3-175b", method="lora")


@pytest.fixture(scope="module")
def llama() -> dict[str, Figure]:
    return figures("llama-65b")


def test_gpt3_is_counted_from_its_sizes() -> None:
    layer = 12 * 12288**2 + 13 * 12288  # matrices; biases of 3 + 1 + 4 + 1 widths, two norms with weight and bias
    assert 96 * layer + 2 * 12288 + (50257 + 2048) * 12288 == GPT3


def test_adam_on_gpt3_follows_from_no_count(gpt3: dict[str, Figure]) -> None:
    found = gpt3["full fine-tuning with Adam"]
    assert (found.figure, found.unit) == (1200, "GB") and found.count == pytest.approx(16 * GPT3 / 1e9)
    assert not found.follows and "6.87 bytes" in found.reason and "1,397 GB" in found.reason and "no count" in found.reason
    assert found.difference == pytest.approx(1200 / 2793.668 - 1, abs=1e-4)


def test_the_terabyte_that_is_quoted(gpt3: dict[str, Figure]) -> None:
    found = next(f for f in gpt3.values() if f.figure == 1000)
    assert found.count == pytest.approx(6 * GPT3 / 1e9) and not found.follows and "no gradients" in found.reason


def test_lora_on_gpt3_is_the_base_in_float16(gpt3: dict[str, Figure]) -> None:
    found = gpt3["training with LoRA"]
    assert found.figure == 350 and found.count == pytest.approx((2 * GPT3 + 16 * 18_874_368) / 1e9)
    assert abs(found.difference) < 0.002 and "activations are not counted" in found.reason


def test_a_checkpoint_of_gpt3(gpt3: dict[str, Figure]) -> None:
    found = gpt3["a checkpoint of the whole model"]
    assert found.figure == 350 and found.count == pytest.approx(349.208, abs=1e-3) and abs(found.difference) < 0.003


def test_a_checkpoint_of_lora(gpt3: dict[str, Figure]) -> None:
    found = gpt3["a checkpoint of LoRA, r=4 on q and v"]
    assert found.formula.startswith("96 x 2 x 2 x 4 x 12,288 = 18,874,368;")
    assert 96 * 2 * 2 * 4 * 12288 == 18_874_368 and found.count == pytest.approx(37.748736)
    assert (found.figure, found.unit) == (35, "MB") and found.difference == pytest.approx(-0.0728, abs=1e-4)
    assert "9,251 times" in found.reason and "36.0 MiB" in found.reason


def test_the_25_megabytes_that_are_quoted(gpt3: dict[str, Figure]) -> None:
    found = next(f for f in gpt3.values() if f.figure == 25)
    assert not found.follows and "2.65 as the rank in float16" in found.reason and found.count == pytest.approx(37.748736)


def test_16_bit_training_of_65b_has_12_bytes_for_each_parameter(llama: dict[str, Figure]) -> None:
    found = llama["16-bit fine-tuning"]
    assert found.figure == 780 and found.count == pytest.approx(12 * LLAMA / 1e9) and abs(found.difference) < 0.005
    assert "65e9 x 12" in found.reason


def test_qlora_of_65b_is_counted_as_this_program_keeps_it(llama: dict[str, Figure]) -> None:
    found = llama["QLoRA"]
    base = 64_761_102_336 * (4 + 8 / 64 + 32 / (64 * 256)) / 8 + 2 * 2 * 32000 * 8192  # matrices in NF4; embedding, head
    adapter = 80 * 64 * (4 * (8192 + 8192) + 3 * (8192 + 22016))
    least = (base + 2 * 4 * adapter) / 1e9  # with gradients, without moments and activations
    assert found.figure == 48 and least < found.count < 1.1 * least


def test_double_quantization(llama: dict[str, Figure]) -> None:
    assert llama["a weight in NF4 with Double Quantization"].count == pytest.approx(4.126953125)
    assert llama["what Double Quantization saves of it"].count == pytest.approx(0.373046875)
    assert round(saving(64), 3) == 0.373 and round(4.5 - saving(64), 3) == 4.127
    assert llama["what Double Quantization saves"].count == pytest.approx(3.0443, abs=1e-3)
    assert all(figure.follows for figure in llama.values())


def test_other_sizes_have_other_counts() -> None:
    shape = SHAPES["gpt3-175b"].config
    narrow, wide = (architecture_of(shape | {"n_layer": n}) for n in (48, 96))
    assert query_value_count(narrow, 4) * 2 == query_value_count(wide, 4)
    assert query_value_count(wide, 8) == 2 * query_value_count(wide, 4)
    few, many = gpt3_figures(10**9, narrow), gpt3_figures(2 * 10**9, wide)
    assert all(m.count > f.count for f, m in zip(few, many, strict=True))
    assert [f.figure for f in few] == [f.figure for f in many]
    grouped = architecture_of(SHAPES["llama-3.1-8b"].config)  # its value projection has a quarter of the rows
    assert query_value_count(grouped, 4) == 32 * 4 * (2 * 4096 + 4096 + 1024)
    assert nf4_figures(32)[0].count > nf4_figures(64)[0].count and "blocks have 64" in nf4_figures(32)[0].reason


def test_no_figure_is_a_result(gpt3: dict[str, Figure]) -> None:
    for found in gpt3.values():
        assert replace(found, figure=1.0).count == found.count
    assert figures("llama-3.1-8b", method="lora") == {} and len(figures("llama-3.1-8b")) == 2
    assert figures("llama-3.1-8b", double_quant=False) == {}
