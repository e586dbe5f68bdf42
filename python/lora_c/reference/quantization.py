"""NF4 and the 4-bit types beside it, the blocks of Q8_0, and the maps of 8-bit moments.

Source: QLoRA, arXiv:2305.14314, section 3; 8-bit Optimizers via Block-wise Quantization, arXiv:2110.02861.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def four_bit_values(quant_type: str) -> NDArray[np.float32]:
    """The 16 values by code of "fp4", "fp4_e2m1" or "int4"; those of NF4 are published constants (`NF4Tensor.lut`)."""
    if quant_type == "int4":  # -7 to 7, over 7; code 15 is never made
        return (np.minimum(np.arange(16) - 7, 7) / 7).astype(np.float32)
    # Three bits of a float, bit 3 the sign: bitsandbytes' own, and E2M1.
    magnitudes = {"fp4": [0, 0.0625, 8, 12, 4, 6, 2, 3], "fp4_e2m1": [0, 0.5, 1, 1.5, 2, 3, 4, 6]}[quant_type]
    positive = np.array(magnitudes) / max(magnitudes)
    return np.concatenate([positive, -positive]).astype(np.float32)


def nf4_quantize(
    w: ArrayLike, lut: ArrayLike, block_size: int = 64, unused: tuple[int, ...] = ()
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Codes (one per element, not packed) and absmax (one per block) of the flattened matrix, for any 16 values.

    The scaled value x * (1/absmax) is float32, as in bitsandbytes; a value on the midpoint of two values takes the lower.
    unused: codes that repeat a value and are never made, 8 of "fp4_e2m1" and 15 of "int4".
    """
    x = np.asarray(w, np.float32).reshape(-1)
    values = np.asarray(lut, np.float32)
    order = np.array([code for code in np.argsort(values, kind="stable") if code not in unused], np.uint8)
    table = values[order]
    midpoints = ((table[1:].astype(np.float64) + table[:-1]) / 2).astype(np.float32)
    n_blocks = -(-x.size // block_size)
    codes = np.empty(x.size, np.uint8)
    absmax = np.empty(n_blocks, np.float32)
    for b in range(n_blocks):
        block = x[b * block_size : (b + 1) * block_size]
        absmax[b] = np.abs(block).max()
        inverse = np.float32(1) / np.maximum(absmax[b], np.float32(1e-38))
        codes[b * block_size : (b + 1) * block_size] = order[np.searchsorted(midpoints, block * inverse, side="left")]
    return codes, absmax


def nf4_dequantize(codes: ArrayLike, absmax: ArrayLike, lut: ArrayLike, block_size: int = 64) -> NDArray[np.float32]:
    """lut[code] * absmax[block] in float32."""
    c = np.asarray(codes)
    scales = np.repeat(np.asarray(absmax, np.float32), block_size)[: c.size]
    return np.asarray(lut, np.float32)[c] * scales


def q8_0_quantize(w: ArrayLike) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Codes and scales of GGML's Q8_0: blocks of 32 weights, d = max |x| / 127, codes x / d rounded half away from zero.

    In float32, as ggml's reference does: x * (1/d), and d is stored in float16 only afterwards.
    """
    x = np.asarray(w, np.float32).reshape(-1, 32)
    d = np.abs(x).max(axis=1) / np.float32(127)
    inverse = np.divide(np.float32(1), d, out=np.zeros_like(d), where=d > 0)
    y = x * inverse[:, None]
    rounded = np.floor(np.abs(y)) + (np.abs(y) - np.floor(np.abs(y)) >= 0.5)
    return (np.sign(y) * rounded).astype(np.int8).reshape(-1), d.astype(np.float16)


def q8_0_dequantize(codes: ArrayLike, scales: ArrayLike) -> NDArray[np.float32]:
    """d * code in float32."""
    return np.asarray(codes, np.float32) * np.repeat(np.asarray(scales, np.float32), 32)


def dynamic_map(signed: bool = True) -> NDArray[np.float32]:
    """The 256 values of the 8-bit dynamic map, each step in float32.

    Source
    ------
    8-bit Optimizers via Block-wise Quantization, arXiv:2110.02861, section 2.1.
    """
    one, tenth = np.float32(1), np.float32(0.1)
    values = []
    for i in range(7):
        n = 2**i if signed else 2 ** (i + 1)
        step = (one - tenth) / np.float32(n)
        below = [tenth + np.float32(j) * step for j in range((n + 1) // 2)]
        edges = [*below, *(one - np.float32(n - j) * step for j in range((n + 1) // 2, n + 1))]
        power = np.float32(10.0 ** (i - 6))
        values += [(a + b) / np.float32(2) * power for a, b in zip(edges, edges[1:], strict=False)]
    negative = [-v for v in values] if signed else []
    return np.sort(np.array([*negative, 0, *values, 1], np.float32))


def dynamic_encode(x: ArrayLike, code: ArrayLike, block_size: int = 256) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Codes of the nearest values, and the largest magnitude of each block; of two as near (in float32) the lower.

    Source
    ------
    8-bit Optimizers via Block-wise Quantization, arXiv:2110.02861, section 2.
    """
    values, code = np.asarray(x, np.float32).reshape(-1), np.asarray(code, np.float32)
    codes, scales = np.zeros(values.shape, np.uint8), []
    for begin in range(0, len(values), block_size):
        block = values[begin : begin + block_size]
        top = np.abs(block).max()
        scaled = np.clip(block * (np.float32(1) / top), -1, 1) if top > 0 else np.zeros_like(block)
        codes[begin : begin + block_size] = np.abs(scaled[:, None] - code).argmin(1)
        scales.append(top)
    return codes.reshape(np.shape(x)), np.array(scales, np.float32)


def dynamic_decode(codes: ArrayLike, absmax: ArrayLike, code: ArrayLike, block_size: int = 256) -> NDArray[np.float32]:
    """What codes stand for, in float32."""
    flat = np.asarray(code, np.float32)[np.asarray(codes).reshape(-1)]
    scales = np.repeat(np.asarray(absmax, np.float32), block_size)[: flat.size]
    return (flat * scales).reshape(np.shape(codes))
