"""loss.png: the losses of a run, or of several, as a picture; and how pictures are written."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, LoraCError
from ..files.atomic import atomic_file
from ..files.os_errors import reason
from ..notices import tell
from .loss_picture import Curve, draw

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXTRA = "pip install 'lora-c[plot]'"
_WIDTH, _HEIGHT = 9.0, 5.0  # inches


def can_plot() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def tell_missing_plot(name: str = "loss.png") -> None:
    """Say before a run what its end will be without, and what brings it."""
    if not can_plot():
        tell(f"there will be no {name}: matplotlib is not installed ({EXTRA})")


def plot_losses(history: list[dict[str, Any]], path: Path, title: str = "") -> bool:
    """Write the plot of a run; False when matplotlib is not installed, or when drawing fails, which is told."""
    if not can_plot():
        return False
    try:
        return _write([Curve.of(history)], path, title)
    except Exception as error:  # a picture of a run is no reason to lose the run
        tell(f"{path}: not drawn ({reason(error)})")
        return False


def plot_runs(histories: dict[str, list[dict[str, Any]]], path: Path, title: str = "") -> None:
    """Write a plot that compares runs.

    Parameters
    ----------
    histories : dict
        Records of each run by the name that it has in the legend.
    path : Path
        A name that ends in .png, .svg or .pdf.

    Raises
    ------
    LoraCError
        matplotlib is not installed.
    SaveError
        The file cannot be written.
    """
    if not can_plot():
        raise LoraCError(f"plot: expected matplotlib, which draws it, got no such package; {EXTRA}")
    curves = [Curve.of(history, name) for name, history in histories.items()]
    _write(curves, path, title, path.suffix.lstrip(".").lower())


def _write(curves: list[Curve], path: Path, title: str, format: str = "png") -> bool:
    curves = [curve for curve in curves if len(curve.train[0]) or len(curve.held_out[0])]
    if not curves:
        return False
    with picture(path, (_WIDTH, _HEIGHT), format) as figure:
        draw(figure, curves, title)
    return True


@contextmanager
def picture(path: Path, size: tuple[float, float], format: str = "png") -> Iterator[Figure]:
    """A figure to draw in, which is written when the block ends.

    Parameters
    ----------
    path : Path
        The file.
    size : tuple of float
        Width and height in inches.
    format : "png", "svg" or "pdf"

    Raises
    ------
    ConfigError
        matplotlib is not installed.
    SaveError
        The file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError(f"plot: expected the package matplotlib, got an installation without it; {EXTRA}") from None
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # names of models in other scripts
        yield figure
        with atomic_file(path) as file:
            figure.savefig(file, dpi=120, format=format)
