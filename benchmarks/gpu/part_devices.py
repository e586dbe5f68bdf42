"""Part devices: what lora-c lists, and whether the one that is asked for can be used."""

from __future__ import annotations

from common import emit, options

import lora_c


def main() -> None:
    """One row a device, and the one in use."""
    args = options(__doc__)
    found = lora_c.devices()
    for device in found:
        emit(name=device.name, description=device.description, reason=device.reason)
    emit(what="the device in use", name=args.device, ok=any(d.name == args.device and d.usable for d in found))


if __name__ == "__main__":
    main()
