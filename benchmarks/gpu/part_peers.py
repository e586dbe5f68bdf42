"""Part peers: peers.py with the Python that has them (PEERS_PYTHON), told the shapes that lora-c is measured with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from common import options

from lora_c.bench_shapes import SHAPES

SIZES = {"llama-3.1-8b": [(1, 2048), (2, 2048), (4, 2048)], "llama-3.2-1b": [(2, 2048)]}


def main() -> None:
    """Pass its rows on as they come."""
    args = options(__doc__)
    sizes = {"tiny": [(1, 16)]} if args.tiny else SIZES
    task = {name: {"config": SHAPES[name].config, "sizes": of} for name, of in sizes.items()}
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}  # its own NumPy, not ours
    device = "cuda" if args.device.partition(":")[0] == "cuda" else "cpu"
    python = os.environ.get("PEERS_PYTHON", sys.executable)
    command = [python, str(Path(__file__).with_name("peers.py")), json.dumps(task), device]
    sys.exit(subprocess.run(command + ["tiny"] * args.tiny, env=env, check=False).returncode)


if __name__ == "__main__":
    main()
