"""Names that users of PEFT, transformers and TRL try: accepted where they mean the same, else answered with ours."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

import lora_c as lc
from lora_c.errors import AdapterError, ConfigError
from lora_c.foreign_names import OF_MODEL, OF_PACKAGE


@pytest.fixture
def model(tiny_model_dir: Path) -> lc.Model:
    return lc.load_model(tiny_model_dir, progress=False)


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("save_pretrained", r"model.save\(folder\), of an adapter model.save_adapter\(folder\)"),
        ("to", "on the CPU"), ("cuda", "on the CPU"), ("eval", "nothing"), ("train", "lora_c.Trainer"),
        ("parameters", r"model.trainable_parameters\(\)"), ("from_pretrained", "lora_c.load_model"),
        ("push_to_hub", "hf upload"), ("gradient_checkpointing_enable", r'recompute="layer"'), ("state_dict", "model.weights"),
    ],
)  # fmt: skip
def test_a_model_answers_the_names_of_others_with_its_own(model: lc.Model, name: str, ours: str) -> None:
    assert not hasattr(model, name)
    with pytest.raises(AttributeError, match=f"^Model has no attribute '{name}'; here it is .*{ours}"):
        getattr(model, name)


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("get_peft_model", "model.add_adapter"), ("AutoModelForCausalLM", "lora_c.load_model"),
        ("SFTTrainer", "lora_c.Trainer"),
        ("TrainingArguments", "lora_c.TrainConfig"), ("BitsAndBytesConfig", 'quantize="nf4"'), ("PeftModel", "load_adapter"),
    ],
)  # fmt: skip
def test_the_package_answers_the_names_of_others_with_its_own(name: str, ours: str) -> None:
    assert not hasattr(lc, name)
    with pytest.raises(AttributeError, match=f"^module 'lora_c' has no attribute '{name}'; here it is .*{ours}"):
        getattr(lc, name)


def test_no_answer_stands_for_a_name_that_is_there(model: lc.Model) -> None:
    assert not set(OF_PACKAGE) & set(lc.__all__) and not set(OF_MODEL) & set(dir(model))


def test_every_answer_names_what_is_there(model: lc.Model) -> None:
    import re

    for answer in (*OF_PACKAGE.values(), *OF_MODEL.values()):
        for owner, name in re.findall(r"\b(lora_c|model)\.(\w+)", answer):
            assert hasattr(lc if owner == "lora_c" else model, name), answer


def test_other_names_are_plain_attribute_errors(model: lc.Model) -> None:
    with pytest.raises(AttributeError, match=r"^Model has no attribute 'nothing_like_it'$"):
        model.nothing_like_it  # noqa: B018
    with pytest.raises(AttributeError, match=r"^module 'lora_c' has no attribute 'nothing_like_it'$"):
        lc.nothing_like_it  # type: ignore[attr-defined]  # noqa: B018
    assert copy.copy(model).config is model.config  # asks for names of a half-made object, too


def test_options_of_peft_that_have_one_value_are_taken(model: lc.Model) -> None:
    from enum import Enum

    class TaskType(str, Enum):
        CAUSAL_LM, SEQ_CLS = "CAUSAL_LM", "SEQ_CLS"

    expected = lc.LoraConfig(r=4, task_type="CAUSAL_LM")
    assert lc.LoraConfig(r=4, task_type="CAUSAL_LM", inference_mode=False, peft_type="LORA") == expected
    assert lc.LoraConfig(r=4, task_type=TaskType.CAUSAL_LM) == expected
    model.add_adapter(r=2, task_type="CAUSAL_LM")
    with pytest.raises(AdapterError, match="task_type: expected CAUSAL_LM for a language model, got SEQ_CLS"):
        model.add_adapter(name="other", r=2, task_type=TaskType.SEQ_CLS)
    with pytest.raises(ConfigError, match="inference_mode: expected False, got True; .*is_trainable=False"):
        lc.LoraConfig(inference_mode=True)


def test_adapter_name_and_the_order_of_peft_are_taken(model: lc.Model, tmp_path: Path) -> None:
    model.add_adapter(lc.LoraConfig(r=2), adapter_name="first")
    model.add_adapter("second", lc.LoraConfig(r=3))
    assert model.adapter_names == ["first", "second"] and model.active_adapter == "second"
    model.set_adapter(adapter_name="first")
    assert model.active_adapter == "first"
    model.save_adapter(tmp_path / "a")
    model.load_adapter(tmp_path / "a", adapter_name="third")
    model.delete_adapter(adapter_name="second")
    assert model.adapter_names == ["first", "third"]
    with pytest.raises(ConfigError, match="adapter_name: expected the name once, got 'a' and 'b'"):
        model.add_adapter(name="a", adapter_name="b", r=2)
    with pytest.raises(ConfigError, match="name: expected the name of an adapter, got 5"):
        model.add_adapter(name=5, r=2)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="config: expected a LoraConfig or .*, got dict; or give its fields by keyword"):
        model.add_adapter({"r": 2})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("q_proj", r"\['q_proj'\]"),
        ("q_proj,v_proj", r"\['q_proj', 'v_proj'\]"),
        ("self_attn.q_proj", r"\['self_attn.q_proj'\]"),
    ],
)
def test_the_name_of_a_module_as_a_text_is_answered_with_the_list_that_is_meant(
    model: lc.Model, given: str, meant: str
) -> None:
    with pytest.raises(AdapterError, match=f"target_modules: .* got '{given}', a regular expression .*; did you mean {meant}"):
        model.add_adapter(r=2, target_modules=given)


def test_a_text_that_is_no_name_either_is_not_made_a_list_of(model: lc.Model) -> None:
    with pytest.raises(AdapterError, match="got 'nothing'$"):
        model.add_adapter(r=2, target_modules="nothing")
    model.add_adapter(r=2, target_modules=r".*\.q_proj")
    assert len(model.adapters) == 2


def test_errors_stand_at_the_top() -> None:
    from lora_c import errors, notices

    for name in ("LoraCError", "CheckpointError", "AdapterError", "DataError", "ConfigError", "SaveError", "DivergenceError"):
        assert getattr(lc, name) is getattr(errors, name) and name in lc.__all__
    assert lc.LoraCWarning is notices.LoraCWarning


def test_dir_shows_what_users_need_and_nothing_else() -> None:
    assert dir(lc) == sorted(lc.__all__)
    assert all(not name.startswith("_") or name == "__version__" for name in dir(lc))
