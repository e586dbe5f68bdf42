"""Numbers that are drawn by counter, and the noise of NEFTune."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from .arrays import F64


def philox_uniform(seed: int, stream: int, n: int) -> F64:
    """The first n numbers in [0, 1) of a stream, of 24 bits each: word i % 4 of counter i // 4.

    Source
    ------
    Philox4x32-10; Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011.
    """
    mask, counter = np.uint64(0xFFFFFFFF), np.arange(-(-n // 4), dtype=np.uint64)
    c = [counter & mask, counter >> np.uint64(32)]
    c += [np.full_like(counter, stream & 0xFFFFFFFF), np.full_like(counter, stream >> 32 & 0xFFFFFFFF)]
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        high0, high1 = p0 >> np.uint64(32), p1 >> np.uint64(32)
        c = [high1 ^ c[1] ^ np.uint64(k0), p1 & mask, high0 ^ c[3] ^ np.uint64(k1), p0 & mask]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return (np.stack(c, 1).reshape(-1)[:n] >> np.uint64(8)).astype(np.float64) * 2.0**-24


def neftune_noise(alpha: float, seed: int, stream: int, cu_seqlens: ArrayLike, hidden_size: int) -> F64:
    """(M, hidden_size): what is added to the embedded tokens of a packed batch. A step's stream is step * 2**20 + 0xfffff.

    Source
    ------
    NEFTune, arXiv:2310.05914, algorithm 1.
    """
    lengths = np.diff(np.asarray(cu_seqlens))
    scale = alpha / np.sqrt(np.repeat(lengths, lengths) * float(hidden_size))
    drawn = philox_uniform(seed, stream, int(lengths.sum()) * hidden_size).reshape(-1, hidden_size)
    return scale[:, None] * (2.0 * drawn - 1.0)
