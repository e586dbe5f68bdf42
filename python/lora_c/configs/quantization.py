"""The types that a base is quantized to while it is loaded, by their names."""

from __future__ import annotations

from typing import Literal, get_args

# Of one layout, with scales per block that may be quantized too: NormalFloat, bitsandbytes' FP4, the float E2M1, integers.
FourBit = Literal["nf4", "fp4", "fp4_e2m1", "int4"]
QuantType = Literal["nf4", "fp4", "fp4_e2m1", "int4", "q8_0"]
FOUR_BIT: tuple[str, ...] = get_args(FourBit)
QUANT_TYPES: tuple[str, ...] = get_args(QuantType)
NF4_BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
Q8_0_BLOCK = 32
