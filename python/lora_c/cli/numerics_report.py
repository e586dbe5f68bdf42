"""What `lora-c bench --numerics` prints for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from ..comparison.numerics_record import EXACT, LEAST_COSINE, place_of, short_name
from ..display.console import TextConsole

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..comparison.numerics_record import Cosines, NumericsRecord

_MOST_NAMED = 5  # parameters whose gradients are worse, of each precision


def show_numerics(record: NumericsRecord, about: Mapping[str, Any]) -> None:
    """Print the precisions beside each other, their gradients by module, and what follows."""
    console = TextConsole()
    size = about["per_device_train_batch_size"]
    counts = (about["steps"], "step"), (size, "sequence"), (len(record.seeds), "seed"), (about["threads"], "thread")
    steps, sequences, seeds, threads = (f"{n:,} {what}{'' if n == 1 else 's'}" for n, what in counts)
    click.echo(
        f"{steps} of {sequences}, rank {about['rank']}, "
        f"learning rate {about['learning_rate']:g}, {seeds}; {about['device']}, {about['isa']}, {threads}"
    )
    console.print(_precisions(record))
    others = [precision for precision in record.runs if precision != EXACT]
    if any(record.cosines(precision) for precision in others):
        click.echo()
        console.print(_gradients(record, others))
    click.echo()
    for line in verdict_lines(record):
        click.echo(line)


def _table(*heads: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(heads[0], no_wrap=True)
    for head in heads[1:]:
        table.add_column(head, justify="right", overflow="fold")
    return table


def _precisions(record: NumericsRecord) -> Table:
    table = _table("", "held-out", "difference", "largest", "cosine", "least", "tokens/s", "MiB")
    for precision in record.runs:
        loss, differences, cosines = record.eval_loss(precision), record.differences(precision), record.cosines(precision)
        speed, memory = record.tokens_per_second(precision), record.peak_memory_bytes(precision)
        cells = ["diverged" if loss is None else f"{loss:.4f}"]
        if precision == EXACT or differences is None:
            cells += ["", ""]
        else:
            cells += [f"{sum(differences) / len(differences):+.5f}", f"{max(map(abs, differences)):.5f}"]
        cells += ["", ""] if cosines is None else [f"{cosines.mean:.4f}", f"{cosines.least:.4f}"]
        cells += ["" if speed is None else f"{speed:,.0f}", "" if memory is None else f"{memory / 2**20:,.1f}"]
        table.add_row(precision, *cells)
    return table


def _gradients(record: NumericsRecord, precisions: list[str]) -> Table:
    """A row for each target module, for each precision its mean, its least, and the layer and matrix of that."""
    heads = [head for precision in precisions for head in (f"{precision}, mean", "least", "layer")]
    table = _table("cosines", *heads)
    found = {precision: record.modules(precision) for precision in precisions}
    for module in dict.fromkeys(name for modules in found.values() for name in modules):
        table.add_row(module, *(cell for modules in found.values() for cell in _cells(modules.get(module))))
    return table


def _cells(cosines: Cosines | None) -> tuple[str, str, str]:
    if cosines is None:
        return "", "", ""
    return f"{cosines.mean:.4f}", f"{cosines.least:.4f}", place_of(cosines.worst)


def verdict_lines(record: NumericsRecord) -> list[str]:
    """A line for each precision: whether its difference is below the spread between seeds, and which gradients are worse."""
    spread, lines = record.spread, []
    for precision in record.runs:
        if precision != EXACT:
            lines.append(f"verdict   {precision}: {_verdict(record, precision, spread)}")
            lines += _worse(record, precision)
    return lines + [f"left out  {precision}: {why}" for precision, why in record.left_out.items()]


def _verdict(record: NumericsRecord, precision: str, spread: float | None) -> str:
    stopped = {seed: run.diverged for seed, run in zip(record.seeds, record.runs[precision], strict=True) if run.diverged}
    if stopped:
        first = next(iter(stopped.values())).removeprefix("training: ")
        return f"diverged with seed {', '.join(map(str, stopped))}, where exact does not: {first}"
    largest = record.largest_difference(precision)
    assert largest is not None  # nothing diverged
    said = f"held-out loss differs from exact by {largest:.5f} at most"
    if spread is None:
        return f"{said}; one seed has no spread to hold it against, give --seeds 3"
    is_below = largest < spread
    return f"{said}, which is {'below' if is_below else 'NOT below'} the spread between seeds, {spread:.5f}"


def _worse(record: NumericsRecord, precision: str) -> list[str]:
    found = record.worse(precision)
    if not found:
        return []
    named = ", ".join(f"{short_name(name)} {value:.3f}" for name, value in list(found.items())[:_MOST_NAMED])
    more = f" and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
    return [f"{'':<9} gradients with a cosine below {LEAST_COSINE:g}: {named}{more}"]
