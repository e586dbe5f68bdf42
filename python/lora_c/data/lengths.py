"""How long the samples of a data set are: a histogram for people, and as a picture."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .dataset import Dataset

N_BINS = 12
_SIZE = (7.0, 4.0)  # of the picture, in inches
_NICE = (1, 2, 5)  # widths of bins: these times a power of ten


@dataclass(frozen=True)
class Bin:
    """Samples of `first` to `last` tokens."""

    first: int
    last: int
    count: int


@dataclass(frozen=True)
class Lengths:
    """Tokens of the samples of a data set.

    Attributes
    ----------
    shortest, median, most, longest : int
        `most` is the length that nine of ten samples do not exceed.
    bins : tuple of Bin
        Equal widths, from the shortest to the longest.
    """

    shortest: int
    median: int
    most: int
    longest: int
    bins: tuple[Bin, ...]

    @classmethod
    def of(cls, dataset: Dataset) -> Lengths:
        """Of a data set with samples."""
        lengths = np.sort([len(sample) for sample in dataset.samples])
        n = len(lengths)
        median, most = (int(lengths[min(n - 1, math.ceil(share * n) - 1)]) for share in (0.5, 0.9))
        return cls(int(lengths[0]), median, most, int(lengths[-1]), _bins(lengths))

    def lines(self, width: int) -> list[str]:
        """The histogram in lines of up to `width` columns; the marks are plain ASCII."""
        names = [f"{b.first:,}" if b.first == b.last else f"{b.first:,}-{b.last:,}" for b in self.bins]
        counts = [f"{b.count:,}" for b in self.bins]
        left, right, top = max(map(len, names)), max(map(len, counts)), max(b.count for b in self.bins)
        room = max(4, min(60, width - left - right - 4))
        bars = ["#" * max(round(room * b.count / top), 1 if b.count else 0) for b in self.bins]
        return [f"{n:>{left}}  {c:>{right}}  {bar}".rstrip() for n, c, bar in zip(names, counts, bars, strict=True)]


def _bins(lengths: NDArray[np.int64]) -> tuple[Bin, ...]:
    """Bins of equal, round widths; lengths: sorted, (n,)."""
    low, high = int(lengths[0]), int(lengths[-1])
    width = _width((high - low + 1) / N_BINS)
    start = low // width * width
    starts = range(start, high + 1, width)
    numbers = np.bincount((lengths - start) // width, minlength=len(starts))
    return tuple(Bin(begin, begin + width - 1, int(n)) for begin, n in zip(starts, numbers, strict=True))


def _width(least: float) -> int:
    """The smallest of 1, 2, 5, 10, 20, ... that is not below `least`."""
    power = 1
    while True:
        for nice in _NICE:
            if nice * power >= least:
                return nice * power
        power *= 10


def plot_lengths(parts: dict[str, Dataset], path: Path, title: str = "") -> None:
    """Write the histogram as a PNG.

    Parameters
    ----------
    parts : dict
        Data sets by what they are called in the legend.

    Raises
    ------
    ConfigError
        matplotlib is not installed.
    SaveError
        The file cannot be written.
    """
    from ..display.plot import picture

    with picture(path, _SIZE) as figure:
        _draw(figure.add_subplot(), parts, title)


def _draw(axes: Axes, parts: dict[str, Dataset], title: str) -> None:
    from matplotlib.ticker import MaxNLocator

    every = np.concatenate([[len(s) for s in data.samples] for data in parts.values()])
    bins = _bins(np.sort(every))
    edges = [*(b.first for b in bins), bins[-1].last + 1]
    for (name, data), colour in zip(parts.items(), ("#2171b5", "#d94801"), strict=False):
        axes.hist([len(s) for s in data.samples], edges, label=f"{name} ({len(data):,})", color=colour, alpha=0.7)
    axes.set_xlabel("tokens of a sequence")
    axes.set_ylabel("sequences")
    axes.set_title(title, loc="left", fontsize=10, parse_math=False)  # names of files hold dollar signs, too
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
