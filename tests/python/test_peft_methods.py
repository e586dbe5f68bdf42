"""Methods that users of PEFT know by these names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from device_values import write_values

import lora_c as lc
from lora_c.errors import AdapterError, ConfigError

IDS = [5, 9, 3, 17]


@pytest.fixture
def adapted(tiny_model_dir: Path) -> lc.Model:
    model = lc.load_model(tiny_model_dir, progress=False)
    model.add_adapter(r=4, init_lora_weights=False, target_modules=["q_proj", "v_proj"])
    return model


def test_an_adapter_is_out_of_use_inside_a_with_statement(adapted: lc.Model, tiny_model_dir: Path) -> None:
    before, base = adapted.logits(IDS), lc.load_model(tiny_model_dir, progress=False).logits(IDS)
    with adapted.disable_adapter():
        assert adapted.active_adapter is None and np.array_equal(adapted.logits(IDS), base)
    assert adapted.active_adapter == "default" and np.array_equal(adapted.logits(IDS), before)


def test_it_is_in_use_again_after_an_error_and_not_when_it_was_deleted(adapted: lc.Model) -> None:
    with pytest.raises(KeyError), adapted.disable_adapter():
        raise KeyError
    assert adapted.active_adapter == "default"
    with adapted.disable_adapter():
        adapted.delete_adapter("default")
    assert adapted.active_adapter is None
    with (
        pytest.raises(AdapterError, match="disable_adapter: expected a model with an adapter in use"),
        adapted.disable_adapter(),
    ):
        pass


def test_a_merged_adapter_cannot_be_taken_out_of_use(adapted: lc.Model) -> None:
    adapted.merge_adapter()
    with pytest.raises(AdapterError, match=r"disable_adapter: .* unmerge_adapter"), adapted.disable_adapter():
        pass


def test_counts_are_those_of_peft(adapted: lc.Model, capsys) -> None:
    trained = 2 * (4 * 32 + 4 * 32 + 4 * 32 + 4 * 16)  # A and B of q_proj and v_proj in two layers
    total = adapted.num_parameters()
    assert adapted.get_nb_trainable_parameters() == (trained, total)
    adapted.print_trainable_parameters()
    share = f"{100 * trained / total:.4f}"
    assert capsys.readouterr().out == f"trainable params: {trained:,} || all params: {total:,} || trainable%: {share}\n"


def test_merge_and_unload_gives_a_model_without_an_adapter(adapted: lc.Model) -> None:
    merged = adapted.merge_and_unload(safe_merge=True)
    assert merged.adapter is None and adapted.active_adapter == "default"
    np.testing.assert_allclose(merged.logits(IDS), adapted.logits(IDS), atol=1e-4)


def test_merge_and_unload_of_a_named_adapter(adapted: lc.Model) -> None:
    adapted.add_adapter(r=2, name="second", init_lora_weights=False)
    merged = adapted.merge_and_unload(adapter_names=["default"])
    assert adapted.active_adapter == "second"
    adapted.set_adapter("default")
    np.testing.assert_allclose(merged.logits(IDS), adapted.logits(IDS), atol=1e-4)
    with pytest.raises(ConfigError, match="adapter_names: expected a list of one name"):
        adapted.merge_and_unload(adapter_names=["default", "second"])


@pytest.mark.parametrize("safe_merge", [True, False])
def test_a_merge_that_is_not_finite_is_refused(adapted: lc.Model, safe_merge: bool) -> None:
    write_values(adapted.trainable_parameters()[0], np.nan, where=(0, 0))
    with pytest.raises(AdapterError, match="q_proj: expected finite numbers, got nan"):
        adapted.merge_and_unload(safe_merge=safe_merge)
