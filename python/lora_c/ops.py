"""Every operation of the library and its gradient, one by one, on NumPy arrays.

The formulas are written out in `lora_c.reference`, in float64 NumPy under the same names.
"""

from ._core import (
    adamw_step,
    attention,
    attention_backward,
    cross_entropy,
    embedding,
    embedding_backward,
    geglu,
    geglu_backward,
    layernorm,
    layernorm_backward,
    linear,
    linear_backward,
    rmsnorm,
    rmsnorm_backward,
    rope,
    rope_backward,
    sum_of_squares,
    swiglu,
    swiglu_backward,
    values_loss,
)

__all__ = [
    "adamw_step",
    "attention",
    "attention_backward",
    "cross_entropy",
    "embedding",
    "embedding_backward",
    "geglu",
    "geglu_backward",
    "layernorm",
    "layernorm_backward",
    "linear",
    "linear_backward",
    "rmsnorm",
    "rmsnorm_backward",
    "rope",
    "rope_backward",
    "sum_of_squares",
    "swiglu",
    "swiglu_backward",
    "values_loss",
]
