"""The mathematics of every operation in float64 NumPy: the oracle of the tests and the documentation of the formulas.

Every function computes in float64 whatever it is given, keeps nothing, and is written to be read. Letters: M tokens,
K in_features, N out_features, R rank, H hidden size, D head_dim, V vocabulary, G block size. ``d<name>`` is the gradient
of the loss with respect to ``<name>``.
"""

from __future__ import annotations

from .attention import attention, attention_backward, softcap, softcap_slope
from .decoder import decoder_logits, hidden_states, prefix_encoder, prefix_encoder_backward
from .linear import dora_linear, dora_linear_backward, dora_norm, linear, lora_linear, lora_linear_backward
from .loss import (
    embedding,
    embedding_backward,
    linear_cross_entropy,
    linear_cross_entropy_backward,
    values_loss,
    values_loss_backward,
)
from .mlp import (
    bottleneck,
    bottleneck_backward,
    geglu,
    geglu_backward,
    gelu,
    reglu,
    reglu_backward,
    relu,
    scale_columns,
    scale_columns_backward,
    silu,
    swiglu,
    swiglu_backward,
)
from .noise import neftune_noise, philox_uniform
from .norms import layernorm, layernorm_backward, rmsnorm, rmsnorm_backward, rope
from .optimizers import adafactor_step, adamw_step, global_norm, lion_step, muon_step, newton_schulz, sgd_step
from .quantization import (
    dynamic_decode,
    dynamic_encode,
    dynamic_map,
    four_bit_values,
    nf4_dequantize,
    nf4_quantize,
    q8_0_dequantize,
    q8_0_quantize,
)

__all__ = [
    "four_bit_values",
    "nf4_quantize",
    "nf4_dequantize",
    "q8_0_quantize",
    "q8_0_dequantize",
    "linear",
    "lora_linear",
    "lora_linear_backward",
    "dora_norm",
    "dora_linear",
    "dora_linear_backward",
    "rmsnorm",
    "rmsnorm_backward",
    "layernorm",
    "layernorm_backward",
    "rope",
    "silu",
    "swiglu",
    "swiglu_backward",
    "gelu",
    "geglu",
    "geglu_backward",
    "relu",
    "reglu",
    "reglu_backward",
    "scale_columns",
    "scale_columns_backward",
    "bottleneck",
    "bottleneck_backward",
    "softcap",
    "softcap_slope",
    "attention",
    "attention_backward",
    "embedding",
    "embedding_backward",
    "linear_cross_entropy",
    "linear_cross_entropy_backward",
    "values_loss",
    "values_loss_backward",
    "adamw_step",
    "dynamic_map",
    "dynamic_encode",
    "dynamic_decode",
    "sgd_step",
    "lion_step",
    "adafactor_step",
    "newton_schulz",
    "muon_step",
    "philox_uniform",
    "neftune_noise",
    "global_norm",
    "prefix_encoder",
    "prefix_encoder_backward",
    "decoder_logits",
    "hidden_states",
]
