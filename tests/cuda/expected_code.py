"""What the machine code of kernels must hold and must not: regular expressions of "file.cu: kernel" and of instructions."""

from __future__ import annotations

from dataclasses import dataclass

ARCHS = ("75", "80", "86", "89", "90a", "100", "120")

# By architecture: the instructions that a kernel's speed rests on. LDG.E.128 loads 16 bytes, HMMA is the tensor cores'.
_EVERYWHERE: dict[str, tuple[str, ...]] = {
    r"(scale|columns|mlp)\.cu: lora_elementwise<.*": (r"LDG\.E\.128", r"STG\.E\.128"),
    r"rows_copy\.cu: lora_elementwise<.*": (r"LDG\.E\.128",),
    # FCHK begins an IEEE division of two float32: an approximate one has none.
    r"quantize\.cu: quantize_blocks<.*": (r"LDG\.E\.128", "FCHK"),
    r"double_quantize\.cu: nested_blocks": ("FCHK",),
    r"dequantize\.cu: dequantize_eights<.*": (r"STG\.E\.128",),
}
# From compute capability 8.0 on; below it these kernels are never launched. Of head_dim 256 too, where shared memory has room.
_TENSOR_CORES: dict[str, tuple[str, ...]] = {
    r"few_mma\.cu: few_mma<.*": (r"LDG\.E\.128", r"LDS\.128", r"HMMA\.16816\.F32\.BF16"),
    r"attention_fast_(forward|backward)\.cu: attention_\w+_mma<(32|64|96|128)>": (r"HMMA\.16816\.F32\.BF16", r"LDSM\.16\.M"),
}
REQUIRED: dict[str, dict[str, tuple[str, ...]]] = {
    arch: _EVERYWHERE | (_TENSOR_CORES if arch != "75" else {}) for arch in ARCHS
}

# Kernels whose bytes are promised to be the CPU's. nvcc contracts nothing under -fmad=false; the fused multiply-adds that are
# left belong to IEEE divisions and square roots, so that kernels without those must have none. (MUFU.RCP alone is the
# division of integers, which comes out exact.)
# Quantizing divides: MUFU.RCP (of float64 RCP64H) begins each division, fused steps refine it to the rounded quotient, and
# MUFU.RSQ makes the NaN of its rare cases. There FFMA says nothing, and nothing could be contracted: no product is added to
# anything. The mean of the scales adds in float64, where DFMA and DMUL belong to its one division.
# Decoding adds the offset to a product: there a fused one would be another result.
FORBIDDEN: dict[str, tuple[str, ...]] = {
    r"scale\.cu: .*": ("FFMA", r"MUFU\.(?!RCP)"),
    r"dequantize\.cu: .*": ("FFMA", r"MUFU\.(?!RCP)"),
    r"quantize\.cu: .*": (r"MUFU\.(?!RCP|RSQ)", r"FMUL\.FTZ"),
    r"double_quantize\.cu: .*": (r"MUFU\.(?!RCP|RSQ)", "FMUL"),
}


@dataclass(frozen=True)
class Budget:
    """How many instructions of a lane the tightest loop with the markers may take for each unit of work.

    The work of a trip is counted by its markers, each `per` units of work: that holds however far a compiler unrolls.
    """

    kernel: str
    marker: str
    per: float
    unit: str
    most: float
    archs: tuple[str, ...] = ARCHS


# One HMMA takes 256 weights of 4 tokens, 8 a lane. At the speed of memory an H200's multiprocessor meets 32 weights a clock
# with 128 lanes: 4 instructions a weight is all that decoding may take. Written as 16 bits, 6.5 weights a clock are all that
# its memory takes: 19 instructions a weight. A thread of 32 weights is counted whole, with both kinds of scales.
BUDGETS = (
    Budget(r"few_mma\.cu: few_mma<1>", "HMMA", 8, "weight", 3.4, archs=ARCHS[1:]),
    Budget(r"few_mma\.cu: few_mma<4>", "HMMA", 8, "weight", 4.2, archs=ARCHS[1:]),
    Budget(r"few_mma\.cu: few_mma<16>", "HMMA", 2, "weight of 16 tokens", 8.5, archs=ARCHS[1:]),
    *(
        Budget(rf"{kernel}<{dtype}>", r"STG\.E\.128", per, "weight", most, archs)
        for kernel in (r"dequantize\.cu: dequantize_eights", r"weights\.cu: decode_nf4_rows")
        for dtype, per, most, archs in ((0, 4, 16, ARCHS), (1, 8, 16, ARCHS[1:]), (2, 8, 16, ARCHS))
    ),
)
