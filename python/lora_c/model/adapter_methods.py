"""Adapters of a model: put on, loaded, combined, chosen, saved and taken off. The methods of `Model`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .._core import Parameter
from ..adapters import Adapter, AdapterArrays, AdapterStack, load_arrays, read_adapter, write_adapter
from ..adapters.classifiers import for_task, labels_of_adapter
from ..adapters.combine import Combination, combine
from ..adapters.conversion import can_convert, for_original_base
from ..adapters.kinds import check_config, config_of, fresh_adapter, loaded_adapter
from ..adapters.stack_folder import stack_names, write_stack
from ..adapters.trained_weights import with_trained_weights
from ..checkpoints.model_names import find, name_for_others
from ..configs import AdapterConfig, LoraConfig
from ..errors import AdapterError, ConfigError
from ..files.paths import expand
from ..runs.record import tell_other_base
from ..weights.kinds import is_same_weight
from .classifier import classified_for
from .loading import weights_of_folder
from .merge_in_place import InPlaceMerge
from .resize_embedding import resize_for_adapter

if TYPE_CHECKING:
    from .model import Model


def add_adapter(
    model: Model,
    config: AdapterConfig | str | None = None,
    name: str | AdapterConfig = "default",
    *,
    adapter_name: str | None = None,
    **options: Any,
) -> None:
    """Put a fresh adapter on the model and use it. With one of LoRA the output stays the same until training.

    Parameters
    ----------
    config : LoraConfig, optional
        Its class says which kind of adapter.
    name : str
        For `set_adapter`, where the model has several; PEFT's order, name first, is taken, too.
    adapter_name : str, optional
        PEFT's word for `name`.
    **options
        In its place: fields of a LoraConfig, or of the kind that `peft_type` names.

    Raises
    ------
    AdapterError
        There is an adapter of that name already, or the configuration matches no module.
    """
    if isinstance(config, str):
        name, config = config, None if isinstance(name, str) else name
    name = _one_name(name, adapter_name)
    if config is not None and options:
        raise ConfigError("config: expected the configuration of an adapter or options by keyword, got both")
    config = (config_of(options) if config is None else check_config(config)).frozen_copy()
    _refuse_second(model, name)
    config = for_task(config, model.architecture).frozen_copy()
    base = replace(model.base, tokenizer=lambda: model.tokenizer)
    model.adapter_set.add(name, fresh_adapter(base, config, model.device))
    model.adapter_set.activate(name)


def load_adapter(
    model: Model,
    path: str | os.PathLike[str],
    name: str = "default",
    is_trainable: bool = True,
    revision: str | None = None,
    *,
    adapter_name: str | None = None,
) -> None:
    """Put an adapter from a file or folder on the model; the first one is in use at once, others after `set_adapter`.

    Parameters
    ----------
    path : path or str
        An adapter of PEFT or mlx-lm; which one is seen from the files. Or a name on the Hugging Face Hub. Of a folder that
        a stack was saved to, all adapters are loaded under the names of their subfolders, and the stack is called `name`, by
        default "first+second".
        One of a classifier (task_type SEQ_CLS) makes a language model one, with as many labels as its score has rows.
    name : str
        For `set_adapter`, where the model has several.
    adapter_name : str, optional
        PEFT's word for `name`.
    is_trainable : bool
        Whether training changes it.
    revision : str, optional
        Branch, tag or commit of a name on the Hub.

    Raises
    ------
    AdapterError
        It cannot be read, needs what is not supported, or was made for another base model.
    """
    name = _one_name(name, adapter_name)
    _refuse_second(model, name)
    path = find(path, "adapter", revision)
    names = stack_names(path)
    if names is None:
        _load_one(model, path, name, is_trainable)
    else:
        name = _load_stack(model, Path(path), names, name, is_trainable)
    if model.adapter_set.active is None:
        model.adapter_set.activate(name)


def _load_stack(model: Model, folder: Path, parts: Sequence[str], name: str, is_trainable: bool) -> str:
    """Put the adapters of a stack on the model under the names of their subfolders; return what the stack is called."""
    name = "+".join(parts) if name == "default" else name
    for other in (*parts, name):
        _refuse_second(model, other)
    if name in parts:
        raise AdapterError(f"name: expected one that no adapter of the stack has, got {name!r}; give another name")
    before = dict(vars(model))
    try:
        # One with a classifier's score first: it makes the model one.
        for part in sorted(parts, key=lambda part: labels_of_adapter(folder / part) is None):
            _load_one(model, folder / part, part, is_trainable)
        model.adapter_set.add(name, AdapterStack({part: model.adapter_set[part] for part in parts}))
    except BaseException:
        if model.adapter_set is not before["adapter_set"]:  # it became a classifier
            vars(model).update(before)
            model.tell_tokenizer()
        for part in parts:
            if part in model.adapter_set:
                model.adapter_set.remove(part)
        raise
    return name


def _load_one(model: Model, path: str | os.PathLike[str], name: str, is_trainable: bool) -> None:
    resize_for_adapter(model, path)
    with classified_for(model, path):
        arrays = read_adapter(path, model.architecture, weights_of_folder)
        arrays = _without_same_base(model, arrays)
        embedding = np.asarray(model.dense_weight("embed_tokens"), np.float32) if arrays.tokens else None
        model.adapter_set.add(name, loaded_adapter(arrays, model.architecture, embedding, is_trainable, model.device))
    tell_other_base(path, model.source)


def add_weighted_adapter(
    model: Model,
    adapters: Sequence[str],
    weights: Sequence[float],
    adapter_name: str,
    combination_type: str = "svd",
    **options: Any,
) -> None:
    """Combine adapters of the model into a new one, as PEFT does; use it with `set_adapter`.

    Parameters
    ----------
    adapters, weights
        Their names, and a factor for each.
    adapter_name : str
        Name of the result.
    combination_type : str
        "svd", "linear", "cat", "ties", "dare_linear", … as in PEFT.
    **options
        Of `adapters.combine.Combination`: svd_rank, svd_clamp, density, majority_sign_method, seed.

    Raises
    ------
    AdapterError
        An adapter is missing, holds more than low-rank updates, or has a rank that does not fit.
    """
    missing = next((name for name in adapters if name not in model.adapter_set), None)
    if missing is not None:
        raise AdapterError(f"adapters: expected names among {', '.join(model.adapter_names) or 'none'}, got {missing!r}")
    _refuse_second(model, adapter_name)
    how = Combination(combination_type, **options)
    parts = [_for_original_base(model, model.adapter_set[name]) for name in adapters]
    arrays = combine(parts, weights, how, model.architecture)
    model.adapter_set.add(adapter_name, load_arrays(arrays, model.architecture, None, False, model.device))


def set_adapter(
    model: Model, name: str | Sequence[str] | None = None, *, adapter_name: str | Sequence[str] | None = None
) -> None:
    """Use another adapter; None: the base alone. Nothing is loaded or computed again.

    Parameters
    ----------
    name : str or list of str, optional
        One of `model.adapter_names`. Several, each of another kind, are used together, as a stack that is one more adapter of
        the model, named "first+second": a list of the same names uses it again.
    adapter_name : str or list of str, optional
        PEFT's word for `name`.

    Raises
    ------
    AdapterError
        There is none of that name, two are of one kind, or the present one is folded into the weights.
    """
    name = name if adapter_name is None else _one_name(name, adapter_name) if isinstance(adapter_name, str) else adapter_name
    if name is not None and not isinstance(name, str):
        name = _stack_name(model, list(name))
    if model.is_merged:
        raise AdapterError("set_adapter: expected a model that is not merged, got a merged one; call unmerge_adapter() first")
    if name is not None and name not in model.adapter_set:
        known = ", ".join(model.adapter_names) or "none"
        raise AdapterError(f"set_adapter: expected one of the model's adapters ({known}), got {name!r}")
    model.adapter_set.activate(name)


def _stack_name(model: Model, names: list[str]) -> str | None:
    """The name of the stack of these adapters, which is made where there is none; of one adapter its own."""
    if not names or not all(isinstance(name, str) and name in model.adapter_set for name in names):
        known = ", ".join(model.adapter_names) or "none"
        raise AdapterError(f"set_adapter: expected names of the model's adapters ({known}), got {names!r}")
    if len(set(names)) != len(names):
        raise AdapterError(f"set_adapter: expected each adapter once, got {names!r}")
    if len(names) == 1:
        return names[0]
    stacks = (name for name in model.adapter_names if getattr(model.adapter_set[name], "names", None) == names)
    found = next(stacks, None)
    if found is not None:
        return found
    name = "+".join(names)
    _refuse_second(model, name)
    model.adapter_set.add(name, AdapterStack({part: model.adapter_set[part] for part in names}))
    return name


def save_adapter(
    model: Model, path: str | os.PathLike[str], dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    format: Literal["peft", "mlx", "gguf"] = "peft",
) -> None:  # fmt: skip
    """Write the adapter in use, atomically: a folder, or with format="gguf" one file for llama.cpp. Of a stack, each adapter
    in a subfolder of its name.

    Parameters
    ----------
    path : path
        Folder, or name of the file.
    dtype : "float32", "float16" or "bfloat16"
        Stored type; training goes on from float32 without loss.
    format : "peft", "mlx" or "gguf"
        Who is to read it.

    Raises
    ------
    AdapterError
        There is no adapter, or the format cannot hold it.
    SaveError
        It could not be written; what was there before is unchanged.

    Notes
    -----
    An adapter that changed its base (PiSSA, OLoRA) is written for the original one, with twice the rank, where that
    gives the same model. Where it does not (a quantized base, LoftQ, DoRA besides), the base that it needs is
    written into the subfolder `base_model`, and `load_adapter` takes both.
    """
    adapter = model.adapter_set.active
    if adapter is None:
        raise AdapterError("save_adapter: expected a model with an adapter, got none; call add_adapter first")
    if isinstance(adapter, AdapterStack):
        if format != "peft":
            raise AdapterError(
                f"{path}: expected format='peft' for a stack of adapters, got {format!r}; save each by its name"
            )
        writers = zip(adapter.names, adapter.parts(), strict=True)
        write_stack(expand(path), {name: partial(_save_one, model, part, dtype, format) for name, part in writers})
        return
    _save_one(model, adapter, dtype, format, expand(path))


def _save_one(model: Model, adapter: Adapter, dtype: str, format: str, path: str | os.PathLike[str]) -> None:
    arrays = _for_original_base(model, adapter)
    if adapter is model.adapter or isinstance(adapter.config, LoraConfig):
        arrays = with_trained_weights(arrays, model.weights, model.architecture)
    write_base = _with_base_of(model, adapter).save if arrays.residual_base else None
    base = name_for_others(model.source)
    write_adapter(path, arrays, model.architecture, base, dtype, format, write_base)


def delete_adapter(model: Model, name: str | None = None, *, adapter_name: str | None = None) -> None:
    """Take an adapter off the model; the base is what it was.

    Parameters
    ----------
    name : str, optional
        By default the one in use.
    adapter_name : str, optional
        PEFT's word for `name`.

    Raises
    ------
    AdapterError
        There is none of that name.
    """
    name = name if adapter_name is None else _one_name(name, adapter_name)
    name = name if name is not None else model.active_adapter
    if name is None or name not in model.adapter_set:
        raise AdapterError("delete_adapter: expected a model with an adapter, got none" + (f" named {name!r}" if name else ""))
    if model.is_merged and name == model.active_adapter:
        model.unmerge_adapter()
    model.adapter_set.remove(name)


def merge_adapter(model: Model) -> None:
    """Fold the adapter into this model's float32 weights, as PEFT does; `unmerge_adapter` takes it out again.

    Taking it out restores each weight up to two roundings of float32 sums, with DoRA and IA3 exactly.
    """
    if model.adapter_config is None or model.is_merged:
        state = "a merged one" if model.is_merged else "none"
        raise AdapterError(f"merge_adapter: expected a model with an active adapter, got {state}")
    assert model.adapter is not None
    model.merged = InPlaceMerge.begin(model, model.adapter)
    model.adapter_set.detach_updates()


def unmerge_adapter(model: Model) -> None:
    """Take a merged adapter out of the weights and make it active again."""
    if model.merged is None or model.adapter is None:
        raise AdapterError("unmerge_adapter: expected a model after merge_adapter(), got one that is not merged")
    model.merged.undo(model)
    model.merged = None
    model.adapter_set.attach_updates()


def _one_name(name: Any, adapter_name: Any) -> str:
    """The name of an adapter, by either of its keywords."""
    if adapter_name is not None and name not in (None, "default", adapter_name):
        raise ConfigError(f"adapter_name: expected the name once, got {name!r} and {adapter_name!r}")
    name = name if adapter_name is None else adapter_name
    if not isinstance(name, str) or not name:
        raise ConfigError(f"name: expected the name of an adapter, got {name!r}")
    return name


def _without_same_base(model: Model, arrays: AdapterArrays) -> AdapterArrays:
    """Drop the embedding or the head that an adapter brings along where it is the model's own."""

    def is_own(name: str, read: Any) -> bool:
        own = model.weights[name if name in model.weights else "embed_tokens"]
        return name in ("embed_tokens", "lm_head") and is_same_weight(own, read())

    rest = {name: read for name, read in arrays.residual_base.items() if not is_own(name, read)}
    shared = next((name for name in rest if name in ("embed_tokens", "lm_head") and model.architecture.tied), None)
    if shared is not None:
        raise AdapterError(
            f"adapter: {shared}: expected the model's own weight, which embedding and head share, got another; merge it "
            "with PEFT (merge_and_unload) and load the merged model"
        )
    return replace(arrays, residual_base=rest)


def _for_original_base(model: Model, adapter: Adapter) -> AdapterArrays:
    """The adapter's values, for the base of the model where it has one of its own and that gives the same model."""
    arrays = adapter.arrays()
    if adapter.base and can_convert(adapter):
        return for_original_base(arrays, adapter.start)
    return replace(arrays, residual_base={name: lambda w=w: w for name, w in adapter.base.items()})  # type: ignore[misc]


def _with_base_of(model: Model, adapter: Adapter) -> Model:
    records = {name: record for name, record in model.quant_records.items() if name not in adapter.base}
    return model.with_weights({**model.weights, **adapter.base}, dict(model.stored_dtypes), records)


def _refuse_second(model: Model, name: str) -> None:
    if name in model.adapter_set:
        raise AdapterError(
            f"adapter: expected a model without one named {name!r}, got one; give another name, or call delete_adapter() "
            "or merge(...) first"
        )
    if model.is_merged:
        raise AdapterError("adapter: expected a model that is not merged, got a merged one; call unmerge_adapter() first")
    if model.weights and all(isinstance(weight, Parameter) for weight in model.weights.values()):
        raise AdapterError("adapter: expected a frozen base, got a model with trainable='full'; load it without")
