"""The rows of a comparison by name: what each changes of the run that they share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError, nearest

QV = ["q_proj", "v_proj"]
# Of every family, also of those that store several matrices as one.
ATTENTION, MLP = r".*attn\.\w+", r".*\.mlp\.\w+"


@dataclass(frozen=True)
class Row:
    """A method.

    Attributes
    ----------
    title : str
        What it is, in a few words.
    settings : dict
        Options of `lora-c train` by name, in the place of those that the rows share. A rank without `lora_alpha` keeps the
        quotient of the two.
    rate : float
        Its learning rate by that of the others.
    is_budgeted : bool
        The rank is chosen so that it trains about as many parameters as q and v with the shared rank.
    """

    title: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    rate: float = 1.0
    is_budgeted: bool = False


def _lora(title: str, **settings: Any) -> Row:
    return Row(title, {"method": "lora", **settings})


def _same_budget(title: str, names: list[str] | str) -> Row:
    return Row(title, {"method": "lora", "target_modules": names}, is_budgeted=True)


def _other(title: str, kinds: str, rate: float = 1.0, **settings: Any) -> Row:
    return Row(title, {"method": "lora", "peft_type": kinds.split(","), **settings}, rate)


# The rates of full fine-tuning and of virtual tokens are not LoRA's: a tenth of it is usual for the one (Schulman 2025, LoRA
# Without Regret), a multiple for the others (arXiv:2104.08691, arXiv:2101.00190).
ROWS: dict[str, Row] = {
    "head": Row("last layer replaced", {"method": "head"}),
    "full": Row("full fine-tuning", {"method": "full"}, rate=0.1),
    **{f"lora-r{r}": _lora(f"LoRA, rank {r}", r=r) for r in (1, 2, 4, 8, 16, 64)},
    "lora-q": _same_budget("LoRA on q", ["q_proj"]),
    "lora-k": _same_budget("LoRA on k", ["k_proj"]),
    "lora-v": _same_budget("LoRA on v", ["v_proj"]),
    "lora-o": _same_budget("LoRA on o", ["o_proj"]),
    "lora-qk": _same_budget("LoRA on q, k", ["q_proj", "k_proj"]),
    "lora-qv": _same_budget("LoRA on q, v", QV),
    "lora-qkvo": _same_budget("LoRA on q, k, v, o", ATTENTION),
    "lora-mlp": _same_budget("LoRA on the MLP", MLP),
    "lora-all": _same_budget("LoRA on all linear", "all-linear"),
    "qlora": Row("QLoRA: NF4 with DQ", {"method": "qlora", "quant_type": "nf4", "double_quant": True}),
    "qlora-no-dq": Row("QLoRA: NF4 without DQ", {"method": "qlora", "quant_type": "nf4", "double_quant": False}),
    "qlora-fp4": Row("QLoRA: FP4 with DQ", {"method": "qlora", "quant_type": "fp4", "double_quant": True}),
    "qlora-int4": Row("QLoRA: Int4 with DQ", {"method": "qlora", "quant_type": "int4", "double_quant": True}),
    "qlora-8bit": Row("QLoRA: 8-bit base", {"method": "qlora", "quant_type": "q8_0"}),
    "dora": _lora("DoRA", use_dora=True),
    "rslora": _lora("rsLoRA", use_rslora=True),
    "pissa": _lora("PiSSA", init_lora_weights="pissa"),
    "bottleneck": _other("bottleneck adapters", "BOTTLENECK", mh_adapter=True, output_adapter=True),
    "prefix": _other("prefix tuning", "PREFIX_TUNING", rate=10.0),
    "prompt": _other("prompt tuning", "PROMPT_TUNING", rate=10.0),
    "lora+prefix": _other("LoRA + prefix", "LORA,PREFIX_TUNING"),
    "lora+prompt": _other("LoRA + trained embeddings", "LORA,PROMPT_TUNING"),
    "lora+bottleneck": _other("LoRA + bottleneck", "LORA,BOTTLENECK"),
}
QUICK = (
    "head", "full", "lora-r1", "lora-r8", "lora-r64", "lora-qv", "qlora", "qlora-no-dq", "dora", "bottleneck", "prefix",
    "lora+prefix",
)  # fmt: skip


def chosen_rows(names: Iterable[str] | None, known: Mapping[str, Row] = ROWS) -> dict[str, Row]:
    """The rows of these names in their order; all for None.

    Raises
    ------
    ConfigError
        There is no such row, a name stands twice, or there is none.
    """
    if names is None:
        return dict(known)
    names = list(names)
    for name in names:
        if name not in known:
            raise ConfigError(f"rows: expected names among {', '.join(known)}, got {name!r}{nearest(name, known)}")
    if not names or len(set(names)) != len(names):
        raise ConfigError(f"rows: expected one name or more, each once, got {', '.join(names) or 'none'}")
    return {name: known[name] for name in names}
