"""NVIDIA cards by name: memory, bandwidth and compute capability, written down by hand; `source` is where to look them up."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, nearest

_NOISE = re.compile(r"nvidia|geforce|tesla|[^a-z0-9]")
_SHEET = "NVIDIA's data sheet of the {}"
_RTX = "NVIDIA's specifications of the GeForce RTX {} series"
_CAPABILITY = "compute capabilities: developer.nvidia.com/cuda-gpus"
# All rows were checked on 2026-11-28. Compute capabilities: against the page above (RTX 20: tables of PCI ids). Memory and
# bandwidth of RTX 30, 40, 50: a public table of NVIDIA's specifications; RTX 20, T4, RTX A6000, RTX 6000 Ada, H100 PCIe and
# H100 NVL: three public tables or more that agree (T4: some have 300 GB/s, NVIDIA's page "320+"); the others: the figures of
# the data sheets that such tables link to (B200: an eighth of the DGX B200's 1,440 GB and 64 TB/s).
# Of the memory that a card is sold with: what the driver and the context of a process keep.
RESERVED = 0.06


@dataclass(frozen=True)
class Card:
    """A card.

    Attributes
    ----------
    name : str
        As NVIDIA calls it.
    memory_gib : float
        What it is sold with; what is sold as GB is GiB.
    bandwidth : float
        GB/s of its memory.
    capability : float
        Compute capability.
    source : str
        Where NVIDIA says the first two.
    """

    name: str
    memory_gib: float
    bandwidth: float
    capability: float
    source: str

    @property
    def usable_bytes(self) -> int:
        """What a process may take."""
        return int(self.memory_gib * (1 - RESERVED) * 2**30)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return vars(self) | {"usable_bytes": self.usable_bytes, "source_of_capability": _CAPABILITY}


def _cards(capability: float, source: str, *rows: tuple[str, float, float]) -> list[Card]:
    return [Card(name, memory, bandwidth, capability, source.format(name)) for name, memory, bandwidth in rows]


CARDS = [
    *_cards(7.5, _SHEET, ("T4", 16, 320)),
    *_cards(
        7.5, _RTX.format(20), ("RTX 2060", 6, 336), ("RTX 2070", 8, 448), ("RTX 2080", 8, 448), ("RTX 2080 Ti", 11, 616),
    ),
    *_cards(
        8.6, _RTX.format(30), ("RTX 3050", 8, 224), ("RTX 3060", 12, 360), ("RTX 3060 Ti", 8, 448), ("RTX 3070", 8, 448),
        ("RTX 3070 Ti", 8, 608), ("RTX 3080", 10, 760), ("RTX 3080 Ti", 12, 912), ("RTX 3090", 24, 936),
        ("RTX 3090 Ti", 24, 1008),
    ),
    *_cards(
        8.9, _RTX.format(40), ("RTX 4060", 8, 272), ("RTX 4060 Ti", 8, 288), ("RTX 4060 Ti 16GB", 16, 288),
        ("RTX 4070", 12, 504), ("RTX 4070 Ti", 12, 504), ("RTX 4070 Ti Super", 16, 672), ("RTX 4080", 16, 717),
        ("RTX 4080 Super", 16, 736), ("RTX 4090", 24, 1008),
    ),
    *_cards(
        12.0, _RTX.format(50), ("RTX 5060", 8, 448), ("RTX 5060 Ti", 8, 448), ("RTX 5060 Ti 16GB", 16, 448),
        ("RTX 5070", 12, 672), ("RTX 5070 Ti", 16, 896), ("RTX 5080", 16, 960), ("RTX 5090", 32, 1792),
    ),
    *_cards(8.6, _SHEET, ("A10", 24, 600), ("A40", 48, 696), ("RTX A6000", 48, 768)),
    *_cards(8.0, _SHEET, ("A100 40GB", 40, 1555), ("A100 80GB", 80, 2039)),
    *_cards(8.9, _SHEET, ("L4", 24, 300), ("L40S", 48, 864), ("RTX 6000 Ada", 48, 960)),
    *_cards(9.0, _SHEET, ("H100", 80, 3350), ("H100 PCIe", 80, 2000), ("H100 NVL", 94, 3900), ("H200", 141, 4800)),
    *_cards(10.0, _SHEET, ("B200", 180, 8000)),
]  # fmt: skip
_OTHER_NAMES = {"a100": "a10080gb", "a10080": "a10080gb", "a10040": "a10040gb", "a6000": "rtxa6000", "h100sxm": "h100"}


def _key(name: str) -> str:
    key = _NOISE.sub("", name.lower())
    key = f"rtx{key}" if re.fullmatch(r"[2345]0[5-9]0(ti|super|tisuper)?(16gb)?", key) else key
    return _OTHER_NAMES.get(key, key)


def card_named(name: str) -> Card:
    """Return a card by its name, however it is spelled.

    Raises
    ------
    ConfigError
        The table has none of this name.
    """
    by_key = {_key(card.name): card for card in CARDS}
    if (found := by_key.get(_key(name))) is not None:
        return found
    names = [card.name for card in CARDS]
    close = nearest(name.upper(), names)
    raise ConfigError(
        f"device: expected a name that `lora-c devices` lists, or a card: {', '.join(names)}; got {name!r}{close}"
    )
