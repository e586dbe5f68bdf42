"""Whatever meets a run, at whatever moment: what it had reached is there, the rest gives the same bits, and no traceback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from run_moments import EVENTS, MOMENTS

RUNS = Path(__file__).with_name("run_moments.py")
STATUS = {"INT": 130, "TERM": 143, "HUP": 129, "INT twice": 130, "closed terminal": 0, "closed pipe": 0, "full log": 0}


@pytest.fixture(scope="module")
def outcomes(tiny: Any) -> Iterator[dict[tuple[str, str], dict[str, Any]]]:
    """What became of every run."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # every save is synced
    folder = Path(tempfile.mkdtemp(prefix="lora-c-moments-", dir=memory))
    try:
        tiny.write(folder / "model", tiny.config, tiny.tensors(tiny.config))
        records = [{"prompt": f"w{3 + i} w{4 + i} ", "completion": f"w{5 + i}"} for i in range(30)]
        (folder / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        done = subprocess.run([sys.executable, str(RUNS), str(folder)], capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        found = [json.loads(line) for line in done.stdout.splitlines()]
        yield {(one["event"], one["moment"]): one for one in found}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("moment", list(MOMENTS))
@pytest.mark.parametrize("event", list(EVENTS))
def test_a_run_that_meets_something_loses_nothing(
    outcomes: dict[tuple[str, str], dict[str, Any]], event: str, moment: str
) -> None:
    found = outcomes[event, moment]
    log = found["log"]
    assert found["inputs"] and found["left"] == [] and "Traceback" not in log and "Exception" not in log, log
    assert found["same"], log + found["log again"]  # at once, or by --resume auto: the bits of the run that nothing met
    if event == "full disk":
        assert found["status"] == (0 if moment in ("model card", "plot") else 1), log
        assert "expected room on the disk" in log or "not written" in log
        return
    assert found["status"] == STATUS[event], log
    ends_early = event in ("INT", "TERM", "HUP", "INT twice") and list(MOMENTS).index(moment) < 6
    assert found["whole at once"] is not ends_early
    if ends_early and moment not in ("loading", "answers before"):
        assert "go on     lora-c train --config " in log and ("press again to" in log or "press twice more to" in log)
        assert "stopped" in log.splitlines()[-1]


def test_a_second_signal_leaves_the_step_that_the_first_one_lets_end(outcomes: dict[tuple[str, str], dict[str, Any]]) -> None:
    assert "stopped at step 3" in outcomes["INT", "step"]["log"]
    assert "stopped at step 2" in outcomes["INT twice", "step"]["log"]
