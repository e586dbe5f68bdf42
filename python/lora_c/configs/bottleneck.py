"""Options of bottleneck adapters, with the names of the `adapters` library where it has them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from .base import Config, Seed
from .peft_constants import PEFT_CONSTANTS, without_constants, without_task

Size = Annotated[int, Field(gt=0, lt=2**31)]

_PLACE = "the bottleneck reads the output of the projection, and is added to it"
_CONSTANTS: dict[str, tuple[Any, str]] = PEFT_CONSTANTS | {
    "peft_type": ("BOTTLENECK", "this is its class"),
    "original_ln_before": (False, _PLACE),
    "original_ln_after": (True, _PLACE),
    "residual_before_ln": (True, _PLACE),
    "adapter_residual_before_ln": (False, _PLACE),
    "ln_before": (False, "there are no norms of its own"),
    "ln_after": (False, "there are no norms of its own"),
    "is_parallel": (False, "it comes after the projection"),
    "use_gating": (False, "there is no gate"),
    "cross_adapter": (False, "the models here are decoders"),
    "inv_adapter": (None, "there is none behind the embedding"),
    "phm_layer": (False, "down and up are plain matrices"),
    "dropout": (0.0, "there is none"),
    "stochastic_depth": (0.0, "there is none"),
}


class BottleneckConfig(Config):
    """Bottleneck adapters behind attention, behind the MLP or both: h + scaling (up f(down h + bias) + bias).

    h is the output of o_proj or down_proj; a norm of that output (`post_norm` of a family) and the addition to the residual
    stream come after the adapter. `BottleneckConfig.houlsby()` and `.pfeiffer()` are the two usual placements.

    Parameters
    ----------
    mh_adapter, output_adapter : bool
        Behind attention; behind the MLP.
    reduction_factor : float
        hidden_size by this is the size of the bottleneck, rounded down, at least 1.
    bottleneck_size : int, optional
        That size itself.
    non_linearity : "relu", "silu" ("swish") or "gelu_new" ("gelu_pytorch_tanh")
        Between down and up.
    scaling : float
        Of what is added.
    init_weights : "mam_adapter", "bert" or "houlsby"
        "mam_adapter": down Kaiming-uniform, up zero, so that a new adapter changes nothing. "bert": both normal with
        standard deviation 0.02. "houlsby": both normal with 0.01, cut at twice that. Biases begin as zeros.
    leave_out : list of int
        Layers without an adapter.
    modules_to_save : list of str, optional
        Modules that are trained whole and saved with the adapter, by the end of their path.
    seed : int
        Each place draws from its own stream.

    Source
    ------
    Houlsby et al., arXiv:1902.00751 (both places); Pfeiffer et al., arXiv:2005.00247 (behind the MLP).
    """

    def __init__(self, **values: Any) -> None:
        super().__init__(**without_task("BottleneckConfig", without_constants("BottleneckConfig", values, _CONSTANTS)))

    mh_adapter: bool = Field(False, description="Behind attention.")
    output_adapter: bool = Field(True, description="Behind the MLP.")
    reduction_factor: float = Field(16.0, gt=0, description="hidden_size by this is the size of the bottleneck.")
    bottleneck_size: Size | None = Field(None, description="The size of the bottleneck itself.")
    non_linearity: Literal["relu", "silu", "swish", "gelu_new", "gelu_pytorch_tanh"] = Field(
        "relu", description="Between down and up."
    )
    scaling: float = Field(1.0, description="Factor of what is added.")
    init_weights: Literal["mam_adapter", "bert", "houlsby"] = Field(
        "mam_adapter", description="How it begins: mam_adapter (up as zeros), bert or houlsby."
    )
    leave_out: list[int] = Field([], description="Layers without an adapter.")
    modules_to_save: list[str] | None = Field(None, description="Modules trained whole, such as lm_head.")
    seed: Seed = Field(0, description="Seed of the values that it begins with.")

    @classmethod
    def houlsby(cls, **options: Any) -> BottleneckConfig:
        """Behind attention and behind the MLP, with SiLU (arXiv:1902.00751).

        Parameters
        ----------
        **options
            Fields of the class.
        """
        return cls(**{"mh_adapter": True, "output_adapter": True, "non_linearity": "swish"} | options)

    @classmethod
    def pfeiffer(cls, **options: Any) -> BottleneckConfig:
        """Behind the MLP alone, with ReLU (arXiv:2005.00247).

        Parameters
        ----------
        **options
            Fields of the class.
        """
        return cls(**{"mh_adapter": False, "output_adapter": True, "non_linearity": "relu"} | options)

    @field_validator("modules_to_save", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _somewhere(self) -> BottleneckConfig:
        if not self.mh_adapter and not self.output_adapter:
            raise ValueError("output_adapter: expected an adapter behind attention or the MLP, got neither; set one of them")
        if self.bottleneck_size is not None and "reduction_factor" in self.model_fields_set:
            raise ValueError("bottleneck_size: expected it without reduction_factor, got both; leave one of them out")
        return self
