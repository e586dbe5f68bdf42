"""Part kernels: bytes moved against a copy on the device, linear layers and attention, as bench_device prints them."""

from __future__ import annotations

import os
import subprocess
import sys

from common import PROGRAMS, options


def main() -> None:
    """Print its rows as they come."""
    args = options(__doc__)
    command = [str(PROGRAMS / "bench_device"), args.device] + ["tiny"] * args.tiny
    sys.exit(subprocess.run(command, env=os.environ | {"LORA_C_BACKENDS": args.backend}, check=False).returncode)


if __name__ == "__main__":
    main()
