"""A language model: weights from a folder, a decoder, a tokenizer, and adapters of which one is in use."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .._core import Decoder, GGMLTensor, NF4Tensor, Parameter
from ..adapters import Adapter, AdapterSet, LoadedAdapter
from ..checkpoints.config_and_files import config_of_files
from ..checkpoints.folder import Checkpoint
from ..checkpoints.model_names import find
from ..checkpoints.prequantized import QuantRecord
from ..checkpoints.tied_head import stored_name
from ..checkpoints.written import tell_adapter_beside
from ..configs import GenerationConfig, LoraConfig
from ..errors import CheckpointError
from ..families.architectures import Architecture, architecture_of
from ..files.paths import expand
from ..foreign_names import OF_MODEL, missing
from ..generation.generation_file import GENERATION_FILE, generation_config_of, read_generation_options
from ..gguf.checkpoint import GGUFCheckpoint
from ..gguf.reader import is_gguf
from ..notices import tell
from ..text.ends import find_ends
from ..text.tokenizer import Tokenizer
from ..weights.kinds import Weights, dense
from ..weights.parts import Parts
from . import (
    adapter_methods as model_adapters,
)
from . import (
    measures,
    merge,
    peft_methods,
)
from . import (
    shown as model_shown,
)
from . import (
    text_methods as model_text,
)
from .device_list import open_device
from .load_checks import check_load_options
from .loading import DENSE_DTYPES, LoadOptions, Trainable, in_order, load_weights
from .resize_embedding import resize_embedding, rows_for
from .saving import save_model


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
    last_seed : int or None
        The seed of the latest answer that was drawn, given or not; None after a greedy one.
    added_tokens : list of int
        Rows that the embedding got with `resize_embedding`.
    requantization_error : float or None
        Where the blocks of a GGUF file were quantized to NF4: the norm of the change relative to that of the weights.
    """

    def __init__(
        self, config: dict[str, Any], architecture: Architecture, weights: Weights, source: Path,
        tokenizer: Tokenizer | None, nf4_options: tuple[int, bool] = (64, True), ends: frozenset[int] | None = None,
        device: str = "cpu",
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
        self.is_training = False  # by a Trainer, which allows no second one
        self._tokenizer = tokenizer
        try:
            self.decoder = Decoder(**architecture.decoder_kwargs, device=device)
        except (ValueError, OverflowError) as error:  # numbers of config.json that no single rule forbids
            raise CheckpointError(f"{source}: config.json: {error}") from None
        self.parts = Parts(self.decoder, architecture.weights())
        for name, weight in self.weights.items():
            self.parts.set_weight(name, weight)
        self.adapter_set = AdapterSet(self.parts, self.weights, architecture.tied)
        self.before_merge: dict[str, Any] = {}
        self.told_settings = False
        self.last_seed: int | None = None
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
    def device(self) -> str:
        """The name of the device that it computes on, where its parameters lie; frozen weights are in memory, too."""
        return self.decoder.device

    @property
    def is_quantized(self) -> bool:
        """Whether any weight is NF4."""
        return any(isinstance(weight, NF4Tensor) for weight in self.weights.values())

    def num_parameters(self, only_trainable: bool = False) -> int:
        """Return the number of weights, the adapter's included; tied embeddings count once.

        Parameters
        ----------
        only_trainable : bool
            Count only what training changes.
        """
        if only_trainable:
            return sum(parameter.size for parameter in self.trainable_parameters())
        base = sum(int(np.prod(weight.shape)) for weight in self.weights.values())
        active = self.adapter_set.active
        return base + (sum(parameter.size for parameter in active.parameters()) if active else 0)

    def free_activations(self) -> None:
        """Give back the memory that passes work in; the next one takes what it needs.

        Passes keep it for the next one, and give it back by themselves when smaller ones have followed for a while.
        `Trainer.train` frees it at its end.
        """
        self.decoder.free_activations()

    def dense_bytes(self) -> int:
        """Return the bytes of the weights that are plain arrays or mapped blocks: neither NF4 nor parameters."""
        own = self.adapter_set.active.base if self.adapter_set.active else {}
        return sum(w.nbytes for w in (*self.weights.values(), *own.values()) if isinstance(w, (np.ndarray, GGMLTensor)))

    def trainable_parameters(self) -> list[Parameter]:
        """Return the parameters that training changes, in the order of the forward pass."""
        active = self.adapter_set.active
        idle = active.replaced() if active else {}
        found = [weight for name, weight in self.weights.items() if isinstance(weight, Parameter) and name not in idle]
        found += active.parameters() if active else []
        return [parameter for parameter in found if parameter.requires_grad]

    __repr__ = model_shown.text
    _repr_html_ = model_shown.html

    def __getattr__(self, name: str) -> Any:  # only for what is not there
        raise AttributeError(missing("Model", name, OF_MODEL), name=name, obj=self)

    def _find_ends(self) -> frozenset[int]:
        ends = find_ends(self.config, self.generation_options, self._tokenizer)
        if (line := ends.disagreement(self._tokenizer)) is not None:
            tell(f"{self.source}: {line}")
        return ends.ids

    # -- adapters -----------------------------------------------------------------------------------------------------

    @property
    def adapters(self) -> dict[str, LoadedAdapter]:
        """Decoder name to the update of that matrix, of the adapter that is in use."""
        return self.adapter_set.active.layers if self.adapter_set.active else {}

    @property
    def adapter(self) -> Adapter | None:
        """The adapter that is in use, with all that it holds."""
        return self.adapter_set.active

    @property
    def adapter_config(self) -> LoraConfig | None:
        """The configuration of the adapter that is in use."""
        return self.adapter_set.active.config if self.adapter_set.active else None

    @property
    def adapter_names(self) -> list[str]:
        """The names of all adapters on the model."""
        return self.adapter_set.names

    @property
    def active_adapter(self) -> str | None:
        """The name of the adapter in use; None: the base alone."""
        return self.adapter_set.active_name

    add_adapter = model_adapters.add_adapter
    load_adapter = model_adapters.load_adapter
    add_weighted_adapter = model_adapters.add_weighted_adapter
    set_adapter = model_adapters.set_adapter
    save_adapter = model_adapters.save_adapter
    delete_adapter = model_adapters.delete_adapter
    disable_adapter = peft_methods.disable_adapter
    get_nb_trainable_parameters = peft_methods.get_nb_trainable_parameters
    print_trainable_parameters = peft_methods.print_trainable_parameters

    def dense_weight(self, name: str) -> Any:
        """Return one of the base's weights as an array (NF4 as float32).

        Parameters
        ----------
        name : str
            One of `model.weights`.
        """
        return dense(self.weights[name])

    def resize_embedding(self, vocab_size: int) -> None:
        """Give the embedding and the head rows for more tokens; a new one is the mean of the old ones.

        Parameters
        ----------
        vocab_size : int
            The rows that they have then.

        Raises
        ------
        ConfigError
            There are fewer tokens than rows, or the rows are quantized.
        """
        resize_embedding(self, vocab_size)

    def full_precision(self, name: str) -> NDArray[Any]:
        """Return one of the base's weights as its folder has it, where that is still more than what is in memory.

        Parameters
        ----------
        name : str
            One of `model.weights`.
        """
        weight = self.weights[name]
        if isinstance(weight, NF4Tensor) and name not in self.quant_records and (self.source / "config.json").is_file():
            spec = next(spec for spec in self.architecture.weights() if spec.name == name)
            with Checkpoint(self.source) as checkpoint:
                file_name = stored_name(spec, checkpoint.tensors)
                if file_name in checkpoint.tensors:
                    return np.array(in_order(spec, checkpoint.read(file_name)), np.float32)
        return dense(weight)

    def quantize_weight(self, array: NDArray[Any]) -> NF4Tensor:
        """Return a matrix in NF4 with the block size and the double quantization of this model.

        Parameters
        ----------
        array : ndarray
            (out_features, in_features).
        """
        block_size, double_quant = self.nf4_options
        return NF4Tensor.quantize(np.ascontiguousarray(array), block_size=block_size, double_quant=double_quant)

    # -- merging ------------------------------------------------------------------------------------------------------

    def merge(self, dtype: merge.MergeDtype = "float32") -> Model:
        """Return a new model whose weights are W + s B A; this one keeps its adapter.

        Parameters
        ----------
        dtype : {"float32", "bfloat16", "float16", "nf4", "q8_0"}
            Type of the merged matrices.

        Raises
        ------
        AdapterError
            There is no adapter, or a merged weight is not finite.
        """
        return merge.merge_model(self, dtype)

    merge_and_unload = peft_methods.merge_and_unload
    merge_adapter = model_adapters.merge_adapter
    unmerge_adapter = model_adapters.unmerge_adapter

    def with_weights(
        self, weights: dict[str, Any], stored: dict[str, np.dtype[Any]], records: dict[str, QuantRecord],
        config: dict[str, Any] | None = None,
    ) -> Model:  # fmt: skip
        """Return a model with other weights (and another config) and no adapter.

        Parameters
        ----------
        weights, stored, records
            As in `loading.Weights`: decoder name to weight, to the type in the file, to the record of its quantization.
        config : dict, optional
            Another config.json.
        """
        config = dict(self.config) if config is None else config
        return Model(
            config,
            architecture_of(config),
            Weights(weights, stored, records),
            self.source,
            self._tokenizer,
            self.nf4_options,
            self.eos_token_ids,
            self.device,
        )

    # -- text ---------------------------------------------------------------------------------------------------------

    generate = model_text.generate
    stream = model_text.stream
    loss = measures.loss
    log_probs = measures.log_probs
    logits = measures.logits
    hidden_states = measures.hidden_states
    embed = measures.embed

    @property
    def generation_config(self) -> GenerationConfig:
        """How the model's generation_config.json asks for text to be generated; the defaults where there is none.

        Raises
        ------
        CheckpointError
            The file asks for what cannot be.
        """
        return generation_config_of(self.generation_options, str(self.source / GENERATION_FILE))

    # -- files --------------------------------------------------------------------------------------------------------

    def save(
        self, path: str | os.PathLike[str], dtype: Literal["float32", "bfloat16", "float16", "nf4"] | None = None,
        max_shard_bytes: int = 5_000_000_000,
    ) -> None:  # fmt: skip
        """Write a Hugging Face folder, atomically.

        Parameters
        ----------
        path : path
            The folder.
        dtype : optional
            Type of the matrices; by default as they are (NF4 in bitsandbytes' layout, byte for byte as it was read).
        max_shard_bytes : int
            Largest file of weights; several get an index.

        Raises
        ------
        AdapterError
            An adapter is active: a folder of weights cannot hold it.
        """
        save_model(self, expand(path), dtype, max_shard_bytes)


def load_model(
    path: str | os.PathLike[str], quantize: Literal["nf4"] | None = None, double_quant: bool = True, block_size: int = 64,
    dtype: Literal["float32", "bfloat16"] | None = None, progress: bool | None = None, trainable: Trainable = "none",
    resize_embedding: bool = False, revision: str | None = None, device: str = "cpu",
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
    device : str
        What the model computes on, a name of `lora_c.devices()`. What is trained lies there; frozen weights are copied to it.

    Raises
    ------
    CheckpointError
        The folder cannot be used; the message says which file, what was expected and what was found.
    ConfigError
        An option has a value that it cannot have, or there is no device of this name.
    DeviceError
        The device cannot be used.
    """
    check_load_options(quantize, block_size, dtype, trainable)
    open_device(device)
    with open_checkpoint(path, revision, progress) as checkpoint:
        if isinstance(checkpoint, Checkpoint):
            checkpoint.config = config_of_files(checkpoint)
        config = dict(checkpoint.config)
        if trainable == "head":
            config["tie_word_embeddings"] = False
        architecture = architecture_of(config)
        options = LoadOptions(quantize == "nf4", double_quant, block_size, DENSE_DTYPES.get(dtype or ""), trainable, device)
        weights = load_weights(checkpoint, architecture, options, progress)
        tokenizer = None
        if isinstance(checkpoint, GGUFCheckpoint):
            tokenizer = checkpoint.tokenizer()
        elif (checkpoint.path / "tokenizer.json").exists():
            tokenizer = Tokenizer.from_folder(checkpoint.path, config)
        quantized = next((w for w in weights.values.values() if isinstance(w, NF4Tensor)), None)
        nf4 = (quantized.block_size, quantized.double_quant) if quantized is not None else (block_size, double_quant)
        model = Model(config, architecture, weights, checkpoint.path, tokenizer, nf4, device=device)
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


def open_checkpoint(
    path: str | os.PathLike[str], revision: str | None = None, progress: bool | None = None
) -> Checkpoint | GGUFCheckpoint:
    """Open a model folder or a GGUF file by its path or name; nothing of its weights is read."""
    path = find(path, "model", revision, progress)
    if is_gguf(path):
        return GGUFCheckpoint(path)
    if os.path.isfile(path):
        raise CheckpointError(
            f"{path}: expected a model folder or a GGUF file, got a file of another kind; give the folder of config.json"
        )
    return Checkpoint(path)
