"""A language model: weights from a folder, a decoder, a tokenizer, and adapters of which one is in use."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from . import generation, merge
from ._core import Decoder, GGMLTensor, NF4Tensor, Parameter
from .adapters import Adapter, AdapterArrays, AdapterSet, LoadedAdapter, load_arrays, read_adapter, write_adapter
from .adapters.combine import Combination, combine
from .adapters.conversion import can_convert, for_original_base
from .adapters.fresh import fresh_adapter
from .adapters.trained_weights import with_trained_weights
from .architectures import Architecture, architecture_of
from .checkpoint import Checkpoint
from .config_and_files import config_of_files
from .configs import NF4_BLOCK_SIZES, GenerationConfig, LoraConfig
from .ends import find_ends
from .errors import AdapterError, CheckpointError, ConfigError
from .generation_file import GENERATION_FILE, generation_config_of, left_aside, read_generation_options
from .gguf.checkpoint import GGUFCheckpoint
from .gguf.reader import is_gguf
from .loading import DENSE_DTYPES, LoadOptions, Trainable, Weights, in_order, load_weights
from .model_names import expand, find, name_for_others
from .notices import tell
from .parts import Parts
from .prequantized import QuantRecord
from .prompts import is_batch
from .resize_embedding import resize_embedding, resize_for_adapter, rows_for
from .saving import save_model
from .tied_head import stored_name
from .tokenizer import Tokenizer
from .written import tell_adapter_beside


class Model:
    """What `load_model` returns.

    Attributes
    ----------
    config : dict
        The model's config.json.
    decoder : Decoder
        Forward, backward and decoding. It borrows the arrays in `weights`.
    adapters : dict
        Decoder name to the update of that matrix, of the adapter that is in use.
    adapter_config : LoraConfig or None
        The configuration of the adapter that is in use.
    adapter_names, active_adapter
        The names of all adapters, and of the one in use (None: the base alone).
    weights : dict
        Decoder name to array, NF4Tensor, GGMLTensor or Parameter.
    eos_token_ids : frozenset of int
        The tokens that end an answer, see `ends`; what is saved names them, too.
    generation_options : dict
        The model's generation_config.json; empty where there is none.
    added_tokens : list of int
        Rows that the embedding got with `resize_embedding`.
    requantization_error : float or None
        Where the blocks of a GGUF file were quantized to NF4: the norm of the change relative to that of the weights.
    """

    def __init__(
        self, config: dict[str, Any], architecture: Architecture, weights: Weights, source: Path,
        tokenizer: Tokenizer | None, nf4_options: tuple[int, bool] = (64, True), ends: frozenset[int] | None = None,
    ) -> None:  # fmt: skip
        self.config = config
        self.architecture = architecture
        self.source = source
        self.weights: dict[str, Any] = weights.values
        self.stored_dtypes = weights.stored_dtypes
        self.quant_records: dict[str, QuantRecord] = weights.records
        self.nf4_options = nf4_options
        self.requantization_error = weights.requantized.relative if weights.requantized else None
        self.is_merged = False
        self._tokenizer = tokenizer
        try:
            self.decoder = Decoder(**architecture.decoder_kwargs)
        except (ValueError, OverflowError) as error:  # numbers of config.json that no single rule forbids
            raise CheckpointError(f"{source}: config.json: {error}") from None
        self.parts = Parts(self.decoder, architecture.weights())
        for name, weight in self.weights.items():
            self.parts.set_weight(name, weight)
        self._adapters = AdapterSet(self.parts, self.weights, architecture.tied)
        self.before_merge: dict[str, Any] = {}
        self._told_settings = False
        self.generation_options = read_generation_options(source)
        self.added_tokens: list[int] = []
        self.eos_token_ids = ends if ends is not None else self._find_ends()
        self._tell_tokenizer()

    # -- what it is ---------------------------------------------------------------------------------------------------

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer; a folder without one is refused here, when it is needed."""
        if self._tokenizer is None:
            self._tokenizer = Tokenizer.from_folder(self.source, self.config)
            self._tell_tokenizer()
        return self._tokenizer

    def _tell_tokenizer(self) -> None:
        """Let the tokenizer know the model's sizes, so that data which cannot fit is refused where it is read."""
        if self._tokenizer is not None:
            self._tokenizer.model_vocab_size = int(self.architecture.decoder_kwargs["vocab_size"])
            self._tokenizer.model_context_length = self.context_length

    @property
    def has_tokenizer(self) -> bool:
        """Whether the folder came with a tokenizer."""
        return self._tokenizer is not None

    @property
    def context_length(self) -> int:
        """The largest number of tokens that prompt and answer may have together."""
        return int(self.architecture.decoder_kwargs["max_position_embeddings"])

    @property
    def is_quantized(self) -> bool:
        """Whether any weight is NF4."""
        return any(isinstance(weight, NF4Tensor) for weight in self.weights.values())

    def num_parameters(self, only_trainable: bool = False) -> int:
        """Return the number of weights, the adapter's included; tied embeddings count once."""
        if only_trainable:
            return sum(parameter.size for parameter in self.trainable_parameters())
        base = sum(int(np.prod(weight.shape)) for weight in self.weights.values())
        active = self._adapters.active
        return base + (sum(parameter.size for parameter in active.parameters()) if active else 0)

    def dense_bytes(self) -> int:
        """Return the bytes of the weights that are plain arrays or mapped blocks: neither NF4 nor parameters."""
        own = self._adapters.active.base if self._adapters.active else {}
        return sum(w.nbytes for w in (*self.weights.values(), *own.values()) if isinstance(w, (np.ndarray, GGMLTensor)))

    def trainable_parameters(self) -> list[Parameter]:
        """Return the parameters that training changes, in the order of the forward pass."""
        found = [weight for weight in self.weights.values() if isinstance(weight, Parameter)]
        found += self._adapters.active.parameters() if self._adapters.active else []
        return [parameter for parameter in found if parameter.requires_grad]

    def __repr__(self) -> str:
        kind = "NF4" if self.is_quantized else merge.format_of(self.weights["layers.0.down_proj"])
        adapter = f", adapter r={self.adapter_config.r}" if self.adapter_config else ""
        return f"Model({self.architecture.family.architecture}, {self.num_parameters():,} parameters, {kind}{adapter})"

    def _find_ends(self) -> frozenset[int]:
        ends = find_ends(self.config, self.generation_options, self._tokenizer)
        if (line := ends.disagreement(self._tokenizer)) is not None:
            tell(f"{self.source}: {line}")
        return ends.ids

    # -- adapters -----------------------------------------------------------------------------------------------------

    @property
    def adapters(self) -> dict[str, LoadedAdapter]:
        """Decoder name to the update of that matrix, of the adapter that is in use."""
        return self._adapters.active.layers if self._adapters.active else {}

    @property
    def adapter(self) -> Adapter | None:
        """The adapter that is in use, with all that it holds."""
        return self._adapters.active

    @property
    def adapter_config(self) -> LoraConfig | None:
        """The configuration of the adapter that is in use."""
        return self._adapters.active.config if self._adapters.active else None

    @property
    def adapter_names(self) -> list[str]:
        """The names of all adapters on the model."""
        return self._adapters.names

    @property
    def active_adapter(self) -> str | None:
        """The name of the adapter in use; None: the base alone."""
        return self._adapters.active_name

    def add_adapter(self, config: LoraConfig | None = None, name: str = "default", **options: Any) -> None:
        """Put a fresh adapter on the model and use it; its output stays the same until training.

        Parameters
        ----------
        config : LoraConfig, optional
            Or its fields as keywords.
        name : str
            For `set_adapter`, where the model has several.

        Raises
        ------
        AdapterError
            There is an adapter of that name already, or the configuration matches no module.
        """
        if config is not None and options:
            raise ConfigError("config: expected a LoraConfig or options by keyword, got both")
        config = (config if config is not None else LoraConfig(**options)).frozen_copy()
        self._refuse_second(name)
        self._put(name, fresh_adapter(self, config))
        self._adapters.activate(name)

    def load_adapter(
        self, path: str | os.PathLike[str], name: str = "default", is_trainable: bool = True, revision: str | None = None
    ) -> None:
        """Put an adapter from a file or folder on the model; the first one is in use at once, others after `set_adapter`.

        Parameters
        ----------
        path : path or str
            An adapter of PEFT or mlx-lm; which one is seen from the files. Or a name on the Hugging Face Hub.
        name : str
            For `set_adapter`, where the model has several.
        is_trainable : bool
            Whether training changes it.
        revision : str, optional
            Branch, tag or commit of a name on the Hub.

        Raises
        ------
        AdapterError
            It cannot be read, needs what is not supported, or was made for another base model.
        """
        self._refuse_second(name)
        path = find(path, "adapter", revision)
        resize_for_adapter(self, path)
        arrays = read_adapter(path, self.architecture)
        arrays = self._without_same_base(arrays)
        embedding = np.asarray(self.dense_weight("embed_tokens"), np.float32) if arrays.tokens else None
        self._put(name, load_arrays(arrays, self.architecture, embedding, is_trainable))
        if self._adapters.active is None:
            self._adapters.activate(name)

    def _without_same_base(self, arrays: AdapterArrays) -> AdapterArrays:
        """Drop the embedding or the head that an adapter brings along where it is the model's own."""

        def is_own(name: str, read: Any) -> bool:
            own = self.weights[name if name in self.weights else "embed_tokens"]
            return name in ("embed_tokens", "lm_head") and merge.is_same_weight(own, read())

        rest = {name: read for name, read in arrays.residual_base.items() if not is_own(name, read)}
        shared = next((name for name in rest if name in ("embed_tokens", "lm_head") and self.architecture.tied), None)
        if shared is not None:
            raise AdapterError(
                f"adapter: {shared}: expected the model's own weight, which embedding and head share, got another; merge it "
                "with PEFT (merge_and_unload) and load the merged model"
            )
        return replace(arrays, residual_base=rest)

    def add_weighted_adapter(
        self,
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
        combination_type, **options
            See `adapters.combine.Combination`: svd_rank, svd_clamp, density, majority_sign_method, seed.

        Raises
        ------
        AdapterError
            An adapter is missing, holds more than low-rank updates, or has a rank that does not fit.
        """
        missing = next((name for name in adapters if name not in self._adapters), None)
        if missing is not None:
            raise AdapterError(f"adapters: expected names among {', '.join(self.adapter_names) or 'none'}, got {missing!r}")
        self._refuse_second(adapter_name)
        how = Combination(combination_type, **options)
        parts = [self._for_original_base(self._adapters[name]) for name in adapters]
        arrays = combine(parts, weights, how, self.architecture)
        self._adapters.add(adapter_name, load_arrays(arrays, self.architecture, None, trainable=False))

    def _for_original_base(self, adapter: Adapter) -> AdapterArrays:
        """The adapter's values, for the base of the model where it has one of its own and that gives the same model."""
        arrays = adapter.arrays()
        if adapter.base and can_convert(adapter):
            return for_original_base(arrays, adapter.start)
        return replace(arrays, residual_base={name: lambda w=w: w for name, w in adapter.base.items()})  # type: ignore[misc]

    def set_adapter(self, name: str | None) -> None:
        """Use another adapter; None: the base alone. Nothing is loaded or computed again.

        Raises
        ------
        AdapterError
            There is none of that name, or the present one is folded into the weights.
        """
        if self.is_merged:
            raise AdapterError(
                "set_adapter: expected a model that is not merged, got a merged one; call unmerge_adapter() first"
            )
        if name is not None and name not in self._adapters:
            known = ", ".join(self.adapter_names) or "none"
            raise AdapterError(f"set_adapter: expected one of the model's adapters ({known}), got {name!r}")
        self._adapters.activate(name)

    def save_adapter(
        self, path: str | os.PathLike[str], dtype: Literal["float32", "float16", "bfloat16"] = "float32",
        format: Literal["peft", "mlx", "gguf"] = "peft",
    ) -> None:  # fmt: skip
        """Write the adapter in use, atomically: a folder, or with format="gguf" one file for llama.cpp.

        Notes
        -----
        An adapter that changed its base (PiSSA, OLoRA) is written for the original one, with twice the rank, where that
        gives the same model. Where it does not (a quantized base, LoftQ, DoRA besides), the base that it needs is
        written into the subfolder `base_model`, and `load_adapter` takes both.
        """
        adapter = self._adapters.active
        if adapter is None:
            raise AdapterError("save_adapter: expected a model with an adapter, got none; call add_adapter first")
        arrays = with_trained_weights(self._for_original_base(adapter), self.weights, self.architecture)
        write_base = self._with_base_of(adapter).save if arrays.residual_base else None
        base = name_for_others(self.source)
        write_adapter(expand(path), arrays, self.architecture, base, dtype, format, write_base)

    def _with_base_of(self, adapter: Adapter) -> Model:
        records = {name: record for name, record in self.quant_records.items() if name not in adapter.base}
        return self.with_weights({**self.weights, **adapter.base}, dict(self.stored_dtypes), records)

    def delete_adapter(self, name: str | None = None) -> None:
        """Take an adapter off the model (by default the one in use); the base is what it was."""
        name = name if name is not None else self.active_adapter
        if name is None or name not in self._adapters:
            raise AdapterError(
                "delete_adapter: expected a model with an adapter, got none" + (f" named {name!r}" if name else "")
            )
        if self.is_merged and name == self.active_adapter:
            self.unmerge_adapter()
        self._adapters.remove(name)

    def dense_weight(self, name: str) -> Any:
        """Return one of the base's weights as an array (NF4 as float32)."""
        return merge.dense(self.weights[name])

    def resize_embedding(self, vocab_size: int) -> None:
        """Give the embedding and the head rows for `vocab_size` tokens; a new one is the mean of the old ones.

        Raises
        ------
        ConfigError
            There are fewer tokens than rows, or the rows are quantized.
        """
        resize_embedding(self, vocab_size)

    def full_precision(self, name: str) -> NDArray[Any]:
        """Return one of the base's weights as its folder has it, where that is still more than what is in memory."""
        weight = self.weights[name]
        if isinstance(weight, NF4Tensor) and name not in self.quant_records and (self.source / "config.json").is_file():
            spec = next(spec for spec in self.architecture.weights() if spec.name == name)
            with Checkpoint(self.source) as checkpoint:
                file_name = stored_name(spec, checkpoint.tensors)
                if file_name in checkpoint.tensors:
                    return np.array(in_order(spec, checkpoint.read(file_name)), np.float32)
        return merge.dense(weight)

    def quantize_weight(self, array: NDArray[Any]) -> NF4Tensor:
        """Return a matrix in NF4 with the block size and the double quantization of this model."""
        block_size, double_quant = self.nf4_options
        return NF4Tensor.quantize(np.ascontiguousarray(array), block_size=block_size, double_quant=double_quant)

    def _refuse_second(self, name: str) -> None:
        if name in self._adapters:
            raise AdapterError(
                f"adapter: expected a model without one named {name!r}, got one; give another name, or call delete_adapter() "
                "or merge(...) first"
            )
        if self.is_merged:
            raise AdapterError("adapter: expected a model that is not merged, got a merged one; call unmerge_adapter() first")
        if self.weights and all(isinstance(weight, Parameter) for weight in self.weights.values()):
            raise AdapterError("adapter: expected a frozen base, got a model with trainable='full'; load it without")

    def _put(self, name: str, adapter: Adapter) -> None:
        self._adapters.add(name, adapter)

    # -- merging ------------------------------------------------------------------------------------------------------

    def merge(self, dtype: merge.MergeDtype = "float32") -> Model:
        """Return a new model whose weights are W + s B A; this one keeps its adapter. See `merge.merge_model`."""
        return merge.merge_model(self, dtype)

    def merge_adapter(self) -> None:
        """Fold the adapter into this model's float32 weights, as PEFT does; `unmerge_adapter` takes it out again.

        Taking it out restores each weight up to one float32 rounding, with DoRA exactly.
        """
        if self.adapter_config is None or self.is_merged:
            state = "a merged one" if self.is_merged else "none"
            raise AdapterError(f"merge_adapter: expected a model with an active adapter, got {state}")
        merge.fold_in_place(self)
        self._adapters.detach_matrices()
        self.is_merged = True

    def unmerge_adapter(self) -> None:
        """Take a merged adapter out of the weights and make it active again."""
        if not self.is_merged:
            raise AdapterError("unmerge_adapter: expected a model after merge_adapter(), got one that is not merged")
        merge.take_out_in_place(self)
        self.is_merged = False
        self._adapters.attach_matrices()

    def with_weights(
        self, weights: dict[str, Any], stored: dict[str, np.dtype[Any]], records: dict[str, QuantRecord],
        config: dict[str, Any] | None = None,
    ) -> Model:  # fmt: skip
        """Return a model with other weights (and another config) and no adapter."""
        config = dict(self.config) if config is None else config
        return Model(
            config,
            architecture_of(config),
            Weights(weights, stored, records),
            self.source,
            self._tokenizer,
            self.nf4_options,
            self.eos_token_ids,
        )

    # -- text ---------------------------------------------------------------------------------------------------------

    @overload
    def generate(
        self, prompt: str | Sequence[int] | Sequence[Mapping[str, Any]], config: GenerationConfig | None = None, **options: Any
    ) -> str: ...

    @overload
    def generate(
        self, prompt: Sequence[str] | Sequence[Sequence[Any]], config: GenerationConfig | None = None, **options: Any
    ) -> list[str]: ...

    def generate(self, prompt: Any, config: GenerationConfig | None = None, **options: Any) -> str | list[str]:
        """Return the continuation of a prompt, or a list of continuations for a list of prompts.

        Parameters
        ----------
        prompt : str, list of dict, or list of int; or a list of these
            A text, chat messages, or token ids. Several prompts are decoded together; each answer is the same as alone.
        config, **options
            A `GenerationConfig` and/or its fields; greedy by default. `model.generation_config` is what the model's own
            generation_config.json asks for.
        """
        if is_batch(prompt):
            return generation.generate_batch(self, prompt, self._resolve(config, options))
        return "".join(self.stream(prompt, config, **options))

    def stream(self, prompt: Any, config: GenerationConfig | None = None, **options: Any) -> Iterator[str]:
        """Yield the continuation piece by piece; a piece never ends inside a character."""
        return generation.generate_text(self, prompt, self._resolve(config, options))

    @property
    def generation_config(self) -> GenerationConfig:
        """How the model's generation_config.json asks for text to be generated; the defaults where there is none.

        Raises
        ------
        CheckpointError
            The file asks for what cannot be.
        """
        return generation_config_of(self.generation_options, str(self.source / GENERATION_FILE))

    def _resolve(self, config: GenerationConfig | None, options: dict[str, Any]) -> GenerationConfig:
        """Combine a configuration with options; what of the model's own settings is left aside is said once."""
        resolved = generation.resolve(config, options)
        if self.generation_options and not self._told_settings:
            self._told_settings = True
            if (line := left_aside(self.generation_options, resolved, str(self.source / GENERATION_FILE))) is not None:
                tell(line)
        return resolved

    # -- files --------------------------------------------------------------------------------------------------------

    def save(
        self, path: str | os.PathLike[str], dtype: Literal["float32", "bfloat16", "float16", "nf4"] | None = None,
        max_shard_bytes: int = 5_000_000_000,
    ) -> None:  # fmt: skip
        """Write a Hugging Face folder, atomically.

        Parameters
        ----------
        dtype : optional
            Type of the matrices; by default as they are (NF4 in bitsandbytes' layout, byte for byte as it was read).

        Raises
        ------
        AdapterError
            An adapter is active: a folder of weights cannot hold it.
        """
        save_model(self, expand(path), dtype, max_shard_bytes)


def load_model(
    path: str | os.PathLike[str], quantize: Literal["nf4"] | None = None, double_quant: bool = True, block_size: int = 64,
    dtype: Literal["float32", "bfloat16"] | None = None, progress: bool | None = None, trainable: Trainable = "none",
    resize_embedding: bool = False, revision: str | None = None,
) -> Model:  # fmt: skip
    """Load a Hugging Face model folder or a GGUF file, by its path or its name.

    Parameters
    ----------
    path : path or str
        A path; "demo", the small base that ships; or a name on the Hugging Face Hub such as "Qwen/Qwen3-0.6B", whose files
        are taken from the cache of huggingface_hub or brought into it. A path that is there wins.
        A folder with config.json, safetensors files and tokenizer.json; 4-bit folders of bitsandbytes (NF4, FP4) are read
        as they are. Or a GGUF file (the first one of several): its blocks are used where the file is mapped.
    quantize : "nf4", optional
        Quantize the projections of the layers while loading, one tensor at a time; a prequantized folder stays as it is,
        the blocks of a GGUF file are quantized again (`requantization_error` of the result says how much that changes).
    double_quant, block_size
        Details of NF4: quantize the scales too; weights per scale.
    dtype : optional
        Convert dense matrices; by default they stay as in the file (float16 becomes float32, which loses nothing).
    progress : bool, optional
        Show a bar on standard error; by default only on a terminal.
    trainable : "none", "full" or "head"
        "full" makes every weight a float32 parameter, "head" only lm_head. A head tied to the embedding becomes
        a copy of its own, and a saved folder then says `"tie_word_embeddings": false`.
    resize_embedding : bool
        Give the embedding and the head rows for tokens that only the tokenizer has, each the mean of the old rows. An
        adapter trains them with `trainable_token_indices=model.added_tokens`.
    revision : str, optional
        Branch, tag or commit of a name on the Hub.

    Raises
    ------
    CheckpointError
        The folder cannot be used; the message says which file, what was expected and what was found.
    """
    _check_load_options(quantize, block_size, dtype, trainable)
    path = find(path, "model", revision, progress)
    with _open_checkpoint(path) as checkpoint:
        if isinstance(checkpoint, Checkpoint):
            checkpoint.config = config_of_files(checkpoint)
        config = dict(checkpoint.config)
        if trainable == "head":
            config["tie_word_embeddings"] = False
        architecture = architecture_of(config)
        options = LoadOptions(quantize == "nf4", double_quant, block_size, DENSE_DTYPES.get(dtype or ""), trainable)
        weights = load_weights(checkpoint, architecture, options, progress)
        tokenizer = None
        if isinstance(checkpoint, GGUFCheckpoint):
            tokenizer = checkpoint.tokenizer()
        elif (checkpoint.path / "tokenizer.json").exists():
            tokenizer = Tokenizer.from_folder(checkpoint.path, config)
        quantized = next((w for w in weights.values.values() if isinstance(w, NF4Tensor)), None)
        nf4 = (quantized.block_size, quantized.double_quant) if quantized is not None else (block_size, double_quant)
        model = Model(config, architecture, weights, checkpoint.path, tokenizer, nf4)
        tell_adapter_beside(checkpoint.path)
        if architecture.family.text_of and progress is not False:
            print(f"{path}: only the text model is read, the part for images is left out", file=sys.stderr)
        _report_requantization(model, progress)
        if resize_embedding:
            model.resize_embedding(max(rows_for(model.tokenizer), architecture.decoder_kwargs["vocab_size"]))
        return model


def _report_requantization(model: Model, progress: bool | None) -> None:
    if model.requantization_error is not None and progress is not False:
        change = 100 * model.requantization_error
        print(f"Quantized again to NF4: the weights change by {change:.2f} % (relative norm)", file=sys.stderr)


def _open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint | GGUFCheckpoint:
    if is_gguf(path):
        return GGUFCheckpoint(path)
    if os.path.isfile(path):
        raise CheckpointError(
            f"{path}: expected a model folder or a GGUF file, got a file of another kind; give the folder of config.json"
        )
    return Checkpoint(path)


def _check_load_options(quantize: Any, block_size: Any, dtype: Any, trainable: Any) -> None:
    if quantize not in (None, "nf4"):
        raise ConfigError(f"quantize: expected None or 'nf4', got {quantize!r}")
    if block_size not in NF4_BLOCK_SIZES:
        raise ConfigError(f"block_size: expected one of {', '.join(map(str, NF4_BLOCK_SIZES))}, got {block_size!r}")
    if dtype not in (None, *DENSE_DTYPES):
        raise ConfigError(f"dtype: expected None, 'float32' or 'bfloat16', got {dtype!r}")
    if trainable not in ("none", "full", "head"):
        raise ConfigError(f"trainable: expected 'none', 'full' or 'head', got {trainable!r}")
    if trainable == "full" and quantize:
        raise ConfigError(
            "trainable: expected 'none' or 'head' with quantize='nf4', got 'full'; NF4 weights cannot be trained"
        )
