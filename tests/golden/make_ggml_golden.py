"""Make ggml_golden.npz: what the gguf package's quantization classes decode and encode.

Needs the gguf package (not needed by the tests themselves): python tests/golden/make_ggml_golden.py

Keys: `<type>.blocks` (random bytes with finite scales, and edge cases), `<type>.values` (decoded, float32);
`Q8_0.src` (rows of float32) and `Q8_0.quantized` (their blocks).
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import gguf
import numpy as np

TYPES = ("F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")
# Where a block has float16 scales.
HALVES = {"F16": (0,), "BF16": (), "Q6_K": (208,), "Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2)}
EDGE_HALVES = np.array([0.0, -0.0, 65504, -65504, 6e-8, -6e-8, 6.1e-5, 1.0, -1.0, 0.333], np.float16)


def blocks_of(name: str, rng: np.random.Generator) -> np.ndarray:
    """Random blocks; then one block per edge scale with all code bits clear, set and random."""
    values, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    edges = len(EDGE_HALVES)
    blocks = rng.integers(0, 256, ((400 if values == 1 else 20 if values == 32 else 4) + 3 * edges, size), dtype=np.uint8)
    blocks[-edges:], blocks[-2 * edges : -edges] = 0, 255
    for offset in HALVES.get(name, (0,)):
        scale = (rng.standard_normal(len(blocks)) * 2.0 ** rng.integers(-12, 4, len(blocks))).astype(np.float16)
        scale[-3 * edges :] = np.tile(np.roll(EDGE_HALVES, offset), 3)
        blocks[:, offset : offset + 2] = scale[:, None].view(np.uint8)
    if name == "BF16":
        blocks[:, 1] &= 0xBF  # an exponent below that of infinity
    return blocks


def q8_0_source(rng: np.random.Generator) -> np.ndarray:
    """Rows of 64: normal, halves that need the rounding rule, zeros, wide range, near the largest, tiny."""
    rows = rng.standard_normal((14, 64)).astype(np.float32)
    rows[1] = np.arange(64) - 31.5
    rows[1, [0, 63]] = 127, -127
    rows[2, :32] = 0
    rows[3] *= 10.0 ** rng.integers(-8, 6, 64)
    rows[4] *= 2e6
    rows[5] *= 1e-9
    rows[6] = 0.25
    rows[7, 5] = -3.0
    rows[8] = np.round(rows[8] * 40) / 2
    rows[8, [3, 40]] = 63.5
    return rows


def main() -> None:
    rng = np.random.default_rng(20240701)
    record: dict[str, np.ndarray] = {"versions": np.array(f"gguf {version('gguf')}, numpy {np.__version__}")}
    for name in TYPES:
        blocks = blocks_of(name, rng)
        with np.errstate(invalid="raise"):
            record[f"{name}.values"] = gguf.dequantize(blocks, gguf.GGMLQuantizationType[name])
        record[f"{name}.blocks"] = blocks
        assert np.isfinite(record[f"{name}.values"]).all(), name
    record["Q8_0.src"] = q8_0_source(rng)
    record["Q8_0.quantized"] = gguf.quantize(record["Q8_0.src"], gguf.GGMLQuantizationType.Q8_0)
    path = Path(__file__).with_name("ggml_golden.npz")
    np.savez_compressed(path, **record)
    print(f"{path.name}: {path.stat().st_size} bytes, {record['versions']}")


if __name__ == "__main__":
    main()
