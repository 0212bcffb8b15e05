"""Areas under the ROC curve, and a bootstrap over songs for what is no sum over songs.

Letters in shapes: `n` pairs, `P` positives, `N` negatives, `R` resamples.
"""

import numpy as np
from jaxtyping import Float, Float32, Float64, Integer


def auc(positive: Float[np.ndarray, "P"], negative: Float[np.ndarray, "N"]) -> float:
    """Area under the ROC curve: the chance of a positive above a negative; ties count half."""
    once = np.ones((1, len(positive))), np.ones((1, len(negative)))
    return float(resample_auc(positive, negative, *once)[0])


def resample_auc(
    positive: Float[np.ndarray, "P"],
    negative: Float[np.ndarray, "N"],
    positive_weights: Float64[np.ndarray, "R P"],
    negative_weights: Float64[np.ndarray, "R N"],
) -> Float64[np.ndarray, "R"]:
    """AUC with weighted scores, for each row of weights. NaN where all weights of a kind are 0."""
    order = np.argsort(negative)
    ordered = negative[order]
    total = np.cumsum(negative_weights[:, order], axis=1)
    total = np.hstack((np.zeros((len(total), 1)), total))
    below = total[:, np.searchsorted(ordered, positive, side="left")]
    not_above = total[:, np.searchsorted(ordered, positive, side="right")]
    wins = (positive_weights * (below + not_above) / 2).sum(1)
    pairs = positive_weights.sum(1) * total[:, -1]
    return np.asarray(np.divide(wins, pairs, out=np.full(len(wins), np.nan), where=pairs > 0))


def draw_pigeonhole_weights(
    songs: Integer[np.ndarray, "n 2"], resamples: int, random: np.random.Generator
) -> Float64[np.ndarray, "R n"]:
    """Draw how often each of `n` pairs is in each resample.

    This is for statistics that are not sums over songs. A pair of one song counts as often as the
    song is drawn. A pair of two songs counts as often as the product of both draws: the pigeonhole
    bootstrap (Owen 2007). It gets the variance due to songs right, and the variance of single pairs
    up to three times too large. Raises `ValueError` with fewer than two songs.
    """
    names, numbers = np.unique(songs, return_inverse=True)
    if names.size < 2:
        raise ValueError(f"songs: {names.size} are too few for an interval")
    draws = _drawn(names.size, resamples, random)
    left, right = numbers.reshape(songs.shape).T
    weights = np.where(left == right, draws[:, left], draws[:, left] * draws[:, right])
    return weights.astype(np.float64)


def _drawn(count: int, resamples: int, random: np.random.Generator) -> Float32[np.ndarray, "R C"]:
    """Draw `count` items with replacement, and count how often each is drawn."""
    equal = np.full(count, 1 / count)
    draws: np.ndarray = random.multinomial(count, equal, size=resamples).astype(np.float32)
    return draws
