"""The table of a comparison as texts: for terminals of any width, and for the report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from .intervals import Mean
from .record import CompareRecord, RowRecord

Show = Callable[[Mean], str]


@dataclass(frozen=True)
class Column:
    """A number of each row; `path` is its place, `unit` what it is counted in, `meaning` a sentence for the report."""

    head: str
    unit: str
    path: tuple[str, ...]
    show: Show
    meaning: str
    rank: int  # the higher, the sooner it is left out where a terminal is narrow


def _with_half(digits: int, scale: float = 1.0, sign: str = "") -> Show:
    def show(mean: Mean) -> str:
        half = "" if mean.half is None else f" ±{mean.half * scale:.{digits}f}"
        return f"{mean.value * scale:{sign}.{digits}f}{half}"

    return show


def _whole(scale: float = 1.0, digits: int = 0) -> Show:
    return lambda mean: f"{mean.value * scale:,.{digits}f}"


COLUMNS = (
    Column("trained", "parameters", ("results", "trained_parameters"), _whole(), "Parameters that training changes.", 1),
    Column("held-out", "nats/token", ("results", "eval_loss"), _with_half(4), "Loss on data that was not trained on.", 0),
    Column("gap", "nats/token", ("results", "gap"), _with_half(3, sign="+"),
           "Held-out loss less the loss on training data: what was learned by heart.", 4),
    Column("base text", "nats/token", ("results", "base_text_loss"), _with_half(3),
           "Loss on the base's own text: what it still knows.", 3),
    Column("memory", "MiB", ("costs", "peak_rss_bytes"), _whole(2.0**-20), "Most memory of the process while it trained.", 2),
    Column("speed", "tokens/s", ("costs", "tokens_per_second"), _whole(), "Tokens trained in a second of the usual step.", 3),
    Column("own", "MiB", ("costs", "accounted_peak_bytes"), _whole(2.0**-20, 1),
           "Of that what training holds: what is trained, gradients, moments, activations, a quantized base.", 5),
    Column("saved", "KiB", ("results", "checkpoint_bytes"), _whole(2.0**-10, 1), "What is saved of a run.", 5),
    Column("token", "ms", ("costs", "token_seconds", "unmerged"), _whole(1e3, 2),
           "One token decoded with what was trained beside the base.", 6),
    Column("merged", "ms", ("costs", "token_seconds", "merged"), _whole(1e3, 2), "The same after merging into the base.", 7),
    Column("base", "ms", ("costs", "token_seconds", "base"), _whole(1e3, 2), "The same without what was trained.", 8),
    Column("swap", "µs", ("costs", "swap_seconds"), _whole(1e6), "A change to another adapter in memory.", 9),
    Column("rate", "", ("results", "learning_rate"), lambda mean: f"{mean.value:g}", "The peak learning rate.", 10),
)  # fmt: skip


def columns_of(record: CompareRecord) -> list[Column]:
    """The columns that some row has a number for; the scores of a task come behind the losses."""
    names = dict.fromkeys(
        name for row in record.rows.values() for run in row.runs.values() for name in run.get("results", {}).get("scores", {})
    )
    scores = [
        Column(
            name.replace("_", " "),
            "score",
            ("results", "scores", name),
            _with_half(3),
            f"The task's {name.replace('_', ' ')}.",
            2,
        )
        for name in names
    ]
    unit = "nats/text" if record.run.get("task_type") == "SEQ_CLS" else "nats/token"
    losses = [replace(column, unit=unit) if column.unit == "nats/token" else column for column in COLUMNS[:4]]
    columns = [*losses, *scores, *COLUMNS[4:]]
    rows = [_base_of(record), *record.rows.values()]
    return [c for c in columns if c.rank < 2 or any(row.mean(*c.path) is not None for row in rows)]


def cells_of(row: RowRecord, columns: list[Column]) -> list[str]:
    """A text for each column; empty where there is no number."""
    return ["" if (mean := row.mean(*column.path)) is None else column.show(mean) for column in columns]


def base_cells(record: CompareRecord, columns: list[Column]) -> list[str]:
    """The row of the base as it was before."""
    return cells_of(_base_of(record), columns)


def _base_of(record: CompareRecord) -> RowRecord:
    return RowRecord("", {}, {0: record.base} if record.base else {})


def table_lines(record: CompareRecord, width: int | None) -> list[str]:
    """A line for each row, with as many columns as fit; what has no numbers says why below.

    Parameters
    ----------
    width : int or None
        Columns of the terminal; None: all that there are.
    """
    columns = columns_of(record)
    while True:
        lines = _lines(record, columns)
        if width is None or len(columns) < 2 or max(map(len, lines)) <= width:
            break
        columns.remove(max(columns, key=lambda column: column.rank))
    problems = [(name, row.problem) for name, row in record.rows.items() if row.problem]
    return lines + [f"{name}: {problem}" for name, problem in problems]


def _lines(record: CompareRecord, columns: list[Column]) -> list[str]:
    rows = [["", *(column.head for column in columns)], ["", *(column.unit for column in columns)]]
    rows.append(["(base)", *base_cells(record, columns)])
    rows += [[name, *cells_of(row, columns)] for name, row in record.rows.items()]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            f"{cell:<{width}}" if i == 0 else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def loading_line(record: CompareRecord) -> str:
    """Seconds to load the base by the type of its file, as it is and quantized, or why not; empty where nobody measured."""
    found = [
        f"{dtype} {one['seconds']:.3f} s ({one['quantize_seconds']:.3f} s into NF4)"
        for dtype, one in record.loading.items()
        if isinstance(one, dict)
    ]
    return ", ".join([*found, *([str(record.loading["failed"])] if "failed" in record.loading else [])])
