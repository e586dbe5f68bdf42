"""loss.png shows what matters, for any length of run; lora-c plot compares runs and answers files that are damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from lora_c.cli import cli
from lora_c.cli.plot import names_of
from lora_c.display.loss_picture import Curve, draw, loss_range
from lora_c.display.plot import plot_losses
from lora_c.errors import ConfigError, DataError
from lora_c.notices import LoraCWarning
from lora_c.runs.history import read_metrics, summary_of


def history(steps: int, held_out: bool = False, spike: bool = False) -> list[dict[str, Any]]:
    """A run from a loss of 4 to one of 1.5."""
    rng, records = np.random.default_rng(0), []
    for step in range(steps + 1):
        falling = 1.5 + 2.5 * float(np.exp(-5 * step / steps))
        if held_out and step % max(1, steps // 8) == 0:
            records.append({"step": step, "eval_loss": falling + 0.2})
        if step:
            loss = 60.0 if spike and step == int(0.6 * steps) else falling + 0.1 * float(rng.standard_normal())
            records.append({"step": step, "loss": loss, "learning_rate": 2e-4 * (1 - (step - 1) / steps)})
    return records


def figure_of(*curves: Curve, title: str = "") -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure, list(curves), title)
    figure.canvas.draw()
    return figure


def curve(*args: Any, **options: Any) -> Curve:
    return Curve.of(history(*args, **options))


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 20, 2000])
def test_every_point_of_a_calm_run_is_inside_the_picture(steps: int, held_out: bool) -> None:
    found = curve(steps, held_out)
    figure = figure_of(found)
    top, bottom = figure.axes
    (left, right), (low, high) = top.get_xlim(), top.get_ylim()
    for points in (found.train, found.held_out) if held_out else (found.train,):
        assert left < points[0].min() and points[0].max() < right
        if steps < 2000:
            assert low < points[1].min() and points[1].max() < high
    spread = np.ptp(np.concatenate([found.train[1], found.held_out[1]]))
    assert low < found.train[1][-1] < high and high - low < 1.5 * spread + 1
    markers = [line for line in top.get_lines() if line.get_marker() in ("o", "D")]
    assert steps > 50 or markers  # a run of one step is a point, not an empty picture
    assert bottom.get_ylabel() == "learning\nrate" and len(bottom.get_lines()[0].get_xdata()) == steps
    assert ("held out" in [text.get_text() for text in top.get_legend().get_texts()]) is held_out


def test_a_spike_does_not_press_the_rest_to_a_line() -> None:
    calm, jumping = curve(2000, True), curve(2000, True, spike=True)
    low, high, is_log = loss_range([jumping])
    assert high < 6 and not is_log and high - low < 1.6 * (loss_range([calm])[1] - loss_range([calm])[0])
    figure = figure_of(jumping)
    assert [text.get_text() for text in figure.axes[0].texts] == ["60 at step 1,200"]
    assert [line for line in figure.axes[0].get_lines() if line.get_marker() == "^"]
    smooth = jumping.smooth(high)
    assert np.abs(smooth[1] - calm.smooth(high)[1]).max() < 0.1  # nor does it make a box of the running mean


def test_few_steps_are_shown_whole() -> None:
    low, high, _ = loss_range([curve(20, spike=True)])
    assert low < 1.5 and high > 60


def test_a_loss_that_falls_far_is_shown_on_a_logarithmic_axis() -> None:
    records = [{"step": step, "loss": 12 * 0.99**step} for step in range(1, 601)]
    figure = figure_of(Curve.of(records))
    (axes,) = figure.axes  # no learning rate, no panel for it
    assert axes.get_yscale() == "log"
    low, high = axes.get_ylim()
    assert low < 0.1 and high > 10
    ticks = [float(text.get_text()) for text in axes.get_yticklabels()]
    assert len(ticks) > 4 and {1.0, 10.0} <= set(ticks)
    assert figure_of(curve(600)).axes[0].get_yscale() == "linear"


@pytest.mark.parametrize("steps", [3, 300])
def test_the_legend_is_beside_the_curve(steps: int) -> None:
    figure = figure_of(curve(steps, True))
    axes = figure.axes[0]
    box, inside = axes.get_legend().get_window_extent(), axes.get_window_extent()
    assert box.x0 >= inside.x1 - 1 and box.x1 <= figure.bbox.x1 + 1


def test_the_running_mean_says_of_how_many_steps() -> None:
    found = curve(2000)
    labels = [text.get_text() for text in figure_of(found).axes[0].get_legend().get_texts()]
    assert labels == ["training, each step", "training, mean of 80 steps"]
    steps, means = found.smooth(100.0)
    np.testing.assert_allclose(means, [found.train[1][i - 80 : i].mean() for i in range(80, 2001)])
    assert steps[0] == 80 and steps[-1] == 2000


def test_values_that_are_no_numbers_are_left_out() -> None:
    records: list[dict[str, Any]] = [
        {"step": 1, "loss": 2.0}, {"step": 2, "loss": float("nan")}, {"step": 3, "loss": "x"}, {"step": None, "loss": 1.0},
        {"step": 4, "loss": True}, {"step": 5, "eval_loss": float("inf")}, {"step": 6, "loss": 1.0},
    ]  # fmt: skip
    found = Curve.of(records)
    assert found.train[0].tolist() == [1, 6] and not len(found.held_out[0])


def test_a_title_is_no_formula_and_needs_no_font(tmp_path: Path) -> None:
    assert plot_losses(history(3), tmp_path / "a.png", "a $b 한국 \\frac{")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert not plot_losses([], tmp_path / "b.png") and not (tmp_path / "b.png").exists()


def test_a_picture_that_cannot_be_written_ends_no_run(tmp_path: Path) -> None:
    with pytest.warns(LoraCWarning, match="not drawn"):
        assert not plot_losses(history(3), tmp_path / "no" / "such" / "\0", "x")


# --- lora-c plot --------------------------------------------------------------------------------------------------------


def write_run(folder: Path, records: list[dict[str, Any]], more: str = "") -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + more)
    return folder


def plot(*args: object) -> Result:
    return CliRunner().invoke(cli, ["plot", *map(str, args)])


def test_one_run_is_drawn_in_its_folder(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", history(100, True))
    done = plot(run)
    assert done.exit_code == 0, done.exception
    assert (run / "loss.png").stat().st_size > 5_000
    assert "100 steps, training loss " in done.output
    assert "(mean of the last 10 steps), held-out loss 4.2000 -> " in done.output
    assert plot(run / "metrics.jsonl", "--out", tmp_path / "b.svg").exit_code == 0
    assert "<svg" in (tmp_path / "b.svg").read_text()


def test_several_runs_are_drawn_in_one_picture(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, history(n, n == 60)) for name, n in (("x/out", 60), ("y/out", 3), ("_z", 10))]
    done = plot(*runs, "--out", tmp_path / "all.png", "--json")
    assert done.exit_code == 0, done.exception
    found = json.loads(done.stdout)
    assert [run["run"] for run in found["runs"]] == ["x/out", "y/out", "_z"]
    assert [run["steps"] for run in found["runs"]] == [60, 3, 10] and found["runs"][1]["eval_loss"] is None
    curves = [Curve.of(read_metrics(run), name) for run, name in zip(runs, ("x/out", "y/out", "_z"), strict=True)]
    top = figure_of(*curves).axes[0]
    labels = [text.get_text().strip() for text in top.get_legend().get_texts()]
    assert labels == ["x/out: mean of 2 steps", "x/out: held out", "y/out: training, each step", "_z: training, each step"]
    assert len({line.get_color() for line in top.get_lines()}) == 3


def test_names_tell_runs_apart() -> None:
    assert names_of(["runs/a", "runs/b"]) == ["a", "b"] and names_of(["a/out", "b/out/"]) == ["a/out", "b/out"]
    assert names_of(["a", "a"]) == ["a", "a (2)"] or len(set(names_of(["a", "a"]))) == 2
    assert all(len(name) <= 32 for name in names_of(["x" * 80, "y"]))


def test_damaged_and_missing_files_are_answered(tmp_path: Path) -> None:
    records = history(10)
    cut = write_run(tmp_path / "cut", records, '{"step": 11, "lo')
    with pytest.warns(LoraCWarning, match="1 of 11 lines left out, which are damaged .the first is line 11"):
        assert read_metrics(cut) == records
    odd = write_run(tmp_path / "odd", records, "\n[1]\n{}\n\xff\n" + "[" * 100_000 + "\n")
    with pytest.warns(LoraCWarning, match="4 of 15 lines left out"):
        assert len(read_metrics(odd)) == 10
    for name, content in (("empty", ""), ("words", "hello\n"), ("other", '{"a": 1}\n')):
        write_run(tmp_path / name, [], content)
        with pytest.raises(DataError, match="expected lines with step and loss or eval_loss, got none"):
            read_metrics(tmp_path / name)
    with pytest.raises(DataError, match="expected the metrics.jsonl of a training run, got nothing there"):
        read_metrics(tmp_path)
    assert isinstance(plot(tmp_path / "cut", tmp_path / "nowhere").exception, (DataError, LoraCWarning))
    assert isinstance(plot().exception, ConfigError)


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.yaml", "out", "loss.png.jsonl"])
def test_no_other_file_is_replaced_by_a_picture(tmp_path: Path, name: str) -> None:
    run = write_run(tmp_path / "a", history(3))
    before = (run / "metrics.jsonl").read_bytes()
    done = plot(run, "--out", run / name)
    assert done.exit_code == 2 and "expected a name that ends in .png, .svg, .pdf" in done.output
    assert (run / "metrics.jsonl").read_bytes() == before


def test_the_summary_is_of_the_last_tenth() -> None:
    records = [{"step": step, "loss": float(step)} for step in range(1, 41)]
    assert summary_of(records) == {
        "steps": 40, "first_train_loss": 1.0, "train_loss": 38.5, "train_loss_steps": 4, "first_eval_loss": None,
        "eval_loss": None, "evaluations": 0,
    }  # fmt: skip
