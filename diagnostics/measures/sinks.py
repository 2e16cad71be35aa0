"""Attention sinks: tokens that attract attention without carrying content, found from the model itself.

They show in the hidden states before they show in attention: a few dimensions are massive at a few tokens. On
a map a sink is a bright cell in the background, so maps and masses are reported with and without.

Source: Kang et al., "See what you are told: visual attention sink in large multimodal models", ICLR 2025, arXiv
2503.03321; massive activations: Sun et al. 2024, arXiv 2402.17762.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

from diagnostics.measures.geometry import Numbers

THRESHOLD = 20.0  # of |RMSNorm(x)_d|: Kang et al. 2025, their τ
STANDS_OUT = 10.0  # times the dimension's median over tokens
RMS_EPS = 1e-6  # as the models' own RMSNorm: a token of zeros stays zeros


def sink_dimensions(
    hidden: Float[np.ndarray, "tokens width"], *, threshold: float = THRESHOLD
) -> Int[np.ndarray, " dimensions"]:
    """Which dimensions mark the sinks of this model? Those massive at some tokens, and at those only.

    ``hidden`` enters a language layer (before its norm; the norm here has no weights). A dimension d counts where
    the largest |RMSNorm(x)_d| over tokens reaches the threshold and is at least 10 times the median over
    tokens: a dimension that is large at every token is an offset, and would make a sink of each.

    Kang et al. take D from a table of language models ({1415, 2533} for LLaMA-2 7B), which no other model has.
    |RMSNorm(x)_d| is at most √width: below a width of 400 none reaches 20, and the result is empty, as it is for a
    wide model without sinks. Early layers have none yet: call it for each layer.

    Raises ValueError for fewer than 3 tokens, whose median cannot be told from a sink, and for values that
    are not finite.
    """
    if len(hidden) < 3:
        raise ValueError(f"sinks: found {len(hidden)} tokens, expected at least 3; give the whole prompt")
    sizes = np.abs(hidden) / _root_mean_squares(hidden)
    largest = sizes.max(0)
    massive = np.flatnonzero(largest >= threshold)
    return massive[largest[massive] >= STANDS_OUT * np.median(sizes[:, massive], 0)]


def sink_tokens(
    hidden: Float[np.ndarray, "*batch tokens width"],
    dimensions: Int[np.ndarray, " dimensions"],
    *,
    threshold: float = THRESHOLD,
) -> Bool[np.ndarray, "*batch tokens"]:
    """Which tokens are sinks in this layer? max over d ∈ D of |RMSNorm(x)_d| ≥ threshold. All False without D.

    Text has sinks too: the first token nearly always is one.

    Raises ValueError for values that are not finite.
    """
    marked = np.abs(hidden[..., dimensions]) / _root_mean_squares(hidden)
    return marked.max(-1, initial=0.0) >= threshold


def sink_share(
    rows: Float[np.ndarray, "*batch keys"], sinks: Bool[np.ndarray, "*#batch keys"]
) -> Float[Numbers, "*batch"]:
    """How much of a row lies on sinks? Σ_S a. Unit: share of attention, range [0, 1].

    A large share is normal (idle heads rest there), and it hides the rest of the row: see
    ``without_sinks``. [.6, .3, .1] with sinks at the first and last: .7.
    """
    return np.where(sinks, rows, 0).sum(-1)


def without_sinks(
    rows: Float[np.ndarray, "*batch keys"], sinks: Bool[np.ndarray, "*#batch keys"]
) -> Float[np.ndarray, "*batch keys"]:
    """The rows with 0 on every sink. They sum to 1 − ``sink_share``, not to 1: nothing is redistributed.

    ``geometry.cells_from_row`` makes shares of what is left on the image, so maps and masses come out of it as
    usual. [.6, .3, .1] with sinks at the first and last: [0, .3, 0].
    """
    return np.where(sinks, 0, rows).astype(rows.dtype)


def _root_mean_squares(
    hidden: Float[np.ndarray, "*batch tokens width"],
) -> Float[np.ndarray, "*batch tokens 1"]:
    """What RMSNorm divides each token by."""
    # Summed in fp64: a massive fp16 activation overflows when squared.
    squares = np.einsum("...w,...w->...", hidden, hidden, dtype=np.float64)[..., None]
    if not np.isfinite(squares).all():
        raise ValueError(
            "sinks: found hidden states that are not finite, expected numbers; the layer overflowed, read it in fp32"
        )
    return np.sqrt(squares / hidden.shape[-1] + RMS_EPS)
