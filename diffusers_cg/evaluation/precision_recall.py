"""Improved precision and recall (Kynkaanniemi et al., 2019): fidelity and diversity, told apart."""

import numpy as np


BLOCK = 2048  # rows of a distance matrix held at once


def precision_recall(reference: np.ndarray, samples: np.ndarray, num_neighbours: int = 3) -> tuple[float, float]:
    """Share of samples within the reference's manifold, and share of the reference within the samples'.

    A manifold is the union of balls around its points, each reaching to the point's k-th nearest neighbour.

    Args:
        reference (`np.ndarray`): Features of real images, (N, D).
        samples (`np.ndarray`): Features of samples, (M, D).
        num_neighbours (`int`): k.

    Raises:
        ValueError: if the features' widths differ, a set has no more than k rows, or a value is not finite.
    """
    reference, samples = (np.asarray(features, dtype=np.float64) for features in (reference, samples))
    if reference.ndim != 2 or samples.ndim != 2 or reference.shape[1] != samples.shape[1]:
        raise ValueError(f"The two sets have different features: {reference.shape} and {samples.shape}.")
    if min(len(reference), len(samples)) <= num_neighbours:
        raise ValueError(f"Both sets need more than {num_neighbours} rows, got {len(reference)} and {len(samples)}.")
    if not (np.isfinite(reference).all() and np.isfinite(samples).all()):
        raise ValueError("Features hold values that are not finite.")
    precision = _within(samples, reference, _squared_radii(reference, num_neighbours)).mean()
    recall = _within(reference, samples, _squared_radii(samples, num_neighbours)).mean()
    return float(precision), float(recall)


def _squared_distances(rows: np.ndarray, points: np.ndarray) -> np.ndarray:
    squares = (rows**2).sum(axis=1)[:, None] + (points**2).sum(axis=1)[None] - 2 * rows @ points.T
    return squares.clip(min=0)


def _blocks(features: np.ndarray):
    return (features[start : start + BLOCK] for start in range(0, len(features), BLOCK))


def _squared_radii(points: np.ndarray, num_neighbours: int) -> np.ndarray:
    # a point is its own nearest neighbour, hence index k and not k - 1
    return np.concatenate(
        [
            np.partition(_squared_distances(rows, points), num_neighbours, axis=1)[:, num_neighbours]
            for rows in _blocks(points)
        ]
    )


def _within(rows: np.ndarray, points: np.ndarray, squared_radii: np.ndarray) -> np.ndarray:
    return np.concatenate(
        [(_squared_distances(block, points) <= squared_radii).any(axis=1) for block in _blocks(rows)]
    )
