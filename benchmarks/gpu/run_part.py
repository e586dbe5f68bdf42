"""Runs one part in a process of its own and writes its result: the machine, and the rows that the part printed.

Usage: python run_part.py PART --out FILE [--device NAME] [--backend FILE] [--tiny] [--limit SECONDS] [--python PROGRAM]

A part that crashes, or takes longer than its limit, leaves the rows that it had, and "ok" is false.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import machine

HERE = Path(__file__).resolve().parent
# In the order in which they are worth running: first what says whether the numbers mean anything.
PARTS = {
    "devices": ["part_devices.py"],
    "wrappers": ["part_wrappers.py"],
    "ops": ["part_ops.py"],
    "sanitizer": ["part_sanitizer.py"],
    "golden": ["part_golden.py"],
    "kernels": ["part_kernels.py"],
    "bench-1b": ["part_bench.py", "llama-3.2-1b"],
    "bench-8b": ["part_bench.py", "llama-3.1-8b"],
    "bench-70b": ["part_bench.py", "llama-3.1-70b"],
    "bench-175b": ["part_bench.py", "gpt3-175b"],
    "decode-8b": ["part_decode.py", "llama-3.1-8b"],
    "peers": ["part_peers.py"],
}


def run(command: list[str], limit: float, env: dict[str, str]) -> tuple[list[dict[str, Any]], str]:
    """Return the rows of a part, and why it is not whole ("" where it is)."""
    rows: list[dict[str, Any]] = []
    done = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    late = threading.Timer(limit, done.kill)
    begin = time.monotonic()
    late.start()
    assert done.stdout is not None
    for line in done.stdout:
        print("   ", line.rstrip(), flush=True)
        if line.startswith("{"):
            rows.append(json.loads(line))
    status = done.wait()
    late.cancel()
    if status == 0:
        return rows, ""
    return rows, f"took longer than {limit:g} s" if time.monotonic() - begin >= limit else f"ended with status {status}"


def main() -> int:
    """Run the part; 1 where it failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--backend", default="")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--limit", type=float, default=460)
    parser.add_argument("--python", default=sys.executable)
    args = parser.parse_args()
    script, *more = PARTS[args.part]
    command = [args.python, str(HERE / script), *more, "--device", args.device, "--backend", args.backend]
    begin, before = time.monotonic(), machine.facts()
    rows, error = run(command + ["--tiny"] * args.tiny, args.limit, dict(os.environ))
    wrong = [row for row in rows if row.get("ok") is False]
    if not error and wrong:
        error = f"{len(wrong)} of {len(rows)} rows are not as they must be"
    result = {"part": args.part, "ok": not error, "error": error, "device": args.device, "tiny": args.tiny}
    result |= {"seconds": round(time.monotonic() - begin, 1), "machine": before, "gpus_after": machine.gpus(), "rows": rows}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    beside = args.out.with_suffix(".part")
    beside.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    beside.replace(args.out)
    print(f"{args.part}: {error or 'done'}, {len(rows)} rows, {result['seconds']} s", flush=True)
    return 1 if error else 0


if __name__ == "__main__":
    sys.exit(main())
