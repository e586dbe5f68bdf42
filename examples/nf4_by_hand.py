"""NF4 and its double quantization in NumPy (QLoRA, arXiv:2305.14314, section 3), beside Int4 and FP4 (E2M1).

python examples/nf4_by_hand.py [--out DIR]        writes DIR/nf4.png
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import lora_c as lc


def nearest(x: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Index of the nearest level: how many midpoints between levels lie below."""
    return np.searchsorted(((levels[1:].astype(np.float64) + levels[:-1]) / 2).astype(np.float32), x)


def quantize(x: np.ndarray, levels: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes, and the scale of each block: its largest magnitude."""
    absmax = np.abs(x.reshape(-1, block)).max(axis=1, keepdims=True)
    return nearest(x.reshape(-1, block) * (np.float32(1) / absmax), levels), absmax


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--out", type=Path, default=Path("lora-c-output"))
picture = parser.parse_args().out / "nf4.png"
picture.parent.mkdir(parents=True, exist_ok=True)
x = np.concatenate([np.float32(w).ravel() for name, w in lc.load_model("demo").weights.items() if name.endswith("_proj")])
distance = lambda restored: np.linalg.norm(restored.ravel() - x) / np.linalg.norm(x)  # noqa: E731
tensor = lc.NF4Tensor.quantize(x.reshape(-1, 128), block_size=64, double_quant=True)

codes, absmax = quantize(x, tensor.lut, 64)
offset = np.float32(absmax.mean(dtype=np.float64))  # double quantization: the scales less their mean, in 8 bits,
groups = (absmax - offset).reshape(-1, 256)  # with one float32 for 256 of them
tops = np.abs(groups).max(axis=1, keepdims=True)
scale_codes = nearest(groups / tops, tensor.nested_map)
restored = tensor.lut[codes] * (tensor.nested_map[scale_codes] * tops + offset).reshape(-1, 1)
print("equal to NF4Tensor's  codes:", np.array_equal(codes.reshape(-1, 2) @ [16, 1], tensor.codes.ravel()))  # two in a byte
print("equal to NF4Tensor's  codes of the scales:", np.array_equal(scale_codes.ravel(), tensor.absmax_codes.ravel()))
print("equal to NF4Tensor's  weights, restored:", np.array_equal(restored.ravel(), tensor.dequantize().ravel()))
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False})
_, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
left.hist((x.reshape(-1, 64) / absmax).ravel(), 150, density=True, color="#d9d9d9")
left.set(title="Where the levels lie", xlabel="weight / largest of its block of 64", yticks=[], ylim=(-0.6, None))
e2m1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6]) / 6
table = {"Int4": np.arange(-7, 8) / 7, "FP4": np.union1d(e2m1, -e2m1), "NF4": tensor.lut}
for row, (name, levels) in enumerate(table.items()):
    line = left.plot(levels, np.full(len(levels), -0.15 * (row + 1)), "|", ms=9, mew=2, label=name)[0]
    made = {block: quantize(x, np.float32(levels), block) for block in (32, 64, 128, 256, 512, 1024)}
    errors = [distance(np.float32(levels)[c] * s) for c, s in made.values()]
    right.plot([4 + 32 / block for block in made], errors, "o-", ms=4, label=f"{name}, blocks of 1024 … 32")
    print(f"{name:4}  blocks of 64  0.5625 bytes a weight  relative error {errors[1]:.4f}")
bytes_of_one, error = tensor.nbytes / x.size, distance(restored)
right.plot(8 * bytes_of_one, error, "*", ms=14, color=line.get_color(), label="NF4, blocks of 64, scales in 8 bits")
right.set(title="What a bit buys", xlabel="bits a weight", ylabel="relative error")
left.legend(), right.legend(fontsize=8), plt.savefig(picture, dpi=130)
print(f"NF4   blocks of 64  {bytes_of_one:.4f} bytes a weight  relative error {error:.4f}  double quantization\n{picture}")
