"""Every command in terminals of several widths, without colours, with plain ASCII, and in pipes."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from command_lines import CALLS, call, called, environment, lines_of, make_workplace, on_terminal, served, words_of

from lora_c.cli.commands import COMMANDS
from lora_c.cli.streams import fitted

REPORTS = [name for name in COMMANDS if name not in ("generate", "chat", "completion")]  # the others write other people's text
NUMBER = re.compile(r"\d[\d,.]*")


_seen: dict[tuple[str, int], tuple[str, int]] = {}


def watched(workplace: Path, name: str, columns: int) -> tuple[str, int]:
    """What a terminal shows of a command; several tests look at the same run."""
    if (name, columns) not in _seen:
        _seen[name, columns] = on_terminal(workplace, words_of(name), columns)
    return _seen[name, columns]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workplace(tmp_path_factory.mktemp("w"))


def test_there_is_a_call_of_every_command() -> None:
    assert set(COMMANDS) <= set(CALLS)


@pytest.mark.parametrize(
    ("name", "columns"),
    [*((name, 60) for name in REPORTS), *((name, columns) for name in ("train", "inspect", "data") for columns in (80, 120))],
)
def test_no_line_is_wider_than_the_terminal(workplace: Path, name: str, columns: int) -> None:
    """A terminal breaks a longer line wherever it ends, and a number may stand there."""
    seen, code = watched(workplace, name, columns)
    assert code == 0, seen
    assert not [line for line in lines_of(seen) if len(line) > columns]
    assert "\x1b[" in seen or name in ("plot", "export")  # bars or bold letters: this was a terminal


@pytest.mark.parametrize("name", COMMANDS)
def test_files_have_no_escape_codes_and_only_reports_are_on_standard_output(workplace: Path, name: str) -> None:
    how = served if name == "serve" else call if name in ("train", "inspect") else called
    done = how(workplace, words_of(name))
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr and "\r" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_steps_and_time_stay_in_a_narrow_terminal(workplace: Path) -> None:
    for columns, kept, dropped in (
        (30, r"^training +\d+/12 .*(left|in all)$", "loss|held-out|tokens/s"),
        (60, r"^training .* +\d+/12 loss \d+\.\d{4} .*(left|in all)$", "tokens/s"),
        (120, r"^training .*/12 loss \d+\.\d{4} held-out \d+\.\d{4} [\d,]+ tokens/s .*(left|in all)$", "^$"),
    ):
        seen, code = watched(workplace, "train", columns)
        bars = [line for line in lines_of(seen) if re.search(r"\d/12", line) and line.startswith("training")]
        assert code == 0 and re.match(kept, bars[-1]), bars[-1]
        assert not any(re.search(dropped, bar) for bar in bars)


def test_colours_mean_something(workplace: Path) -> None:
    seen, _ = watched(workplace, "train", 80)
    assert "\x1b[36m" in seen and "\x1b[32m" in seen  # under way, done
    assert not re.search(r"\x1b\[[\d;]*\b(31|35|38;2;249|38;5;(1|5|9|160|161|196|197|198))\b[\d;]*m", seen)  # red and pink
    bad, code = on_terminal(workplace, [*words_of("train"), "--lr", "1e30"], 80)
    assert code == 1 and "\x1b[31m" in bad and "training: expected" in bad


@pytest.mark.parametrize("name", ["train", "inspect"])
def test_no_color_has_none(workplace: Path, name: str) -> None:
    seen, code = on_terminal(workplace, words_of(name), 80, NO_COLOR="1")
    colours = re.findall(r"\x1b\[([\d;]*)m", seen)
    assert code == 0 and not [c for c in colours if re.search(r"(^|;)(3\d|4\d|9\d|10\d)(;|$)", c)], colours


@pytest.mark.parametrize("name", ["train", "inspect"])
def test_a_dumb_terminal_gets_lines(workplace: Path, name: str) -> None:
    seen, code = on_terminal(workplace, words_of(name), 80, TERM="dumb")
    assert code == 0 and "\x1b" not in seen and "\r" not in seen.replace("\r\n", "")
    if name == "train":
        assert re.search(r"^step 12/12  loss \d+\.\d{4}", seen, re.M)


@pytest.mark.parametrize(
    ("name", "locale"),
    [*((name, {"LANG": "C"}) for name in ("train", "inspect", "demo", "data")), ("inspect", {"LC_ALL": "POSIX"})],
)
def test_a_terminal_of_ascii_gets_ascii(workplace: Path, name: str, locale: dict[str, str]) -> None:
    seen, code = on_terminal(workplace, words_of(name), 60, **locale)
    assert code == 0, seen
    assert seen.isascii() and "\\u" not in seen and "\\x" not in seen
    assert not [line for line in lines_of(seen) if len(line) > 60]


def test_ascii_keeps_what_it_cannot_say_readable(workplace: Path) -> None:
    done = call(workplace, ["inspect", "naïve – …×한"], PYTHONIOENCODING="ascii")
    assert done.returncode == 1 and "na\\xefve - ...x\\ud55c" in done.stderr
    utf8 = call(workplace, ["inspect", "naïve – …×한"], LANG="C")  # a file gets UTF-8 whatever the terminal can show
    assert "naïve – …×한" in utf8.stderr


def test_a_missing_plot_is_told_in_the_first_line(workplace: Path) -> None:
    (workplace / "hidden").mkdir()
    (workplace / "hidden" / "sitecustomize.py").write_text("import sys; sys.modules['matplotlib'] = None\n")
    words = words_of("train")
    path = os.pathsep.join([str(workplace / "hidden"), environment()["PYTHONPATH"]])
    done = call(workplace, words, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    first, _, rest = done.stderr.partition("\n")
    assert first == "note      there will be no loss.png: matplotlib is not installed (pip install 'lora-c[plot]')"
    assert "loss.png" not in rest and not (workplace / words[6] / "loss.png").exists()
    refused = call(workplace, words_of("plot"), PYTHONPATH=path)
    assert refused.returncode == 1 and refused.stderr.startswith("lora-c: plot: expected matplotlib")
    assert refused.stderr.rstrip().endswith("pip install 'lora-c[plot]'") and refused.stderr.count("\n") == 1


@pytest.mark.parametrize(("text", "columns", "broken"), [
    ("data      a.jsonl: 80 sequences, 6,639 tokens", 30,
     "data      a.jsonl: 80\n          sequences, 6,639\n          tokens"),
    ("one two three four five six seven", 20, "one two three four\n  five six seven"),
    ("a" * 40 + " b", 20, "a" * 40 + "\n  b"), ("short", 20, "short"), ("one two three four five six", None, None),
    ("one two three four five six", 5, None), ('{"key": "one two three four five"}', 20, None), ("", 20, ""),
    ("a b\none two three four five six seven\n", 20, "a b\none two three four\n  five six seven\n"),
])  # fmt: skip
def test_lines_are_broken_between_words(text: str, columns: int | None, broken: str | None) -> None:
    assert fitted(text, columns) == (text if broken is None else broken)
    assert NUMBER.findall(fitted(text, columns)) == NUMBER.findall(text)
