"""Figures of the LoRA and QLoRA papers beside our own count of the same thing.

A paper's figure is shown and never used: each of ours is counted from the sizes of the shape. `reason` says what the figure
would need to be true, and where no count gives it, that. The figures were checked against the texts of both papers (LoRA v2,
section 4.2; QLoRA, abstract and section 3) on 2026-11-28; those "as they are often quoted" stand in neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..families.architectures import Architecture
from .subject import Subject

LORA = "LoRA, arXiv:2106.09685, section 4.2"
QLORA = "QLoRA, arXiv:2305.14314"
_GB, _MB = 10**9, 10**6


@dataclass(frozen=True)
class Figure:
    """A figure of a paper.

    Attributes
    ----------
    what : str
        What it is said of.
    figure : float
        The paper's, in `unit`.
    source : str
        Where it stands.
    unit : str
        "GB", "MB" or "bit".
    formula : str
        What ours is counted from.
    count : float
        Ours, in `unit`.
    reason : str
        Why they differ, or that they agree.
    follows : bool
        Whether the figure follows from a count.
    """

    what: str
    figure: float
    source: str
    unit: str
    formula: str
    count: float
    reason: str
    follows: bool = True

    @property
    def difference(self) -> float:
        """Of the paper's figure from ours, as a share of ours."""
        return self.figure / self.count - 1

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return vars(self) | {"difference": self.difference}


def figures_for(subject: Subject) -> list[Figure]:
    """The figures that the papers have of a shape; of others none but those of NF4."""
    n, architecture = subject.model.num_parameters() - _adapted(subject), subject.model.architecture
    found = []
    if subject.name == "gpt3-175b":
        found += gpt3_figures(n, architecture)
    if subject.name == "llama-65b":
        found += llama_figures(n, subject)
    if subject.config.method == "qlora" and subject.config.quant_type == "nf4" and subject.config.double_quant:
        found += nf4_figures(subject.config.block_size)
    return found


def _adapted(subject: Subject) -> int:
    return subject.model.num_parameters(only_trainable=True) if subject.model.adapter is not None else 0


def query_value_count(architecture: Architecture, r: int) -> int:
    """Parameters of LoRA on the query and value projections of every layer: A (r, in) and B (out, r) of each."""
    k = architecture.decoder_kwargs
    hidden, kv = int(k["hidden_size"]), int(k["num_key_value_heads"]) * int(k["head_dim"])
    query = int(k["num_attention_heads"]) * int(k["head_dim"])
    return int(k["num_hidden_layers"]) * r * ((hidden + query) + (hidden + kv))


def gpt3_figures(n: int, architecture: Architecture) -> list[Figure]:
    """Of GPT-3 175B, with n parameters counted from its sizes."""
    adapted = query_value_count(architecture, 4)
    k = architecture.decoder_kwargs
    count = f"{k['num_hidden_layers']} x 2 x 2 x 4 x {k['hidden_size']:,} = {adapted:,}"
    adam, whole, small = 16 * n / _GB, 2 * n / _GB, 2 * adapted / _MB
    per_weight = 1.2e12 / n
    return [
        Figure(
            "full fine-tuning with Adam", 1200, LORA, "GB",
            f"{n:,} x 16 bytes (weights, gradients, two moments in float32)", adam,
            f"it would need {per_weight:.2f} bytes for each parameter, which no whole number of arrays has: all in float16 "
            f"has 8 ({8 * n / _GB:,.0f} GB), without gradients 6 ({6 * n / _GB:,.0f} GB); it follows from no count",
            follows=False,
        ),
        Figure(
            "full fine-tuning, as it is often quoted", 1000, "quoted of the LoRA paper", "GB",
            f"{n:,} x 6 bytes (float16 weights and two float16 moments)", 6 * n / _GB,
            "it would need float16 weights and moments, no gradients and no activations; the paper says 1.2 TB",
            follows=False,
        ),
        Figure(
            "training with LoRA", 350, LORA, "GB", f"{n:,} x 2 bytes + {adapted:,} x 16 bytes",
            whole + 16 * adapted / _GB,
            "agrees: the base in float16, adapter, gradients and moments in float32; activations are not counted",
        ),
        Figure(
            "a checkpoint of the whole model", 350, LORA, "GB", f"{n:,} x 2 bytes (float16)", whole,
            "agrees: float16, rounded",
        ),
        Figure(
            "a checkpoint of LoRA, r=4 on q and v", 35, LORA, "MB", f"{count}; x 2 bytes (float16)", small,
            f"350 GB / 10,000: the paper says roughly 10,000 times smaller, counted it is {n / adapted:,.0f} times; "
            f"{2 * adapted / 2**20:.1f} MiB",
        ),
        Figure(
            "a checkpoint of LoRA, as it is often quoted", 25, "quoted of the LoRA paper", "MB",
            f"{count}; x 2 bytes (float16)", small,
            f"it would need {25e6 / 2 / (adapted / 4):.2f} as the rank in float16, {25e6 / 4 / (adapted / 4):.2f} in float32; "
            "no whole rank on q and v gives it: it follows from no count",
            follows=False,
        ),
    ]  # fmt: skip


def llama_figures(n: int, subject: Subject) -> list[Figure]:
    """Of LLaMA 65B, with n parameters counted from its sizes."""
    from ..configs import LoraConfig, TrainConfig
    from .subject import subject_of_shape

    config = TrainConfig(method="qlora", per_device_train_batch_size=1, max_seq_length=512, recompute="layer",
                         optim="paged_adamw_8bit")  # fmt: skip
    ours = subject_of_shape(subject.name, config, LoraConfig(r=64, target_modules="all-linear")).forecast()
    return [
        Figure(
            "16-bit fine-tuning", 780, f"{QLORA}, abstract", "GB",
            f"{n:,} x 12 bytes (2 weight, 2 gradient, 8 two float32 moments)", 12 * n / _GB,
            "agrees: 65e9 x 12 bytes, without activations",
        ),
        Figure(
            "QLoRA", 48, f"{QLORA}, abstract", "GB",
            "r=64 on all linear layers, one sequence of 512, recompute, paged 8-bit AdamW, counted here", ours.total / _GB,
            "the paper says less than 48 GB, the memory of one card; ours is the CPU's memory of such a run, adapter and "
            "gradients in float32",
        ),
        Figure(
            "what Double Quantization saves", 3, f"{QLORA}, section 3", "GB",
            f"{n:,} x {saving(64):.4f} bit", n * saving(64) / 8 / _GB, "agrees: approximately 3 GB for a 65B model",
        ),
    ]  # fmt: skip


def saving(block_size: int) -> float:
    """Bits of a weight that Double Quantization saves: 32 bits for each scale become 8, and 32 for every 256 of them."""
    return 32 / block_size - (8 / block_size + 32 / (block_size * 256))


def nf4_figures(block_size: int) -> list[Figure]:
    """Bits of a weight in NF4 with Double Quantization."""
    bits = 4 + 8 / block_size + 32 / (block_size * 256)
    formula = f"4 + 8 / {block_size} + 32 / ({block_size} x 256)"
    same = "agrees" if block_size == 64 else f"the paper's blocks have 64 weights, these {block_size}"
    return [
        Figure("a weight in NF4 with Double Quantization", 4.127, QLORA, "bit", formula, bits, same),
        Figure(
            "what Double Quantization saves of it", 0.373, f"{QLORA}, section 3", "bit",
            f"32 / {block_size} - 8 / {block_size} - 32 / ({block_size} x 256)", saving(block_size), same,
        ),
    ]  # fmt: skip
