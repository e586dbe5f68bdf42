"""What of two texts counts where they are compared: steps that take away what does not.

`case`, `punctuation`, `articles` and `space` in this order are what SQuAD's evaluation does; `number` is gsm8k's: the number
behind the last "####", or else the last one of the text, without commas.

Source: Rajpurkar et al. 2016, arXiv:1606.05250; Cobbe et al. 2021, arXiv:2110.14168.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation

from ..errors import ConfigError, nearest

Normalizer = Callable[[str], "str | None"]  # None: the text says nothing that could be compared

_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_NUMBER = re.compile(r"(?:(?<!\w)-)?\$?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)")  # the hyphen of 3-4 is no sign
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def number_of(text: str) -> str | None:
    """The number that a text ends in, written in one way: 1,000.50 is 1000.5; None where there is none."""
    _, mark, behind = text.rpartition("####")
    found = _NUMBER.findall(behind)
    if not found:
        return None
    digits = found[0 if mark else -1].replace(",", "").replace("$", "")
    try:
        number = Decimal(digits)
    except InvalidOperation:
        return None
    plain = format(number, "f")
    plain = plain.rstrip("0").rstrip(".") if "." in plain else plain
    return "0" if plain in ("-0", "") else plain


STEPS: dict[str, Normalizer] = {
    "case": str.lower,
    "punctuation": lambda text: text.translate(_WITHOUT_PUNCTUATION),
    "articles": lambda text: _ARTICLE.sub(" ", text),
    "number": number_of,
    "space": lambda text: " ".join(text.split()),
}  # in the order in which they are taken
PRESETS = {"none": (), "squad": ("case", "punctuation", "articles", "space"), "gsm8k": ("number",)}


def normalizer(names: str | Sequence[str]) -> Normalizer:
    """Return the function that takes these steps.

    Parameters
    ----------
    names : str or list of str
        Of `STEPS`, in any order, or one of `PRESETS`; a text may hold several with commas between them.

    Raises
    ------
    ConfigError
        A name is none of them.
    """
    given = [part.strip() for part in names.split(",") if part.strip()] if isinstance(names, str) else list(names)
    wanted: set[str] = set()
    for name in given:
        if name not in PRESETS and name not in STEPS:
            known = [*PRESETS, *STEPS]
            raise ConfigError(f"normalize: expected some of {', '.join(known)}, got {str(name)[:40]!r}{nearest(name, known)}")
        wanted |= set(PRESETS.get(name, (name,)))
    if "none" in given and wanted:
        raise ConfigError(f"normalize: expected none alone, got it beside {', '.join(sorted(wanted))}; leave it out")
    steps = [step for name, step in STEPS.items() if name in wanted]

    def normalize(text: str) -> str | None:
        said: str | None = text
        for step in steps:
            said = None if said is None else step(said)
        return said

    return normalize
