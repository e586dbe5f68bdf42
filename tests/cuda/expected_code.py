"""What the machine code of kernels must hold and must not: regular expressions of "file.cu: kernel" and of instructions."""

# By architecture: the instructions that a kernel's speed rests on. LDG.E.128 loads 16 bytes, HMMA is the tensor cores'.
REQUIRED: dict[str, dict[str, tuple[str, ...]]] = {}

# Kernels whose bytes are promised to be the CPU's: no fused multiply-add that was not asked for, no approximated function.
FORBIDDEN: dict[str, tuple[str, ...]] = {r"scale\.cu: .*": ("FFMA", "MUFU")}
