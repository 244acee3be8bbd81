"""Frechet distance between two sets of features (FID where the features are Inception's)."""

import numpy as np

from diffusers_cg.errors import InputError


BLOCK = 4096  # rows of features held in float64 at once


def feature_statistics(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and unbiased covariance (D, D) of features (N, D), float64.

    The features may be of any dtype that holds real numbers; only blocks of them are ever copied to float64.

    Raises:
        ValueError: if there are fewer than two rows, or one is not finite.
    """
    features = np.asarray(features)
    if features.ndim != 2 or len(features) < 2:
        raise InputError(f"Features must be of shape (at least 2, D), got {features.shape}.")
    blocks = [features[start : start + BLOCK] for start in range(0, len(features), BLOCK)]
    if not all(np.isfinite(block).all() for block in blocks):
        raise InputError("Features hold values that are not finite.")
    mean = sum(block.sum(axis=0, dtype=np.float64) for block in blocks) / len(features)
    scatter = np.zeros((len(mean), len(mean)))
    for block in blocks:
        centred = block - mean
        scatter += centred.T @ centred
    return mean, scatter / (len(features) - 1)


def frechet_distance(
    mean: np.ndarray, covariance: np.ndarray, other_mean: np.ndarray, other_covariance: np.ndarray
) -> float:
    r"""|m - m'|^2 + tr(C + C' - 2 (C C')^{1/2}) of two Gaussians.

    The trace of the root is the sum of the roots of the eigenvalues of C^{1/2} C' C^{1/2}, which is symmetric: exact
    and finite also for singular covariances.

    Args:
        mean, other_mean (`np.ndarray`): (D,).
        covariance, other_covariance (`np.ndarray`): (D, D), symmetric.

    Raises:
        ValueError: if the two have different numbers of features.
    """
    if mean.shape != other_mean.shape or covariance.shape != other_covariance.shape:
        raise InputError(f"The two sets have different features: {mean.shape} and {other_mean.shape}.")
    eigenvalues, eigenvectors = np.linalg.eigh(covariance)
    root = (eigenvectors * np.sqrt(eigenvalues.clip(min=0))) @ eigenvectors.T
    product = root @ other_covariance @ root
    trace_of_root = np.sqrt(np.linalg.eigvalsh((product + product.T) / 2).clip(min=0)).sum()
    difference = mean - other_mean
    return float(difference @ difference + np.trace(covariance) + np.trace(other_covariance) - 2 * trace_of_root)
