"""Inception Score (Salimans et al., 2016): confident about each image, undecided over all of them."""

import numpy as np

from diffusers_cg.errors import InputError


def inception_score(logits: np.ndarray, split_size: int = 5000) -> float:
    r"""exp of the mean KL(p(y|x) || p(y)), averaged over consecutive splits of the images.

    Args:
        logits (`np.ndarray`): A classifier's outputs before the softmax, (N, K). Logarithms of probabilities are such,
            too. For the paper's numbers: the logits of Inception without the last layer's bias.
        split_size (`int`): Images in a split, at least 1; the last split may have fewer.

    Raises:
        ValueError: if there are no images or classes, a logit is NaN or infinite, or `split_size` is below 1.
    """
    logits = np.asarray(logits)
    if logits.ndim != 2 or 0 in logits.shape:
        raise InputError(f"`logits` must be of shape (at least 1, at least 1), got {logits.shape}.")
    if split_size < 1:
        raise InputError(f"`split_size` must be at least 1, got {split_size}.")
    splits = [logits[start : start + split_size] for start in range(0, len(logits), split_size)]
    return float(np.mean([_score(split.astype(np.float64)) for split in splits]))


def _score(logits: np.ndarray) -> float:
    if not np.isfinite(logits).all():
        raise InputError("Logits hold values that are not finite.")
    log_probabilities = logits - logits.max(axis=1, keepdims=True)
    log_probabilities -= np.log(np.exp(log_probabilities).sum(axis=1, keepdims=True))
    probabilities = np.exp(log_probabilities)
    # a class that underflows to probability 0 in every image adds 0, not 0 x inf
    log_marginal = np.log(np.maximum(probabilities.mean(axis=0), np.finfo(np.float64).tiny))
    return np.exp((probabilities * (log_probabilities - log_marginal)).sum(axis=1).mean())
