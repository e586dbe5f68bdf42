"""What a bar drops in a narrow terminal, its colours, and the table at the end of a run."""

from __future__ import annotations

import io
from typing import Any

import pytest

from lora_c.cli.run_table import duration, result_values, table_lines
from lora_c.display.console import TextConsole
from lora_c.display.progress import PlainProgress, draws_bars, open_progress
from lora_c.display.progress_bar import BarProgress, FittingProgress
from lora_c.training.trainer import TrainResult

RECORD = {"step": 900, "loss": 1.23456, "tokens_per_second": 12345.0}


def bar_at(columns: int) -> str:
    console = TextConsole(file=io.StringIO(), width=columns, force_terminal=True, color_system=None, legacy_windows=False)
    bar = FittingProgress(console)
    progress = BarProgress(bar, total=2000, done=0)
    progress.step(RECORD)
    progress.evaluation({"step": 900, "eval_loss": 2.5})
    with console.capture() as capture:
        console.print(*bar.get_renderables(), end="")
    return capture.get().rstrip("\n")


@pytest.mark.parametrize(("columns", "parts"), [
    (120, ("training", "━", "900/2,000", "loss 1.2346", "held-out 2.5000", "12,345 tokens/s", "left")),
    (78, ("training", "━", "900/2,000", "loss 1.2346", "held-out 2.5000", "left")),
    (60, ("training", "━", "900/2,000", "loss 1.2346", "left")),
    (46, ("training", "900/2,000", "loss 1.2346", "left")), (34, ("training", "900/2,000", "left")),
    (24, ("900/2,000", "left")),
])  # fmt: skip
def test_steps_and_time_stay_and_speed_goes_first(columns: int, parts: tuple[str, ...]) -> None:
    shown = bar_at(columns)
    everything = ("training", "━", "900/2,000", "loss 1.2346", "held-out 2.5000", "12,345 tokens/s", "left")
    assert [part for part in everything if part in shown] == list(parts), shown
    assert "\n" not in shown and len(shown) <= columns and "…" not in shown


def test_a_bar_is_for_terminals_that_can_move_the_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for name, draws in (("xterm", True), ("dumb", False), ("unknown", False)):
        monkeypatch.setenv("TERM", name)
        assert draws_bars(Terminal()) is draws
    assert not draws_bars(io.StringIO()) and not draws_bars(None)
    with open_progress(3) as progress:
        assert isinstance(progress, PlainProgress)


def test_the_bar_of_a_failure_is_red_and_of_a_stop_yellow(monkeypatch: pytest.MonkeyPatch) -> None:
    from lora_c.display.progress_bar import open_bar

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    seen = {}
    for name in ("red", "yellow", "green"):
        stream = io.StringIO()
        monkeypatch.setattr("sys.stderr", stream)
        try:
            with open_bar(900 if name == "green" else 2000) as progress:
                progress.step(RECORD)
                if name == "red":
                    raise ValueError
        except ValueError:
            pass
        seen[name] = stream.getvalue()
    for name, code in (("red", "31"), ("yellow", "33"), ("green", "32")):
        assert f"\x1b[{code}m" in seen[name]
        assert not any(f"\x1b[{other}m" in seen[name] for other in ("31", "33", "32") if other != code), name


def test_messages_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    bar = FittingProgress(TextConsole(file=stream, width=80))
    BarProgress(bar, 1, 0).message("saved in [red]out[/]")
    assert stream.getvalue() == "saved in [red]out[/]\n"


def result(**changes: Any) -> TrainResult:
    history: list[dict[str, Any]] = [{"step": 0, "eval_loss": 5.0}]
    history += [{"step": step, "loss": 5.0 - 0.1 * step} for step in range(1, 31)] + [{"step": 30, "eval_loss": 2.25}]
    values = {
        "steps": 30, "train_loss": 2.1, "eval_loss": 2.25, "tokens_per_second": 12345.6, "elapsed_seconds": 75.2,
        "peak_memory_bytes": 3 << 30, "history": history,
    }  # fmt: skip
    return TrainResult(**(values | changes))


def test_the_table_says_what_each_number_is() -> None:
    assert table_lines(result(), "adapter in out, loss.png") == [
        "done      30 steps",
        "loss      4.9000 -> 2.1000  training, first step -> mean of the last 3 steps",
        "held-out  5.0000 -> 2.2500  first -> last evaluation",
        "speed     12,346 tokens/s",
        "time      1 min 15 s",
        "memory    3,072 MiB at most",
        "saved     adapter in out, loss.png",
    ]
    few = result(steps=1, interrupted=True, history=[{"step": 1, "loss": 4.0}])
    assert table_lines(few, "x")[:2] == ["stopped   1 step", "loss      4.0000 -> 4.0000  training, first step -> last step"]
    assert table_lines(result(steps=0, history=[]), "x")[1].startswith("speed")
    assert result_values(result(), "adapter", "out")["train_loss"] == 2.1


@pytest.mark.parametrize(("seconds", "text"), [(0.04, "0.0 s"), (59.94, "59.9 s"), (245, "4 min 05 s"), (7380, "2 h 03 min")])
def test_times_are_said_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text
