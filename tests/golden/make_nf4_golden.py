"""Make nf4_golden.npz and fp4_golden.npz: what bitsandbytes' CPU path stores for small matrices.

Needs torch and bitsandbytes (not needed by the tests themselves): python tests/golden/make_nf4_golden.py [nf4] [fp4]

Keys, per case name: `<case>.src` (the input; bfloat16 as its uint16 bits), `.dtype`, `.block_size`, `.codes`, `.absmax`,
`.bf16` (decoded from codes and absmax, bits), and of double quantization `.nested_codes`, `.nested_absmax`, `.nested_offset`.
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import bitsandbytes
import bitsandbytes.functional as F
import numpy as np
import torch

TORCH = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def bits(t: torch.Tensor) -> np.ndarray:
    """The tensor as NumPy; bfloat16 as uint16."""
    return t.view(torch.uint16).numpy() if t.dtype == torch.bfloat16 else t.numpy()


def cases(rng: np.random.Generator, quant_type: str) -> dict[str, tuple[np.ndarray, int, str]]:
    """Return name -> (float32 values, block size, dtype of the source)."""
    out = {}
    for shape in [(2, 96), (4, 32), (3, 7), (1, 1), (5, 63), (1, 65)]:
        for block_size in (32, 64, 128, 4096):
            out[f"random_{shape[0]}x{shape[1]}_{block_size}"] = (rng.standard_normal(shape), block_size, "float32")
    out["wide_2x4304_64"] = (rng.standard_normal((2, 4304)), 64, "float32")
    out["wide_2x4304_4096"] = (rng.standard_normal((2, 4304)), 4096, "float32")
    for dtype in ("bfloat16", "float16"):
        out[f"{dtype}_33x65_64"] = (rng.standard_normal((33, 65)), 64, dtype)
        out[f"{dtype}_7x9_32"] = (rng.standard_normal((7, 9)) * 0.02, 32, dtype)
    zeros = rng.standard_normal((8, 64))
    zeros[2:5] = 0
    out["zero_blocks_8x64_64"] = (zeros, 64, "float32")
    out["zero_tail_3x50_64"] = (np.zeros((3, 50)), 64, "float32")
    huge = rng.standard_normal((4, 96))
    huge[1, 5] = -3e38
    out["huge_4x96_64"] = (huge, 64, "float32")
    tiny = rng.standard_normal((8, 64)) * 10.0 ** np.array([-45, -43, -40, -39, -38, -36, -31, -29])[:, None]
    out["tiny_8x64_64"] = (tiny, 64, "float32")
    table = F.get_4bit_type(quant_type, device="cpu").sort().values
    middle = ((table[:-1] + table[1:]) / 2).numpy()
    around = np.concatenate([np.nextafter(middle, np.float32(-2)), middle, np.nextafter(middle, np.float32(2))])
    ties = np.ones((2, 64), np.float32)
    ties[0, 1:46], ties[1, 3:48] = around, around * np.float32(0.5)
    ties[1, 0:3] = ties[1, 48:] = 0.5
    out["ties_2x64_64"] = (ties, 64, "float32")
    out["ties_tail_1x46_64"] = (ties[:1, :46], 64, "float32")
    out["nested_130x160_32"] = (rng.standard_normal((130, 160)) * rng.gamma(4, 0.02, (130, 1)), 32, "bfloat16")
    return out


def main(quant_type: str) -> None:
    record: dict[str, np.ndarray] = {
        "versions": np.array(f"bitsandbytes {bitsandbytes.__version__}, torch {torch.__version__}, {platform.machine()}"),
        "lut": F.get_4bit_type(quant_type, device="cpu").numpy(),
        "map": F.create_dynamic_map().numpy(),
    }
    for name, (values, block_size, dtype) in cases(np.random.default_rng(20240611), quant_type).items():
        w = torch.from_numpy(np.ascontiguousarray(values, np.float32)).to(TORCH[dtype])
        codes, state = F.quantize_4bit(w, blocksize=block_size, quant_type=quant_type)
        _, nested = F.quantize_4bit(w, blocksize=block_size, quant_type=quant_type, compress_statistics=True)
        state.dtype = torch.bfloat16
        if w.shape[1] % block_size:
            # bitsandbytes' AVX-512 decoder takes wrong scales where blocks cross row ends, so decode by definition.
            index = np.stack([codes.numpy().ravel() >> 4, codes.numpy().ravel() & 15], 1).ravel()[: w.numel()]
            scale = state.absmax.numpy()[np.arange(w.numel()) // block_size]
            decoded = torch.from_numpy(record["lut"][index] * scale).to(torch.bfloat16)
        else:
            decoded = F.dequantize_4bit(codes, state)
        record |= {
            f"{name}.src": bits(w), f"{name}.dtype": np.array(dtype), f"{name}.block_size": np.array(block_size),
            f"{name}.codes": codes.numpy().ravel(), f"{name}.absmax": state.absmax.numpy(),
            f"{name}.bf16": bits(decoded.reshape(w.shape).contiguous()),
            f"{name}.nested_codes": nested.absmax.numpy().ravel(), f"{name}.nested_absmax": nested.state2.absmax.numpy(),
            f"{name}.nested_offset": np.float32(nested.offset.item()),
        }  # fmt: skip
    path = Path(__file__).with_name(f"{quant_type}_golden.npz")
    np.savez_compressed(path, **record)
    print(f"{path.name}: {path.stat().st_size} bytes, {record['versions']}")


if __name__ == "__main__":
    for kind in sys.argv[1:] or ("nf4", "fp4"):
        main(kind)
