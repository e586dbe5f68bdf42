"""compare.html: whole markup, nothing from outside, tables that a screen reader can read, names that are no markup."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lora_c.comparison.pictures import draw_pictures
from lora_c.comparison.record import CompareRecord, RowRecord
from lora_c.comparison.report import report_html

_VOID = {"meta", "img", "br", "hr"}


class Page(HTMLParser):
    """Tags with their attributes, and that each is closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def record() -> CompareRecord:
    curve = [{"step": 0, "eval_loss": 3.0}, {"step": 4, "eval_loss": 2.0, "train_loss": 1.5}]
    costs = {"peak_rss_bytes": 2**27, "tokens_per_second": 900.0, "token_seconds": {"unmerged": 0.002}}

    def run(loss: float) -> dict[str, dict[str, object]]:
        results = {"eval_loss": loss, "trained_parameters": 10, "checkpoint_bytes": 2048, "gap": 0.1, "curve": curve}
        return {"results": {**results, "scores": {"exact_match": 0.5}}, "costs": costs}

    rows = {
        "lora": RowRecord("LoRA <b>", {}, {0: run(2.0), 1: run(2.2)}), "no": RowRecord("", {}, {0: {"refused": "r: <x>"}}),
    }  # fmt: skip
    loading = {"float32": {"bytes": 2**22, "seconds": 0.5, "quantize_seconds": 0.7}}
    return CompareRecord({}, {"results": {"eval_loss": 3.0}, "costs": {}}, rows, loading, "Take <lora>.")


def test_the_report_is_one_whole_file(record: CompareRecord, tmp_path: Path) -> None:
    pictures = draw_pictures(record, tmp_path)
    assert list(pictures) == ["losses.png", "curves.png", "costs.png"]
    assert all((tmp_path / name).read_bytes()[:4] == b"\x89PNG" for name in pictures)
    text = report_html(record, pictures, tmp_path, {"command": "lora-c compare --data 'a&b'"})
    page = Page(text)
    assert not page.of("script") and not page.of("link") and not page.of("iframe")
    assert [str(image["src"])[:22] for image in page.of("img")] == ["data:image/png;base64,"] * 3
    assert all(image["alt"] for image in page.of("img"))
    outside = [value for _, attributes in page.tags for value in attributes.values() if value and "//" in value[:64]]
    assert not outside and "url(" not in text and "@import" not in text
    said = "".join(page.texts)
    assert "Take <lora>." in said and "r: <x>" in said and "a&b" in said and "LoRA <b>" in said
    assert not page.of("b") and not page.of("x") and not page.of("lora")
    assert "2.1000 ±1.2706" in said and "2 seeds; ± is half" in said and "0.700" in said


def test_it_can_be_read_on_a_phone_by_night_and_aloud(record: CompareRecord, tmp_path: Path) -> None:
    text = report_html(record, {}, tmp_path, {})
    page = Page(text)
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.of("meta")
    assert page.of("html") == [{"lang": "en"}] and "prefers-color-scheme: dark" in text and "overflow-x: auto" in text
    assert len(page.of("table")) == len(page.of("caption")) == 2
    assert {cell["scope"] for cell in page.of("th")} == {"col", "row"}
    regions = [part for part in page.of("div") if part.get("role") == "region"]
    assert len(regions) == 2 and all(part["tabindex"] == "0" and part["aria-label"] for part in regions)
    body = text.partition("<tbody>")[2].partition("</tbody>")[0]
    n_columns = text.partition("</thead>")[0].count('scope="col"')
    assert {1 + len(re.findall("<td>", line)) for line in body.strip().splitlines()} == {n_columns}


def test_without_a_row_that_ran_there_is_nothing_to_draw(tmp_path: Path) -> None:
    assert draw_pictures(CompareRecord({}, rows={"no": RowRecord("", {}, {0: {"refused": "x"}})}), tmp_path) == {}
    assert "1 ways" not in report_html(CompareRecord({}, rows={"no": RowRecord("", {})}), {}, tmp_path, {})


def test_pictures_stand_in_one_grid_under_one_title(record: CompareRecord, tmp_path: Path) -> None:
    text = report_html(record, draw_pictures(record, tmp_path), tmp_path, {})
    page = Page(text)
    assert text.count("<h2>Pictures</h2>") == 1 and text.count('<div class="figures">') == 1
    grid = text[text.index('<div class="figures">') : text.index("What is measured")]
    assert grid.count("<figure>") == len([tag for tag, _ in page.tags if tag == "figure"]) > 1


def test_a_logarithmic_axis_has_plain_numbers() -> None:
    from matplotlib.figure import Figure

    from lora_c.display.compare_picture import _plain_numbers

    axes = Figure().add_subplot()
    axes.plot([1, 2], [1.5, 9.0])
    axes.set_yscale("log")
    _plain_numbers(axes.yaxis)
    labels = [axes.yaxis.get_major_formatter()(value, None) for value in axes.yaxis.get_major_locator().tick_values(1.5, 9.0)]
    assert {"2", "5"} <= set(labels) and not any("10^" in label or "e" in label for label in labels)
    assert axes.yaxis.get_minor_formatter()(3.0, None) == ""
