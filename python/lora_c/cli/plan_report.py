"""What `lora-c plan` prints for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..display.console import TextConsole
from .inspect import size_text
from .run_table import duration

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..planning.papers import Figure
    from ..planning.plan import Plan
    from ..planning.terms import Term


def show_plan(plan: Plan) -> None:
    """Print a plan to standard output: sums with their terms, then what fits, what the papers say, and advice."""
    console = TextConsole()
    facts = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
    facts.add_column(min_width=9, no_wrap=True)
    facts.add_column()
    for label, text in _facts(plan):
        facts.add_row(label, Text(text, overflow="fold"))
    console.print(facts)
    _show_terms(console, "trained parameters", plan.parameter_terms, plan.trained, lambda n: f"{n:,.0f}")
    _show_terms(console, f"memory, recompute {plan.recompute}", plan.memory_terms, plan.memory.total, size_text_of)
    work = plan.flop_terms
    _show_terms(console, "FLOP of a token", work, sum(term.value for term in work), flops_text)
    if plan.figures:
        _show_figures(console, plan.figures)
    for line in plan.advice:
        console.print()
        console.print(Text.assemble(("advice  ", "bold"), line))


def _facts(plan: Plan) -> list[tuple[str, str]]:
    subject, config = plan.subject, plan.subject.config
    share = 100 * plan.trained / plan.total
    tokens, sequences = subject.micro_batch()
    rows = [
        ("model", f"{subject.name}: {plan.total - _adapted(plan):,} parameters ({subject.source})"),
        ("method", f"{config.method}: {plan.trained:,} trained of {plan.total:,} parameters ({share:.3g} %)"),
        (
            "batch",
            f"{sequences:,} sequences, together {tokens:,} tokens at most; {_passes(config.gradient_accumulation_steps)}",
        ),
        ("memory", f"{size_text_of(plan.memory.total)} with {config.optim}, {config.activation_dtype} activations"),
        ("saved", f"{size_text_of(plan.saved_bytes)}; a checkpoint to go on from {size_text_of(plan.checkpoint_bytes)}"),
    ]
    if plan.memory.offloaded:
        rows.append(("", f"and {size_text_of(plan.memory.offloaded)} of activations off-loaded to a file"))
    rows += _time(plan)
    return rows + _fit(plan)


def _passes(count: int) -> str:
    return "a step has one such pass" if count == 1 else f"a step has {count:,} such passes"


def _adapted(plan: Plan) -> int:
    return plan.trained if plan.subject.model.adapter is not None else 0


def _time(plan: Plan) -> list[tuple[str, str]]:
    speed = plan.speed
    if speed is None:
        return []
    how = f"measured in {plan.subject.config.precision}: {speed.how}"
    rows = [("time", f"{speed.step_seconds:.3g} s a step, {speed.tokens_per_second:,.0f} tokens/s ({how})")]
    if plan.steps is not None:
        rows.append(("", f"{plan.steps:,} steps take {duration(plan.steps * speed.step_seconds)}"))
    return rows


def _fit(plan: Plan) -> list[tuple[str, str]]:
    place, card = plan.place, plan.place.card
    about = "" if card is None else (
        f" ({card.memory_gib:g} GB, {card.bandwidth:,.0f} GB/s, compute capability {card.capability:.1f}; {card.source})"
    )  # fmt: skip
    if place.free is None:
        return [("fits", f"{place.name} does not say what is free")]
    answer = "yes" if plan.fits else "no"
    rows = [("fits", f"{answer}: {size_text_of(place.free)} free on {place.name}{about}")]
    if plan.fits:
        return rows
    if plan.remedy is None:
        return [*rows, ("change", plan.without_remedy)]
    return [
        *rows,
        ("change", f"{plan.remedy.flags}: {size_text_of(plan.remedy.plan.total)} ({plan.remedy.cost})"),
    ]


def _show_terms(console: TextConsole, title: str, terms: Sequence[Term], total: float, text: Callable[[float], str]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(title, overflow="fold")
    table.add_column("counted from", overflow="fold")
    table.add_column("", justify="right", no_wrap=True)
    for term in terms:
        table.add_row(term.name, term.formula, text(term.value))
    table.add_row("together", "", text(total), style="bold")
    console.print()
    console.print(table)


def _show_figures(console: TextConsole, figures: Sequence[Figure]) -> None:
    console.print(Text("\nthe papers", style="bold"))
    for figure in figures:
        both = f"{figure.figure:,g} {figure.unit} said, {figure.count:,.4g} {figure.unit} counted"
        said = f"{both} ({100 * figure.difference:+.1f} %)"
        console.print(Text(f"{figure.what}: {said}"))
        why = f"counted from {figure.formula}; {figure.reason} ({figure.source})"
        console.print(Padding(Text(why, style="dim"), (0, 0, 0, 2)))


def size_text_of(n: float) -> str:
    """Bytes in the unit that suits them."""
    return size_text(int(n))


def flops_text(n: float) -> str:
    """Operations in the unit that suits them."""
    for power, unit in ((12, "TFLOP"), (9, "GFLOP"), (6, "MFLOP")):
        if n >= 10**power:
            return f"{n / 10**power:,.2f} {unit}"
    return f"{n:,.0f} FLOP"
