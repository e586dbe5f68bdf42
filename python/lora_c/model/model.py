"""A language model: weights from a folder, a decoder, a tokenizer, and adapters of which one is in use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._core import Decoder, Parameter
from ..adapters import Adapter, AdapterSet, LoadedAdapter
from ..checkpoints.prequantized import QuantRecord
from ..configs import AdapterConfig
from ..errors import CheckpointError
from ..families.architectures import Architecture, architecture_of
from ..foreign_names import OF_MODEL, missing
from ..generation.generation_file import read_generation_options
from ..notices import tell
from ..text.ends import find_ends
from ..text.tokenizer import Tokenizer
from ..weights.kinds import Weights, dense
from ..weights.parameter_values import set_values
from ..weights.parts import Parts
from ..weights.quantization import NF4, Quantization
from . import adapter_methods, classification, counts, measures, merge, peft_methods, saving, shown, text_methods
from . import resize_embedding as resizing
from .base_weights import BaseWeights
from .merge_in_place import InPlaceMerge


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
        Where the blocks of a GGUF file were quantized again: the norm of the change relative to that of the weights.
    """

    def __init__(
        self, config: dict[str, Any], architecture: Architecture, weights: Weights, source: Path,
        tokenizer: Tokenizer | None, quantization: Quantization = NF4, ends: frozenset[int] | None = None,
        device: str = "cpu",
    ) -> None:  # fmt: skip
        self.config = config
        self.architecture = architecture
        self.source = source
        self.weights: dict[str, Any] = weights.values
        self.stored_dtypes = weights.stored_dtypes
        self.quant_records: dict[str, QuantRecord] = weights.records
        self.quantization = quantization
        self.base = BaseWeights(architecture, weights, source, quantization)
        self.requantization_error = weights.requantized.relative if weights.requantized else None
        self.merged: InPlaceMerge | None = None
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
        self.told_settings = False
        self.load_options: dict[str, Any] = {}  # what `load_model` was given, but for the path and the device
        self.last_seed: int | None = None
        self.generation_options = read_generation_options(source)
        self.added_tokens: list[int] = []
        self.eos_token_ids = ends if ends is not None else self._find_ends()
        self.tell_tokenizer()

    # -- what it is ---------------------------------------------------------------------------------------------------

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer; a folder without one is refused here, when it is needed."""
        if self._tokenizer is None:
            self._tokenizer = Tokenizer.from_folder(self.source, self.config)
            self.tell_tokenizer()
        return self._tokenizer

    def tell_tokenizer(self) -> None:
        """Let the tokenizer know the model's sizes, so that data which cannot fit is refused where it is read."""
        if self._tokenizer is not None:
            self._tokenizer.model_vocab_size = int(self.architecture.decoder_kwargs["vocab_size"])
            self._tokenizer.model_context_length = self.context_length
            self._tokenizer.model_labels = self.labels

    @property
    def has_tokenizer(self) -> bool:
        """Whether the folder came with a tokenizer."""
        return self._tokenizer is not None

    @property
    def device(self) -> str:
        """The name of the device that it computes on, where its parameters lie; frozen weights are in memory, too."""
        return self.decoder.device

    @property
    def is_merged(self) -> bool:
        """Whether `merge_adapter` has folded the adapter in use into the weights."""
        return self.merged is not None

    def free_activations(self) -> None:
        """Give back the memory that passes work in; the next one takes what it needs.

        Passes keep it for the next one, and give it back by themselves when smaller ones have followed for a while.
        `Trainer.train` frees it at its end.
        """
        self.decoder.free_activations()

    is_quantized = property(counts.is_quantized)
    labels = property(classification.labels)
    context_length = property(counts.context_length)
    context_with = counts.context_with
    num_parameters = counts.num_parameters
    dense_bytes = counts.dense_bytes
    trainable_parameters = counts.trainable_parameters
    __repr__ = shown.text
    _repr_html_ = shown.html

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
    def adapter_config(self) -> AdapterConfig | None:
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

    add_adapter = adapter_methods.add_adapter
    load_adapter = adapter_methods.load_adapter
    add_weighted_adapter = adapter_methods.add_weighted_adapter
    set_adapter = adapter_methods.set_adapter
    save_adapter = adapter_methods.save_adapter
    delete_adapter = adapter_methods.delete_adapter
    disable_adapter = peft_methods.disable_adapter
    get_nb_trainable_parameters = peft_methods.get_nb_trainable_parameters
    print_trainable_parameters = peft_methods.print_trainable_parameters

    def dense_weight(self, name: str) -> Any:
        """Return one of the base's weights as an array (quantized ones as float32).

        Parameters
        ----------
        name : str
            One of `model.weights`.
        """
        return dense(self.weights[name])

    resize_embedding = resizing.resize_embedding

    def replace_weight(self, name: str, array: NDArray[np.float32]) -> None:
        """Put another array in the place of one of the base's weights, as float32. Nothing else writes them.

        Parameters
        ----------
        name : str
            One of `model.weights`.
        array : ndarray
            Of the same shape.
        """
        weight = self.weights[name]
        if isinstance(weight, Parameter):
            set_values(weight, array)
        else:
            self.weights[name] = array  # a new array: other models may share the old one
            self.parts.set_weight(name, array)
        self.stored_dtypes[name] = np.dtype(np.float32)

    # -- merging ------------------------------------------------------------------------------------------------------

    def merge(self, dtype: merge.MergeDtype = "float32") -> Model:
        """Return a new model whose weights are W + s B A; this one keeps its adapter.

        Parameters
        ----------
        dtype : {"float32", "bfloat16", "float16", "nf4", "fp4", "fp4_e2m1", "int4", "q8_0"}
            Type of the merged matrices.

        Raises
        ------
        AdapterError
            There is no adapter, or a merged weight is not finite.
        """
        return merge.merge_model(self, dtype)

    merge_and_unload = peft_methods.merge_and_unload
    merge_adapter = adapter_methods.merge_adapter
    unmerge_adapter = adapter_methods.unmerge_adapter

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
        kept = {name for name in self.base.weights.quantized_here if weights.get(name) is self.weights[name]}
        return Model(
            config, architecture_of(config), Weights(weights, stored, records, quantized_here=kept), self.source,
            self._tokenizer, self.quantization, self.eos_token_ids, self.device,
        )  # fmt: skip

    # -- text and files -----------------------------------------------------------------------------------------------

    generate = text_methods.generate
    stream = text_methods.stream
    loss = measures.loss
    log_probs = measures.log_probs
    logits = measures.logits
    hidden_states = measures.hidden_states
    embed = measures.embed
    classify = classification.classify
    generation_config = property(text_methods.generation_config)

    save = saving.save
