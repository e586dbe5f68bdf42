"""Samples to look at: colour on terminals, marks elsewhere, HTML in notebooks; lengths, and what is there twice."""

from __future__ import annotations

import io
import os
import pty
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import lora_c as lc
from lora_c.data import Sample
from lora_c.data.duplicates import Pair, repeated, shared
from lora_c.data.lengths import Bin, Lengths, plot_lengths
from lora_c.data.shown import MOST_TOKENS, Shown, marks_for, pieces_of, shown_samples, visible
from lora_c.demo.run import BASE_MODEL
from lora_c.errors import ConfigError, DataError
from lora_c.text.tokenizer import Tokenizer

PAIRS = [{"prompt": f"Once {i}", "completion": " upon a time"} for i in range(5)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(BASE_MODEL)


@pytest.fixture(scope="module")
def data(tokenizer: Tokenizer) -> lc.Dataset:
    return lc.Dataset.from_records(PAIRS, tokenizer)


def byte_tokenizer() -> Tokenizer:
    """A token for each byte, so that characters lie in several tokens."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE({letter: i for i, letter in enumerate([*letters, "<end>"])}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.add_special_tokens(["<end>"])
    return Tokenizer(backend, {"eos_token": "<end>"})


def read_all(leader: int) -> str:
    """What was written to a terminal that is closed."""
    parts = []
    try:
        while part := os.read(leader, 10_000):
            parts.append(part)
    except OSError:  # how Linux says that nobody has it open any more
        pass
    os.close(leader)
    return b"".join(parts).decode()


class TestText:
    def test_runs_of_tokens_join_to_the_text(self) -> None:
        tokenizer = byte_tokenizer()
        record = {"prompt": "日本語 ünï 🦙", "completion": " 🦙🦙 fox\n日"}
        sample = lc.Dataset.from_records([record], tokenizer)[0]
        pieces = list(pieces_of(sample, tokenizer))
        assert "".join(piece.text for piece in pieces) == tokenizer.decode(sample.input_ids, skip_special_tokens=False)
        assert [piece.loss for piece in pieces] == [False, True]
        assert pieces[1].text == record["completion"] + "<end>"

    def test_what_is_marked_is_what_is_counted(self, tokenizer: Tokenizer) -> None:
        text = lc.Dataset.from_records(["once upon a time"], tokenizer)[0]
        first, rest = pieces_of(text, tokenizer)  # the first token is never predicted
        assert (first.loss, rest.loss) == (False, True) and text.n_predicted == len(text) - 1
        silent = Sample(text.input_ids, text.loss_mask, empty=True)
        assert [piece.loss for piece in pieces_of(silent, tokenizer)] == [False]

    def test_the_middle_of_a_long_run_is_left_out(self, tokenizer: Tokenizer) -> None:
        sample = lc.Dataset.from_records([{"prompt": "a " * 500, "completion": " b" * 500}], tokenizer, max_seq_length=900)[0]
        pieces = list(pieces_of(sample, tokenizer))
        assert [piece.loss for piece in pieces] == [False, None, False, True, None, True]
        assert f" … {int((sample.loss_mask == 0).sum()) - MOST_TOKENS:,} more tokens … " == pieces[1].text

    def test_controls_are_written_as_their_numbers(self) -> None:
        assert visible("a\x1b[31mb\x07\r\n\t\x9b") == "a\\x1b[31mb\\x07\\r\n\t\\x9b"

    def test_a_data_set_of_own_samples_needs_a_tokenizer(self, data: lc.Dataset, tokenizer: Tokenizer, capsys) -> None:
        own = lc.Dataset(data.samples)
        with pytest.raises(DataError, match=r"tokenizer: expected one to write the samples with, got none; data.show\(3"):
            own.show()
        own.show(1, tokenizer)
        assert capsys.readouterr().out.startswith("1 of 5  record 1  ")
        for wrong in (-1, True, 1.5):
            with pytest.raises(DataError, match="n: expected a number of samples"):
                data.show(wrong)  # type: ignore[arg-type]


class TestShow:
    def test_without_colour_there_are_marks(self, data: lc.Dataset, capsys) -> None:
        assert data.show(2) is None
        out = capsys.readouterr().out
        assert "\x1b" not in out and out.count("⟦") == 2
        assert "Once 1⟦ upon a time<|end|>⟧\n" in out and "Once 2" not in out
        data.show()
        assert capsys.readouterr().out.count("⟦") == 3

    def test_a_terminal_without_such_signs_has_other_marks(self, data: lc.Dataset) -> None:
        file = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
        assert marks_for(file) == ("[[", "]]")
        Shown(tuple(shown_samples(data, 1))).print(file)
        file.flush()
        assert b"Once 0[[ upon a time<|end|>]]\n" in file.buffer.getvalue()  # type: ignore[attr-defined]

    @pytest.mark.parametrize(("variables", "colour"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
    def test_a_terminal_has_colour_unless_it_is_told_otherwise(self, data, monkeypatch, variables, colour) -> None:
        for name, value in ({"TERM": "xterm-256color", "NO_COLOR": ""} | variables).items():
            monkeypatch.setenv(name, value)
        leader, follower = pty.openpty()
        with open(follower, "w", encoding="utf-8") as terminal:
            monkeypatch.setattr(sys, "stdout", terminal)
            data.show(1)
        out = read_all(leader)
        assert ("\x1b[1;32m upon a time<|end|>\x1b[0m" in out) == colour
        assert ("⟦ upon a time<|end|>⟧" in out) != colour

    def test_a_notebook_gets_html(self, tokenizer: Tokenizer, monkeypatch, capsys) -> None:
        shown: list[Any] = []
        notebook = ModuleType("IPython")
        notebook.get_ipython = lambda: SimpleNamespace(kernel=object())  # type: ignore[attr-defined]
        display = ModuleType("IPython.display")
        display.display = shown.append  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "IPython", notebook)
        monkeypatch.setitem(sys.modules, "IPython.display", display)
        lc.Dataset.from_records([{"prompt": "<b>1 & 2</b>", "completion": " <i>"}], tokenizer).show()
        (one,) = shown
        assert capsys.readouterr().out == ""
        html = one._repr_html_()
        assert "&lt;b&gt;1 &amp; 2&lt;/b&gt;<span style=" in html and "> &lt;i&gt;&lt;|end|&gt;</span>" in html
        assert repr(one).splitlines()[1] == "<b>1 & 2</b>⟦ <i><|end|>⟧"

    def test_a_real_kernel_shows_html(self, tmp_path: Path) -> None:
        client = pytest.importorskip("nbclient", reason="needs nbclient (the test extra)")
        formats = pytest.importorskip("nbformat", reason="needs nbformat (the test extra)")
        pytest.importorskip("ipykernel", reason="needs ipykernel (the test extra)")
        code = f"""
import sys
sys.path.insert(0, {str(Path(lc.__file__).parents[1])!r})
import lora_c as lc
from lora_c.text.tokenizer import Tokenizer
lc.Dataset.from_records([{{"prompt": "Once", "completion": " upon"}}], Tokenizer.from_folder({str(BASE_MODEL)!r})).show()
"""
        book = formats.v4.new_notebook(cells=[formats.v4.new_code_cell(code)])
        client.NotebookClient(book, timeout=120, kernel_name="python3").execute()
        (output,) = book.cells[0].outputs
        assert "> upon&lt;|end|&gt;</span>" in output["data"]["text/html"]
        assert "Once⟦ upon<|end|>⟧" in output["data"]["text/plain"]


def of_lengths(*lengths: int) -> lc.Dataset:
    return lc.Dataset([Sample(np.zeros(n, np.int32), np.ones(n, np.float32)) for n in lengths])


class TestLengths:
    def test_numbers_and_round_bins(self) -> None:
        found = Lengths.of(of_lengths(*range(1, 101)))
        assert (found.shortest, found.median, found.most, found.longest) == (1, 50, 90, 100)
        assert found.bins[0] == Bin(0, 9, 9) and found.bins[1] == Bin(10, 19, 10) and found.bins[-1] == Bin(100, 109, 1)
        assert Lengths.of(of_lengths(7)).bins == (Bin(7, 7, 1),)
        for lengths in ([3, 3, 3], [1, 100_000], [2, 513], range(5, 17)):
            bins = Lengths.of(of_lengths(*lengths)).bins
            assert sum(b.count for b in bins) == len(lengths) and len(bins) <= 13
            for b in bins:
                assert b.count == sum(b.first <= n <= b.last for n in lengths)

    def test_lines_fit_the_width(self) -> None:
        found = Lengths.of(of_lengths(*[10] * 1000, 100_000))
        for width in (20, 60, 200):
            lines = found.lines(width)
            assert max(map(len, lines)) <= max(width, 34) and lines[0].endswith("#" * 4) and lines[-1].endswith("1  #")
            assert lines[0].split()[:2] == ["0-9,999", "1,000"]

    def test_a_picture(self, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib", reason="needs matplotlib (the plot extra)")
        plot_lengths({"training": of_lengths(1, 2, 3), "held out": of_lengths(9)}, tmp_path / "a.png")
        assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")

    def test_a_name_with_dollar_signs_is_no_formula(self, tmp_path: Path) -> None:
        pytest.importorskip("matplotlib", reason="needs matplotlib (the plot extra)")
        plot_lengths({"training": of_lengths(1, 2, 3)}, tmp_path / "a.png", "cost_$1_$2.jsonl")
        assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")

    def test_no_picture_without_matplotlib(self, tmp_path: Path, monkeypatch) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
        with pytest.raises(ConfigError, match=r"plot: expected the package matplotlib, .* pip install 'lora-c\[plot\]'"):
            plot_lengths({"training": of_lengths(1)}, tmp_path / "a.png")


class TestWhatIsThereTwice:
    def test_whole_samples_and_prompts(self, tokenizer: Tokenizer) -> None:
        def read(*pairs: tuple[str, str]) -> lc.Dataset:
            return lc.Dataset.from_records([{"prompt": p, "completion": c} for p, c in pairs], tokenizer)

        train = read(("a b", " c"), ("d e", " f"), ("a b", " c"), ("a b", " z"))
        held_out = read(("d e", " f"), ("a b", " other"), ("d e f", " f"), ("x", " y"))
        assert repeated(train) == 1 and repeated(held_out) == 0
        found = shared(train, held_out)
        assert found.samples == [Pair("record 1", "record 2")]
        assert found.prompts == [Pair("record 2", "record 1")]

    def test_texts_have_no_prompt(self, tokenizer: Tokenizer) -> None:
        train, held_out = (lc.Dataset.from_records([text], tokenizer) for text in ("once upon", "once more"))
        assert shared(train, held_out).prompts == []
