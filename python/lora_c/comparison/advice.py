"""One sentence of advice that follows from the rows of a comparison, and from nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .intervals import Mean, mean_of

if TYPE_CHECKING:
    from .record import CompareRecord, RowRecord

_SAME, _CLOSE = 0.01, 0.05  # of the loss: as good in any case; as good where the seeds show no clear difference


def advice_of(record: CompareRecord) -> str:
    """Name the row that costs the least memory of those that are as good as the best one.

    As good: within 1 % of its loss; or within 5 %, where the 95 % interval of the difference, seed by seed, holds 0.
    """
    found = {name: mean for name, row in record.rows.items() if (mean := _loss(row)) is not None}
    if not found:
        return "No row has a held-out loss; see why each was refused, failed or diverged."
    best = min(found, key=lambda name: found[name].value)
    base = record.base.get("results", {}).get("eval_loss")
    if base is not None and found[best].value >= base:
        return (
            f"Train otherwise: no row came below the base's held-out loss of {base:.4f} (the best, {best}, has "
            f"{found[best].value:.4f}); give more steps, more data or another learning rate."
        )
    if len(found) == 1:
        more = "--rows names more" if len(record.rows) == 1 else "see why each was refused, failed or diverged"
        return (
            f"{best} ({record.rows[best].title}) has a held-out loss of {_shown(found[best])}, and no other row has one to "
            f"compare it with; {more}."
        )
    close = [name for name in found if _is_as_good(record.rows[name], record.rows[best])]
    chosen = min(close, key=lambda name: (_cost(record.rows[name]), _size(record.rows[name]), found[name].value))
    words = f"Take {chosen} ({record.rows[chosen].title}): held-out loss {_shown(found[chosen])}"
    if chosen == best:
        words += ", the best of all rows"
    else:
        words += f", as good as the best ({best}, {_shown(found[best])}) for what {_sure(found[best])} can tell"
    return words + _saved(record, chosen, best) + "."


def _sure(best: Mean) -> str:
    return "one seed" if best.half is None else f"{best.n} seeds"


def _is_as_good(row: RowRecord, best: RowRecord) -> bool:
    mean, least = _loss(row), _loss(best)
    assert mean is not None and least is not None
    if mean.value <= least.value * (1 + _SAME):
        return True
    ours, theirs = row.by_seed("results", "eval_loss"), best.by_seed("results", "eval_loss")
    differences = [ours[seed] - theirs[seed] for seed in ours.keys() & theirs.keys()]
    if len(differences) < 2 or mean.value > least.value * (1 + _CLOSE):
        return False
    return mean_of(differences).low <= 0.0


def _saved(record: CompareRecord, chosen: str, best: str) -> str:
    """What it takes, beside what the best takes where that is another row."""
    memory, size = (_cost(record.rows[chosen]), _size(record.rows[chosen]))
    parts = [f"{int(size):,} trained parameters"] if size < float("inf") else []
    if memory < float("inf"):
        other = _cost(record.rows[best])
        beside = f" in place of {other / 2**20:,.0f}" if best != chosen and other < float("inf") else ""
        parts.insert(0, f"{memory / 2**20:,.0f} MiB of memory{beside}")
    return f", with {' and '.join(parts)}" if parts else ""


def _shown(mean: Mean) -> str:
    return f"{mean.value:.4f}" + ("" if mean.half is None else f" ± {mean.half:.4f}")


def _loss(row: RowRecord) -> Mean | None:
    return row.mean("results", "eval_loss")


def _cost(row: RowRecord) -> float:
    memory = row.mean("costs", "peak_rss_bytes")
    return float("inf") if memory is None else memory.value


def _size(row: RowRecord) -> float:
    size = row.mean("results", "trained_parameters")
    return float("inf") if size is None else size.value
