"""What the machine code of kernels must hold and must not: regular expressions of "file.cu: kernel" and of instructions."""

ARCHS = ("75", "80", "86", "89", "90a", "100", "120")

# By architecture: the instructions that a kernel's speed rests on. LDG.E.128 loads 16 bytes, HMMA is the tensor cores'.
_EVERYWHERE: dict[str, tuple[str, ...]] = {
    r"(scale|columns|mlp)\.cu: lora_elementwise<.*": (r"LDG\.E\.128", r"STG\.E\.128"),
    r"rows_copy\.cu: lora_elementwise<.*": (r"LDG\.E\.128",),
}
REQUIRED: dict[str, dict[str, tuple[str, ...]]] = {arch: dict(_EVERYWHERE) for arch in ARCHS}

# Kernels whose bytes are promised to be the CPU's. nvcc contracts nothing under -fmad=false; the fused multiply-adds that are
# left belong to IEEE divisions and square roots, so that kernels without those must have none. (MUFU.RCP alone is the
# division of integers, which comes out exact.)
FORBIDDEN: dict[str, tuple[str, ...]] = {r"scale\.cu: .*": ("FFMA", r"MUFU\.(?!RCP)")}
