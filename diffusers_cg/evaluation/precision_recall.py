"""Improved precision and recall (Kynkaanniemi et al., 2019): fidelity and diversity, told apart."""

from collections.abc import Iterator

import numpy as np
from tqdm.auto import tqdm

from diffusers_cg.errors import InputError


BLOCK = 2048  # a distance matrix is only ever held in blocks of so many rows and columns


def precision_recall(
    reference: np.ndarray, samples: np.ndarray, num_neighbours: int = 3, progress_bar: bool = False
) -> tuple[float, float]:
    """Share of samples within the reference's manifold, and share of the reference within the samples'.

    A manifold is the union of balls around its points, each reaching to the point's k-th nearest neighbour.

    Distances come from matrix products in float64, whatever the features' dtype: the squares of two features' norms
    cancel in them, and in float32 the rounding of what is left moves points over the edges of balls.

    Args:
        reference (`np.ndarray`): Features of real images, (N, D).
        samples (`np.ndarray`): Features of samples, (M, D).
        num_neighbours (`int`): k, at least 1.
        progress_bar (`bool`): Show one over the blocks of distances.

    Raises:
        ValueError: if the features' widths differ, a set has no more than k rows, or a value is not finite.
    """
    reference, samples = _Points(reference), _Points(samples)
    shapes = reference.features.shape, samples.features.shape
    if {len(shape) for shape in shapes} != {2} or shapes[0][1] != shapes[1][1]:
        raise InputError(f"The two sets have different features: {shapes[0]} and {shapes[1]}.")
    if min(len(reference), len(samples)) <= num_neighbours:
        raise InputError(f"Both sets need more than {num_neighbours} rows, got {len(reference)} and {len(samples)}.")
    if not (reference.are_finite() and samples.are_finite()):
        raise InputError("Features hold values that are not finite.")

    counts = [len(points.blocks()) for points in (reference, samples)]
    total = sum(count * (count + 1) // 2 for count in counts) + counts[0] * counts[1]
    with tqdm(total=total, desc="Precision and recall", unit="block", disable=not progress_bar) as bar:
        radii = [_squared_radii(points, num_neighbours, bar) for points in (reference, samples)]
        return _coverage(reference, samples, *radii, bar)


class _Points:
    """Features (N, D), handed out in blocks of float64."""

    def __init__(self, features: np.ndarray):
        self.features = np.asarray(features)

    def __len__(self) -> int:
        return len(self.features)

    def are_finite(self) -> bool:
        return all(np.isfinite(self.features[block]).all() for block in self.blocks())

    def blocks(self) -> list[slice]:
        return [slice(start, min(start + BLOCK, len(self))) for start in range(0, len(self), BLOCK)]

    def squared_distances(
        self, other: "_Points", bar: tqdm, mutual: bool = False
    ) -> Iterator[tuple[slice, slice, np.ndarray]]:
        """A block of ours, one of `other`, and the squared distances between them; with `mutual`, each pair once."""
        for block in self.blocks():
            rows = self.features[block].astype(np.float64)
            for other_block in other.blocks():
                if mutual and other_block.start < block.start:
                    continue
                other_rows = rows if mutual and other_block == block else other.features[other_block].astype(float)
                squares = rows @ other_rows.T
                squares *= -2
                squares += (rows**2).sum(axis=1)[:, None]
                squares += (other_rows**2).sum(axis=1)
                yield block, other_block, np.maximum(squares, 0, out=squares)
                bar.update()


def _squared_radii(points: _Points, num_neighbours: int, bar: tqdm) -> np.ndarray:
    # a point is its own nearest neighbour, hence one more than k
    nearest = np.full((len(points), num_neighbours + 1), np.inf)
    for block, other_block, squares in points.squared_distances(points, bar, mutual=True):
        _merge(nearest, block, squares)
        if block != other_block:
            _merge(nearest, other_block, squares.T)
    return nearest[:, -1]


def _merge(nearest: np.ndarray, block: slice, squares: np.ndarray) -> None:
    """Keeps the smallest of each row so far, the largest of them last."""
    width = nearest.shape[1]
    if squares.shape[1] > width:
        squares = np.partition(squares, width - 1, axis=1)[:, :width]
    nearest[block] = np.sort(np.concatenate([nearest[block], squares], axis=1), axis=1)[:, :width]


def _coverage(
    reference: _Points,
    samples: _Points,
    reference_radii: np.ndarray,
    sample_radii: np.ndarray,
    bar: tqdm,
) -> tuple[float, float]:
    sample_within, reference_within = np.zeros(len(samples), dtype=bool), np.zeros(len(reference), dtype=bool)
    for block, sample_block, squares in reference.squared_distances(samples, bar):
        sample_within[sample_block] |= (squares <= reference_radii[block, None]).any(axis=0)
        reference_within[block] |= (squares <= sample_radii[sample_block]).any(axis=1)
    return float(sample_within.mean()), float(reference_within.mean())
