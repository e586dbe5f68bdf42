"""The line protocol of bench_peers.py: what its two sides share."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

from shapes import peak_resident_bytes, reset_peak_resident


def timed(action: Callable[[], Any]) -> dict[str, Any]:
    """Run once; wall clock and CPU seconds of the whole process, and what the action returned."""
    wall, cpu = time.perf_counter(), time.process_time()
    value = action()
    return {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "value": value}


def serve(prepare: Callable[[dict[str, Any]], tuple[Callable[[int], Any], dict[str, Any]]]) -> None:
    """Worker of a comparison: one JSON request a line, one JSON answer a line.

    The first request is the task; ``prepare`` returns what runs repetition i of it and what there is to say beforehand
    (its time is that of loading). {"run": i} answers with `timed`, {"memory": true} with the peak since the preparation.
    """
    answer = sys.stdout
    sys.stdout = sys.stderr  # libraries may print
    task = json.loads(sys.stdin.readline())
    prepared = timed(lambda: prepare(task))
    run, facts = prepared.pop("value")
    print(json.dumps(prepared | facts | {"memory": peak_resident_bytes()}), file=answer, flush=True)
    reset_peak_resident()
    for line in sys.stdin:
        request = json.loads(line)
        if "run" in request:
            index = request["run"]
            reply = timed(lambda index=index: run(index))
        else:
            reply = {"bytes": peak_resident_bytes()}
        print(json.dumps(reply), file=answer, flush=True)
