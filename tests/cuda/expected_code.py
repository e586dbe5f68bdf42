"""What the machine code of kernels must hold and must not: regular expressions of "file.cu: kernel" and of instructions."""

ARCHS = ("75", "80", "86", "89", "90a", "100", "120")

# By architecture: the instructions that a kernel's speed rests on. LDG.E.128 loads 16 bytes, HMMA is the tensor cores'.
_EVERYWHERE: dict[str, tuple[str, ...]] = {
    r"(scale|columns|mlp)\.cu: lora_elementwise<.*": (r"LDG\.E\.128", r"STG\.E\.128"),
    r"rows_copy\.cu: lora_elementwise<.*": (r"LDG\.E\.128",),
    # FCHK begins an IEEE division of two float32: an approximate one has none.
    r"quantize\.cu: quantize_blocks<.*": (r"LDG\.E\.128", "FCHK"),
    r"double_quantize\.cu: nested_blocks": ("FCHK",),
    r"dequantize\.cu: dequantize<.*": (r"STG\.E\.128",),
}
REQUIRED: dict[str, dict[str, tuple[str, ...]]] = {arch: dict(_EVERYWHERE) for arch in ARCHS}

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
