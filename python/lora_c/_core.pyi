"""Types of the extension. The docstrings are in the extension: ``help(lora_c.NF4Tensor.quantize)``.

Arrays are C-contiguous unless a docstring says otherwise; ``_Weight`` and ``_Ids`` say what an argument may be.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os import PathLike
from typing import Any, Literal, TypeAlias, TypedDict, final, overload, type_check_only

import numpy as np
from numpy.typing import NDArray

_F32: TypeAlias = NDArray[np.float32]
_Array: TypeAlias = Any  # an object with the buffer protocol; bfloat16 arrays of ml_dtypes have no static type
_Weight: TypeAlias = Any  # NF4Tensor, GGMLTensor, Parameter, or a float32 or bfloat16 array
_Ids: TypeAlias = Any  # int32 or int64 array, or a list of int
_DType: TypeAlias = Any  # "float32", "float16", "bfloat16", or the NumPy types and dtypes of these names

@type_check_only
class _Device(TypedDict):
    name: str
    description: str
    reason: str

class DeviceError(RuntimeError): ...
class PassStopped(RuntimeError): ...

DECODE_BATCH: int  # up to so many tokens in a call of Decoder.decode, the logits of each have the bits that it gets alone

def set_num_threads(n: int, /) -> None: ...
def get_num_threads() -> int: ...
def set_isa(name: str, /) -> None: ...
def get_isa() -> str: ...
def devices() -> list[_Device]: ...
def transfers(device: str = "cpu", /) -> dict[str, int]: ...
def set_precision(name: str, /) -> None: ...
def get_precision() -> str: ...
def set_fast_operands(name: str, /) -> None: ...
def get_fast_operands() -> str: ...
def supported_isas() -> list[str]: ...
def memory_report(device: str = "cpu", /) -> dict[str, dict[str, int]]: ...
def reset_peak_memory(device: str = "cpu", /) -> None: ...
def memory_info(device: str = "cpu", /) -> dict[str, int | None]: ...
def memory_left(root: str = "", with_swap: bool = False, /) -> int | None: ...
def set_profiling(on: object, /) -> None: ...
def profile_report() -> dict[str, dict[str, float]]: ...
def fma_peak() -> float: ...

@final
class NF4Tensor:
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def block_size(self) -> int: ...
    @property
    def double_quant(self) -> bool: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def codes(self) -> NDArray[np.uint8]: ...
    @property
    def absmax(self) -> _F32 | None: ...
    @property
    def absmax_codes(self) -> NDArray[np.uint8] | None: ...
    @property
    def nested_absmax(self) -> _F32 | None: ...
    @property
    def nested_offset(self) -> float: ...
    @property
    def nested_map(self) -> _F32 | None: ...
    @property
    def nested_block_size(self) -> int: ...
    @property
    def quant_type(self) -> str: ...
    @property
    def lut(self) -> _F32: ...
    @classmethod
    def quantize(
        cls,
        w: _Array,
        /,
        *,
        block_size: int = 64,
        double_quant: bool = True,
        quant_type: str = "nf4",
        device: str = "cpu",
    ) -> NF4Tensor: ...
    @classmethod
    def from_parts(
        cls,
        codes: _Array,
        shape: tuple[int, int],
        *,
        block_size: int = 64,
        absmax: _Array | None = None,
        absmax_codes: _Array | None = None,
        nested_absmax: _Array | None = None,
        nested_map: _Array | None = None,
        nested_offset: float = 0.0,
        nested_block_size: int = 256,
        quant_type: str = "nf4",
        lut: _Array | None = None,
    ) -> NF4Tensor: ...
    def _repr_html_(self) -> str: ...
    def dequantize(self, *, dtype: _DType = "float32", out: _Array | None = None) -> NDArray[Any]: ...
    if sys.version_info >= (3, 12):
        def __buffer__(self, flags: int, /) -> memoryview: ...

@final
class GGMLTensor:
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def type(self) -> str: ...
    @property
    def block_size(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def owns_blocks(self) -> bool: ...
    @property
    def blocks(self) -> NDArray[np.uint8]: ...
    @classmethod
    def from_blocks(cls, blocks: _Array, shape: tuple[int, int], type: str) -> GGMLTensor: ...
    @classmethod
    def quantize(cls, w: _Array, /, *, type: str = "Q8_0") -> GGMLTensor: ...
    def _repr_html_(self) -> str: ...
    def dequantize(self, *, dtype: _DType = "float32", out: _Array | None = None) -> NDArray[Any]: ...
    if sys.version_info >= (3, 12):
        def __buffer__(self, flags: int, /) -> memoryview: ...

@final
class Parameter:
    data: _F32
    grad: _F32 | None
    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def size(self) -> int: ...
    @property
    def requires_grad(self) -> bool: ...
    @property
    def device(self) -> str: ...
    def __new__(cls, data: _Array, *, name: str = "", requires_grad: bool = True, device: str = "cpu") -> Parameter: ...
    def read(self) -> _F32: ...
    def read_grad(self) -> _F32 | None: ...
    def write(self, data: _Array, /) -> None: ...
    def to(self, device: str, /) -> _F32: ...
    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...
    @classmethod
    def block(
        cls,
        shapes: Iterable[Sequence[int]],
        /,
        *,
        names: Iterable[str] | None = None,
        requires_grad: bool = True,
        device: str = "cpu",
    ) -> list[Parameter]: ...
    def zero_grad(self) -> None: ...
    if sys.version_info >= (3, 12):
        def __buffer__(self, flags: int, /) -> memoryview: ...

@final
class LoRALinear:
    @property
    def A(self) -> Parameter: ...
    @property
    def B(self) -> Parameter: ...
    @property
    def magnitude(self) -> Parameter | None: ...
    @property
    def base(self) -> _Weight: ...
    @property
    def in_features(self) -> int: ...
    @property
    def out_features(self) -> int: ...
    @property
    def r(self) -> int: ...
    @property
    def lora_alpha(self) -> float: ...
    @property
    def scaling(self) -> float: ...
    @property
    def lora_dropout(self) -> float: ...
    def __new__(
        cls,
        base: _Weight,
        r: int = 8,
        *,
        lora_alpha: float = 8.0,
        lora_dropout: float = 0.0,
        bias: _Array | None = None,
        A: _Array | None = None,
        B: _Array | None = None,
        seed: int = 0,
        use_rslora: bool = False,
        use_dora: bool = False,
        magnitude: _Array | None = None,
    ) -> LoRALinear: ...
    def forward(self, x: _Array, /, *, out: _Array | None = None, training: bool = False, step: int | None = None) -> _F32: ...
    def backward(
        self, dy: _Array, x: _Array, /, *, out: _Array | None = None, training: bool = False, step: int | None = None
    ) -> _F32: ...
    def __call__(
        self, x: _Array, /, *, out: _Array | None = None, training: bool = False, step: int | None = None
    ) -> _F32: ...
    def _repr_html_(self) -> str: ...
    def parameters(self) -> list[Parameter]: ...
    def merge(self, *, sign: float = 1.0) -> _F32: ...
    if sys.version_info >= (3, 12):
        def __buffer__(self, flags: int, /) -> memoryview: ...

@final
class AdamW:
    lr: float
    @property
    def weight_decay(self) -> float: ...
    @property
    def step_count(self) -> int: ...
    @property
    def moment_names(self) -> tuple[str, ...]: ...
    @property
    def betas(self) -> tuple[float, float]: ...
    @property
    def eps(self) -> float: ...
    def __new__(
        cls,
        params: Sequence[Parameter] | Iterator[Parameter],
        lr: float = 1e-4,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        no_decay: Sequence[Parameter] = (),
        lr_ratios: Sequence[float] | None = None,
        paged_folder: str | PathLike[str] | None = None,
    ) -> AdamW: ...
    def step(
        self, *, lr: float | None = None, grad_scale: float = 1.0, max_grad_norm: float | None = None,
        skip_grad_norm: float | None = None,
    ) -> float: ...  # fmt: skip
    def zero_grad(self) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any], /) -> None: ...
    def moment(self, index: int, name: str, /) -> NDArray[Any] | None: ...
    def moment_shape(self, index: int, name: str, /) -> tuple[int, ...] | None: ...
    def set_moment(self, index: int, name: str, array: NDArray[Any] | None, /) -> None: ...
    def set_step_count(self, step: int, /) -> None: ...

@final
class AdamW8bit:
    lr: float
    @property
    def weight_decay(self) -> float: ...
    @property
    def step_count(self) -> int: ...
    @property
    def moment_names(self) -> tuple[str, ...]: ...
    @property
    def betas(self) -> tuple[float, float]: ...
    @property
    def eps(self) -> float: ...
    def __new__(
        cls,
        params: Sequence[Parameter] | Iterator[Parameter],
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        min_8bit_size: int = 4096,
        no_decay: Sequence[Parameter] = (),
        lr_ratios: Sequence[float] | None = None,
        paged_folder: str | PathLike[str] | None = None,
    ) -> AdamW8bit: ...
    def step(
        self, *, lr: float | None = None, grad_scale: float = 1.0, max_grad_norm: float | None = None,
        skip_grad_norm: float | None = None,
    ) -> float: ...  # fmt: skip
    def zero_grad(self) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any], /) -> None: ...
    def moment(self, index: int, name: str, /) -> NDArray[Any] | None: ...
    def moment_shape(self, index: int, name: str, /) -> tuple[int, ...] | None: ...
    def set_moment(self, index: int, name: str, array: NDArray[Any] | None, /) -> None: ...
    def set_step_count(self, step: int, /) -> None: ...

@final
class SGD:
    lr: float
    @property
    def weight_decay(self) -> float: ...
    @property
    def step_count(self) -> int: ...
    @property
    def moment_names(self) -> tuple[str, ...]: ...
    @property
    def momentum(self) -> float: ...
    def __new__(
        cls,
        params: Sequence[Parameter] | Iterator[Parameter],
        lr: float = 1e-3,
        *,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        no_decay: Sequence[Parameter] = (),
        lr_ratios: Sequence[float] | None = None,
    ) -> SGD: ...
    def step(
        self, *, lr: float | None = None, grad_scale: float = 1.0, max_grad_norm: float | None = None,
        skip_grad_norm: float | None = None,
    ) -> float: ...  # fmt: skip
    def zero_grad(self) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any], /) -> None: ...
    def moment(self, index: int, name: str, /) -> NDArray[Any] | None: ...
    def moment_shape(self, index: int, name: str, /) -> tuple[int, ...] | None: ...
    def set_moment(self, index: int, name: str, array: NDArray[Any] | None, /) -> None: ...
    def set_step_count(self, step: int, /) -> None: ...

@final
class Lion:
    lr: float
    @property
    def weight_decay(self) -> float: ...
    @property
    def step_count(self) -> int: ...
    @property
    def moment_names(self) -> tuple[str, ...]: ...
    @property
    def betas(self) -> tuple[float, float]: ...
    def __new__(
        cls,
        params: Sequence[Parameter] | Iterator[Parameter],
        lr: float = 1e-4,
        *,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        no_decay: Sequence[Parameter] = (),
        lr_ratios: Sequence[float] | None = None,
    ) -> Lion: ...
    def step(
        self, *, lr: float | None = None, grad_scale: float = 1.0, max_grad_norm: float | None = None,
        skip_grad_norm: float | None = None,
    ) -> float: ...  # fmt: skip
    def zero_grad(self) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any], /) -> None: ...
    def moment(self, index: int, name: str, /) -> NDArray[Any] | None: ...
    def moment_shape(self, index: int, name: str, /) -> tuple[int, ...] | None: ...
    def set_moment(self, index: int, name: str, array: NDArray[Any] | None, /) -> None: ...
    def set_step_count(self, step: int, /) -> None: ...

@final
class Adafactor:
    lr: float
    @property
    def weight_decay(self) -> float: ...
    @property
    def step_count(self) -> int: ...
    @property
    def moment_names(self) -> tuple[str, ...]: ...
    def __new__(
        cls,
        params: Sequence[Parameter] | Iterator[Parameter],
        lr: float | None = None,
        *,
        eps: tuple[float, float] = (1e-30, 1e-3),
        clip_threshold: float = 1.0,
        decay_rate: float = -0.8,
        beta1: float | None = None,
        weight_decay: float = 0.0,
        scale_parameter: bool = True,
        relative_step: bool = True,
        warmup_init: bool = False,
        no_decay: Sequence[Parameter] = (),
        lr_ratios: Sequence[float] | None = None,
    ) -> Adafactor: ...
    def step(
        self, *, lr: float | None = None, grad_scale: float = 1.0, max_grad_norm: float | None = None,
        skip_grad_norm: float | None = None,
    ) -> float: ...  # fmt: skip
    def zero_grad(self) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any], /) -> None: ...
    def moment(self, index: int, name: str, /) -> NDArray[Any] | None: ...
    def moment_shape(self, index: int, name: str, /) -> tuple[int, ...] | None: ...
    def set_moment(self, index: int, name: str, array: NDArray[Any] | None, /) -> None: ...
    def set_step_count(self, step: int, /) -> None: ...

@final
class Muon:
    lr: float
    @property
    def weight_decay(self) -> float: ...
    @property
    def step_count(self) -> int: ...
    @property
    def moment_names(self) -> tuple[str, ...]: ...
    @property
    def momentum(self) -> float: ...
    @property
    def betas(self) -> tuple[float, float]: ...
    def __new__(
        cls,
        params: Sequence[Parameter] | Iterator[Parameter],
        lr: float = 1e-3,
        *,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        adamw: Sequence[Parameter] = (),
        betas: tuple[float, float] = (0.9, 0.999),
        adamw_eps: float = 1e-8,
        no_decay: Sequence[Parameter] = (),
        lr_ratios: Sequence[float] | None = None,
    ) -> Muon: ...
    def step(
        self, *, lr: float | None = None, grad_scale: float = 1.0, max_grad_norm: float | None = None,
        skip_grad_norm: float | None = None,
    ) -> float: ...  # fmt: skip
    def zero_grad(self) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any], /) -> None: ...
    def moment(self, index: int, name: str, /) -> NDArray[Any] | None: ...
    def moment_shape(self, index: int, name: str, /) -> tuple[int, ...] | None: ...
    def set_moment(self, index: int, name: str, array: NDArray[Any] | None, /) -> None: ...
    def set_step_count(self, step: int, /) -> None: ...

@final
class KVCache:
    @property
    def n_sequences(self) -> int: ...
    @property
    def max_tokens(self) -> int: ...
    def length(self, sequence: int = 0, /) -> int: ...
    def truncate(self, sequence: int, length: int, /) -> None: ...

@final
class DecoderAdapters:
    @property
    def device(self) -> str: ...
    def set(self, name: str, A: Parameter, B: Parameter, /, *, scale: float, row: int | None = None) -> None: ...
    def remove(self, name: str, /) -> None: ...

@type_check_only
class _NonFinite(TypedDict):
    operation: str
    result: str
    weight: str
    layer: int
    backward: bool
    row: int
    column: int
    value: float

@final
class Decoder:
    recompute: Literal["none", "layer"]
    activation_dtype: Literal["float32", "bfloat16"]
    precision: Literal["exact", "fast"]
    noise: tuple[float, int]  # (alpha, seed) of the noise on embedded tokens in forward_backward(); alpha 0: none
    stopping: bool  # while True, passes end between two layers with PassStopped
    watching: bool  # while True, passes look for the first value that is not finite
    @property
    def first_nonfinite(self) -> _NonFinite | None: ...
    @property
    def virtual_tokens(self) -> int: ...
    @property
    def config(self) -> dict[str, Any]: ...
    def __new__(
        cls,
        *,
        hidden_size: int,
        intermediate_size: int,
        num_hidden_layers: int,
        num_attention_heads: int,
        num_key_value_heads: int,
        head_dim: int,
        vocab_size: int,
        max_position_embeddings: int,
        norm_eps: float,
        norm: Literal["rms", "layer"] = "rms",
        norm_weight_offset: float = 0.0,
        pre_norm: bool = True,
        post_norm: bool = False,
        qk_norm: Literal["none", "head", "row"] = "none",
        activation: Literal["silu", "gelu_tanh"] = "silu",
        gated_mlp: bool = True,
        learned_positions: bool = False,
        tie_word_embeddings: bool = False,
        embedding_scale: float = 1.0,
        residual_scale: float = 1.0,
        attention_scale: float = 0.0,
        attention_softcap: float = 0.0,
        logit_scale: float = 1.0,
        logit_softcap: float = 0.0,
        sliding_window: int | Sequence[int] = 0,
        rope_inv_freq: Any = None,
        rope_scale: float = 1.0,
        second_rope_inv_freq: Any = None,
        second_rope_scale: float = 1.0,
        layer_rope: Sequence[int] | None = None,
        rope_switch: int = 0,
        num_labels: int = 0,
        problem_type: Literal[
            "single_label_classification", "regression", "multi_label_classification"
        ] = "single_label_classification",
        device: str = "cpu",
    ) -> Decoder: ...
    @property
    def device(self) -> str: ...
    def set_weight(self, name: str, weight: _Weight, /, *, row: int | None = None) -> None: ...
    def set_adapter(
        self,
        name: str,
        A: Parameter,
        B: Parameter,
        /,
        *,
        scale: float,
        dropout: float = 0.0,
        seed: int = 0,
        magnitude: Parameter | None = None,
        row: int | None = None,
    ) -> None: ...
    def set_token_rows(self, ids: _Ids | None, rows: Parameter | None, /) -> None: ...
    def set_virtual_tokens(
        self,
        kind: Literal["prompt", "prefix"] | None,
        values: Parameter | Sequence[Parameter] | None = None,
        /,
        *,
        scale: float = 1.0,
    ) -> None: ...
    def remove_adapter(self, name: str, /) -> None: ...
    def set_scaling(self, name: str, l: Parameter, /, *, input: bool = False, row: int | None = None) -> None: ...
    def remove_scaling(self, name: str, /) -> None: ...
    def set_bottleneck(
        self,
        name: str,
        down: Parameter,
        down_bias: Parameter,
        up: Parameter,
        up_bias: Parameter,
        /,
        *,
        scale: float = 1.0,
        activation: Literal["silu", "gelu_tanh", "relu"] = "relu",
    ) -> None: ...
    def remove_bottleneck(self, name: str, /) -> None: ...
    def forward_backward(
        self,
        input_ids: _Ids,
        cu_seqlens: _Ids,
        targets: _Ids | _Array,
        loss_weight: _Array,
        /,
        *,
        grad_scale: float = 1.0,
        dropout_step: int | None = None,
    ) -> float: ...
    def loss(
        self,
        input_ids: _Ids,
        cu_seqlens: _Ids,
        targets: _Ids | _Array,
        loss_weight: _Array,
        /,
        *,
        token_loss: _Array | None = None,
    ) -> float: ...
    def logits(self, input_ids: _Ids, cu_seqlens: _Ids | None = None, /) -> _F32: ...
    def last_logits(self, input_ids: _Ids, cu_seqlens: _Ids | None = None, /) -> _F32: ...
    def hidden_states(self, input_ids: _Ids, layer: int, cu_seqlens: _Ids | None = None, /) -> _F32: ...
    def free_activations(self) -> None: ...
    def arena_bytes(self, n_tokens: int, /, *, training: bool = True) -> int: ...
    def scratch_bytes(self, n_tokens: int, /) -> int: ...
    def new_cache(self, max_tokens: int, n_sequences: int = 1, /) -> KVCache: ...
    def new_adapters(self, /) -> DecoderAdapters: ...
    def decode(
        self,
        cache: KVCache,
        input_ids: _Ids,
        /,
        *,
        cu_seqlens: _Ids | None = None,
        sequences: _Ids | None = None,
        precision: Literal["exact", "fast"] | None = None,
        adapters: Iterable[DecoderAdapters | None] | None = None,
    ) -> _F32: ...

def rmsnorm(x: _Array, weight: _Array, /, *, eps: float = 1e-5, weight_offset: float = 0.0) -> _F32: ...
def rmsnorm_backward(
    dy: _Array, x: _Array, weight: _Array, /, *, eps: float = 1e-5, weight_offset: float = 0.0
) -> tuple[_F32, _F32]: ...
def layernorm(x: _Array, weight: _Array, bias: _Array, /, *, eps: float = 1e-5) -> _F32: ...
def layernorm_backward(dy: _Array, x: _Array, weight: _Array, /, *, eps: float = 1e-5) -> tuple[_F32, _F32, _F32]: ...
def rope(x: _Array, positions: _Ids, inv_freq: Any, /, *, scale: float = 1.0) -> _F32: ...
def rope_backward(dy: _Array, positions: _Ids, inv_freq: Any, /, *, scale: float = 1.0) -> _F32: ...
def attention(
    q: _Array,
    k: _Array,
    v: _Array,
    cu_seqlens: _Ids,
    /,
    *,
    scale: float | None = None,
    sliding_window: int = 0,
    softcap: float = 0.0,
) -> _F32: ...
def attention_backward(
    dout: _Array,
    q: _Array,
    k: _Array,
    v: _Array,
    cu_seqlens: _Ids,
    /,
    *,
    scale: float | None = None,
    sliding_window: int = 0,
    softcap: float = 0.0,
) -> tuple[_F32, _F32, _F32]: ...
def swiglu(gate: _Array, up: _Array | None = None, /) -> _F32: ...
@overload
def swiglu_backward(dh: _Array, gate: _Array, /) -> _F32: ...
@overload
def swiglu_backward(dh: _Array, gate: _Array, up: _Array, /) -> tuple[_F32, _F32]: ...
def reglu(gate: _Array, up: _Array | None = None, /) -> _F32: ...
@overload
def reglu_backward(dh: _Array, gate: _Array, /) -> _F32: ...
@overload
def reglu_backward(dh: _Array, gate: _Array, up: _Array, /) -> tuple[_F32, _F32]: ...
def scale_columns(x: _Array, l: _Array, /) -> _F32: ...
def scale_columns_backward(dy: _Array, x: _Array, l: _Array, /) -> tuple[_F32, _F32]: ...
def geglu(gate: _Array, up: _Array | None = None, /) -> _F32: ...
@overload
def geglu_backward(dh: _Array, gate: _Array, /) -> _F32: ...
@overload
def geglu_backward(dh: _Array, gate: _Array, up: _Array, /) -> tuple[_F32, _F32]: ...
def embedding(ids: _Ids, w: _Weight, /) -> _F32: ...
def embedding_backward(ids: _Ids, dy: _Array, vocab_size: int, /) -> _F32: ...
def linear(x: _Array, w: _Weight, /, bias: _Array | None = None) -> _F32: ...
@overload
def linear_backward(dy: _Array, w: _Weight, /, x: None = None) -> _F32: ...
@overload
def linear_backward(dy: _Array, w: _Weight, /, x: _Array) -> tuple[_F32, _F32, _F32]: ...
@overload
def cross_entropy(
    x: _Array,
    w: _Weight,
    targets: _Ids,
    loss_weight: _Array,
    /,
    *,
    gradients: Literal[False] = False,
    grad_scale: float = 1.0,
    logit_scale: float = 1.0,
    logit_softcap: float = 0.0,
) -> float: ...
@overload
def cross_entropy(
    x: _Array,
    w: _Weight,
    targets: _Ids,
    loss_weight: _Array,
    /,
    *,
    gradients: Literal[True],
    grad_scale: float = 1.0,
    logit_scale: float = 1.0,
    logit_softcap: float = 0.0,
) -> tuple[float, _F32, _F32]: ...
@overload
def values_loss(
    y: _Array,
    values: _Array,
    loss_weight: _Array,
    /,
    *,
    kind: Literal["squared_error", "binary_entropy"],
    gradients: Literal[False] = False,
    grad_scale: float = 1.0,
) -> float: ...
@overload
def values_loss(
    y: _Array,
    values: _Array,
    loss_weight: _Array,
    /,
    *,
    kind: Literal["squared_error", "binary_entropy"],
    gradients: Literal[True],
    grad_scale: float = 1.0,
) -> tuple[float, _F32]: ...
def adamw_step(
    p: _Array,
    g: _Array,
    m: _Array,
    v: _Array,
    /,
    *,
    step: int,
    lr: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    grad_scale: float = 1.0,
) -> None: ...
def sum_of_squares(g: _Array, /) -> float: ...
