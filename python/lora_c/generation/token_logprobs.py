"""How probable the tokens of an answer were, and which ones would have been more so."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class TokenLogprob(NamedTuple):
    """A token that was chosen, and the most probable ones in its place.

    Attributes
    ----------
    id : int
        The token.
    logprob : float
        Its log-probability in nats, as the model gives it: before penalties and temperature.
    top : list of (int, float)
        Tokens and theirs, the most probable first.
    """

    id: int
    logprob: float
    top: list[tuple[int, float]]


def token_logprob(logits: NDArray[np.float32], token: int, n_top: int) -> TokenLogprob:
    """Return what `logits` (V,) say of a token and of the `n_top` most probable ones; of equal ones the first."""
    scores = logits.astype(np.float64)
    scores -= scores.max()
    scores -= np.log(np.exp(scores).sum())
    n_top = min(n_top, scores.size)
    least = np.partition(scores, -n_top)[-n_top] if n_top else 0.0
    best = np.flatnonzero(scores >= least) if n_top else np.empty(0, np.int64)
    order = best[np.argsort(-scores[best], kind="stable")][:n_top]
    return TokenLogprob(token, float(scores[token]), [(int(i), float(scores[i])) for i in order])
