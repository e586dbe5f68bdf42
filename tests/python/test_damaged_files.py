"""A few hundred damaged files of every format, each read or refused in one line (tests/fuzz has the long runs)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lora_c import _core

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fuzz"))
from formats import FORMATS  # noqa: E402
from run import fuzz  # noqa: E402


@pytest.mark.filterwarnings("ignore::lora_c.notices.LoraCWarning")  # a damaged key is a key without effect
@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files(name: str) -> None:
    if name == "parquet":
        pytest.importorskip("pyarrow", reason="needs pyarrow (the data extra)")
    threads = _core.get_num_threads()
    _core.set_num_threads(1)
    try:
        report = fuzz(name, FORMATS[name], cases=200, seed=1)
    finally:
        _core.set_num_threads(threads)
    assert not report.findings, "\n".join(report.findings[:3])
    assert report.refused > 40 and report.accepted + report.refused == 200
    assert report.growth < 256 << 20
