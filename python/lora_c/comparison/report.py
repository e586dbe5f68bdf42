"""compare.html: one file with everything in it, for a browser without network, of any width, by day and by night."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from .record import CompareRecord
from .table import base_cells, cells_of, columns_of

REPORT = "compare.html"
_STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --back: #ffffff; --line: #d0d7de; --soft: #f3f5f8; --mark: #0b5cad; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e8eb; --back: #14171b; --line: #3a4048; --soft: #1e2329; --mark: #7db8ff; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 80rem; color: var(--text); background: var(--back);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin-top: 2rem; }
.advice { border-left: 4px solid var(--mark); background: var(--soft); padding: .75rem 1rem; }
.wide { overflow-x: auto; } .wide:focus { outline: 2px solid var(--mark); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .875rem; }
caption { text-align: left; padding: .25rem 0 .5rem; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th[scope=row] { text-align: left; position: sticky; left: 0; background: var(--back); }
thead th { background: var(--soft); } thead th:first-child { text-align: left; }
.unit { display: block; font-weight: normal; }
img { display: block; width: 100%; height: auto; background: #ffffff; border: 1px solid var(--line); border-radius: 4px; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1rem;
  align-items: start; }
figure { margin: 0; max-width: 36rem; } dt { font-weight: 600; } dd { margin: 0 0 .5rem 0; }
""".strip()


def report_html(record: CompareRecord, pictures: Mapping[str, str], folder: Path, facts: Mapping[str, str]) -> str:
    """The report as a text.

    Parameters
    ----------
    pictures : mapping
        Names of the files in the folder, and what they show.
    facts : mapping
        How it was measured: command, date, machine.
    """
    parts = [
        f'<p class="advice"><strong>Advice.</strong> {escape(record.advice)}</p>',
        _section("Rows", _rows(record)),
        _section("Pictures", _figures({folder / name: text for name, text in pictures.items()})),
        _section("Loading", _loading(record.loading)),
        _section("What is measured", _meanings(record)),
        _section("How it was measured", _terms(facts.items())),
    ]  # fmt: skip
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>lora-c compare</title>\n<style>\n{_STYLE}\n</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{_title(len(record.rows))}</h1>\n{''.join(parts)}</main>\n</body>\n</html>\n"
    )


def _title(n: int) -> str:
    return "One way to train a base" if n == 1 else f"{n} ways to train one base"


def _section(title: str, body: str) -> str:
    head = f"<h2>{escape(title)}</h2>\n" if title else ""
    return f"<section>\n{head}{body}</section>\n" if body else ""


def _rows(record: CompareRecord) -> str:
    columns = columns_of(record)
    heads = [(column.head, column.unit) for column in columns]
    body = [("base", "as it was before", base_cells(record, columns))]
    body += [(name, row.title, cells_of(row, columns)) for name, row in record.rows.items()]
    most = max((len(row.runs) for row in record.rows.values()), default=0)
    caption = f"{most} seeds; ± is half of the 95 % interval (Student's t)." if most > 1 else "One seed: no intervals."
    problems = [(name, row.problem) for name, row in record.rows.items() if row.problem]
    return _table(caption, "row", heads, body) + _terms(problems)


def _loading(loading: Mapping[str, Any]) -> str:
    if "failed" in loading or not loading:
        return f"<p>{escape(str(loading['failed']))}</p>\n" if loading else ""
    heads = [("file", "MiB"), ("as it is", "s"), ("NF4 with DQ", "s")]
    body = [
        (dtype, "", [f"{found['bytes'] / 2**20:,.1f}", f"{found['seconds']:.3f}", f"{found['quantize_seconds']:.3f}"])
        for dtype, found in loading.items()
    ]
    return _table("Seconds until the base is in memory, by the type of its file.", "type", heads, body)


def _table(caption: str, first: str, heads: Sequence[tuple[str, str]], body: Sequence[tuple[str, str, list[str]]]) -> str:
    top = "".join(
        f'<th scope="col">{escape(head)} <span class="unit">{escape(unit)}</span></th>' for head, unit in heads
    )  # fmt: skip
    lines = "".join(f"<tr>{_head_cell(name, title)}{''.join(map(_cell, cells))}</tr>\n" for name, title, cells in body)
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{escape(caption)}">\n<table>\n'
        f'<caption>{escape(caption)}</caption>\n<thead><tr><th scope="col">{escape(first)}</th>{top}</tr></thead>\n'
        f"<tbody>\n{lines}</tbody>\n</table>\n</div>\n"
    )


def _head_cell(name: str, title: str) -> str:
    hint = f' title="{escape(title)}"' if title else ""
    return f'<th scope="row"{hint}>{escape(name)}</th>'


def _cell(text: str) -> str:
    return f"<td>{escape(text)}</td>" if text else '<td><span aria-label="none">–</span></td>'


def _meanings(record: CompareRecord) -> str:
    rows = [(name, row.title) for name, row in record.rows.items()]
    return _terms([(column.head, column.meaning) for column in columns_of(record)] + rows)


def _terms(pairs: Iterable[tuple[str, str]]) -> str:
    lines = "".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>\n" for term, text in pairs)
    return f"<dl>\n{lines}</dl>\n" if lines else ""


def _figures(pictures: Mapping[Path, str]) -> str:
    """Side by side where there is room."""
    found = "".join(_figure(path, text) for path, text in pictures.items())
    return f'<div class="figures">\n{found}</div>\n' if found else ""


def _figure(path: Path, text: str) -> str:
    data = b64encode(path.read_bytes()).decode("ascii")
    return (
        f'<figure>\n<img alt="{escape(text)}" src="data:image/png;base64,{data}">\n'
        f"<figcaption>{escape(text)}</figcaption>\n</figure>\n"
    )
