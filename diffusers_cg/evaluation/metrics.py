"""The metrics: their arithmetic, on arrays of features whatever made them, and the table of them.

A metric is a function and a row of the table [`METRICS`], which comparisons, reports, model cards and sweeps read. A
user's own is a row more:

    mine = Metric("shift", "Shift of means", lambda samples, reference: ..., needs="pool", better="lower")
    evaluate(samples, reference, extractor, metrics=[*METRICS, mine])
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from tqdm.auto import tqdm

from diffusers_cg.errors import InputError


INCEPTION = "inception"  # the extractor that published numbers are computed with
NUM_NEIGHBOURS = 3
BLOCK = 2048  # a distance matrix is only ever held in blocks of so many rows and columns
STATISTICS_BLOCK = 4096  # rows of features held in float64 at once
ROUNDING = np.finfo(np.float64).eps  # of one of as many sums as there are features
NOT_POSITIVE = 1e-6  # of a covariance's largest eigenvalue: what float32 statistics may have below zero


# --------------------------------------------------------------------------------------------------- Frechet distance


def feature_statistics(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and unbiased covariance (D, D) of features (N, D), float64.

    The features may be of any dtype that holds real numbers; only blocks of them are ever copied to float64.

    Raises:
        InputError: if there are fewer than two rows, or one is not finite.
    """
    features = np.asarray(features)
    if features.ndim != 2 or len(features) < 2:
        raise InputError(f"Features must be of shape (at least 2, D), got {features.shape}.")
    blocks = [features[block] for block in _blocks(features, STATISTICS_BLOCK)]
    _check_finite("Features", blocks)
    mean = sum(block.sum(axis=0, dtype=np.float64) for block in blocks) / len(features)
    scatter = np.zeros((len(mean), len(mean)))
    for block in blocks:
        centred = block - mean
        scatter += centred.T @ centred
    return mean, scatter / (len(features) - 1)


def frechet_distance(
    mean: np.ndarray, covariance: np.ndarray, other_mean: np.ndarray, other_covariance: np.ndarray
) -> float:
    r"""|m - m'|^2 + tr(C + C' - 2 (C C')^{1/2}) of two Gaussians: FID where the features are Inception's.

    The trace of the root is the sum of the singular values of F^T F', where F F^T = C and F' F'^T = C': exact and finite
    also for singular covariances, and tr(C) to the last digits where the two are the same.

    Args:
        mean, other_mean (`np.ndarray`): (D,).
        covariance, other_covariance (`np.ndarray`): (D, D), symmetric and without negative eigenvalues.

    Raises:
        InputError: if the two have different numbers of features, or one is no covariance.
    """
    if mean.shape != other_mean.shape or covariance.shape != other_covariance.shape:
        raise InputError(f"The two sets have different features: {mean.shape} and {other_mean.shape}.")
    factor, other_factor = _factor(covariance), _factor(other_covariance)
    trace_of_root = np.linalg.svd(factor.T @ other_factor, compute_uv=False).sum()
    difference = mean - other_mean
    distance = difference @ difference + np.trace(covariance) + np.trace(other_covariance) - 2 * trace_of_root
    return max(float(distance), 0.0)


def _factor(covariance: np.ndarray) -> np.ndarray:
    """F (D, rank) with F F^T = C: of few columns where the covariance is that of few images."""
    eigenvalues, eigenvectors = np.linalg.eigh(covariance)
    largest = np.abs(eigenvalues).max(initial=0.0)
    if (
        np.abs(covariance - covariance.T).max(initial=0.0) > NOT_POSITIVE * largest
        or eigenvalues[0] < -NOT_POSITIVE * largest
    ):
        raise InputError(
            "The statistics hold a matrix that is no covariance (not symmetric, or with negative eigenvalues): compute "
            "them with feature_statistics."
        )
    positive = eigenvalues > len(eigenvalues) * ROUNDING * largest
    return eigenvectors[:, positive] * np.sqrt(eigenvalues[positive])


# ---------------------------------------------------------------------------------------------------- Inception Score


def inception_score(logits: np.ndarray, split_size: int = 5000) -> float:
    r"""exp of the mean KL(p(y|x) || p(y)), averaged over consecutive splits of the images (Salimans et al., 2016).

    Confident about each image, undecided over all of them: that scores high.

    Args:
        logits (`np.ndarray`): A classifier's outputs before the softmax, (N, K). Logarithms of probabilities are such,
            too. For the paper's numbers: the logits of Inception without the last layer's bias.
        split_size (`int`): Images in a split, at least 1; the last split may have fewer.

    Raises:
        InputError: if there are no images or classes, a logit is NaN or infinite, or `split_size` is below 1.
    """
    logits = np.asarray(logits)
    if logits.ndim != 2 or 0 in logits.shape:
        raise InputError(f"`logits` must be of shape (at least 1, at least 1), got {logits.shape}.")
    if split_size < 1:
        raise InputError(f"`split_size` must be at least 1, got {split_size}.")
    splits = [logits[split] for split in _blocks(logits, split_size)]
    _check_finite("Logits", splits)
    return float(np.mean([_score(split.astype(np.float64)) for split in splits]))


def _score(logits: np.ndarray) -> float:
    log_probabilities = logits - logits.max(axis=1, keepdims=True)
    log_probabilities -= np.log(np.exp(log_probabilities).sum(axis=1, keepdims=True))
    probabilities = np.exp(log_probabilities)
    # a class that underflows to probability 0 in every image adds 0, not 0 x inf
    log_marginal = np.log(np.maximum(probabilities.mean(axis=0), np.finfo(np.float64).tiny))
    return np.exp((probabilities * (log_probabilities - log_marginal)).sum(axis=1).mean())


# ----------------------------------------------------------------------------------------------- precision and recall


def precision_recall(
    reference: np.ndarray, samples: np.ndarray, num_neighbours: int = NUM_NEIGHBOURS, progress_bar: bool = False
) -> tuple[float, float]:
    """Share of samples within the reference's manifold, and share of the reference within the samples'.

    A manifold is the union of balls around its points, each reaching to the point's k-th nearest neighbour
    (Kynkaanniemi et al., 2019).

    Distances come from matrix products in float64, whatever the features' dtype: the squares of two features' norms
    cancel in them, and in float32 the rounding of what is left moves points over the edges of balls.

    Args:
        reference (`np.ndarray`): Features of real images, (N, D).
        samples (`np.ndarray`): Features of samples, (M, D).
        num_neighbours (`int`): k, at least 1.
        progress_bar (`bool`): Show one over the blocks of distances.

    Raises:
        InputError: if the features' widths differ, a set has no more than k rows, or a value is not finite.
    """
    reference, samples = np.asarray(reference), np.asarray(samples)
    if {reference.ndim, samples.ndim} != {2} or reference.shape[1] != samples.shape[1]:
        raise InputError(f"The two sets have different features: {reference.shape} and {samples.shape}.")
    if min(len(reference), len(samples)) <= num_neighbours:
        raise InputError(f"Both sets need more than {num_neighbours} rows, got {len(reference)} and {len(samples)}.")
    for features in (reference, samples):
        _check_finite("Features", (features[block] for block in _blocks(features, BLOCK)))

    sample_within, reference_within = np.zeros(len(samples), dtype=bool), np.zeros(len(reference), dtype=bool)
    counts = [len(_blocks(features, BLOCK)) for features in (reference, samples)]
    total = sum(count * (count + 1) // 2 for count in counts) + counts[0] * counts[1]
    with tqdm(total=total, desc="Precision and recall", unit="block", disable=not progress_bar) as bar:
        reference_radii, sample_radii = (
            _squared_radii(features, num_neighbours, bar) for features in (reference, samples)
        )
        for block, sample_block, squares in _squared_distances(reference, samples, bar):
            sample_within[sample_block] |= (squares <= reference_radii[block, None]).any(axis=0)
            reference_within[block] |= (squares <= sample_radii[sample_block]).any(axis=1)
    return float(sample_within.mean()), float(reference_within.mean())


def _squared_radii(features: np.ndarray, num_neighbours: int, bar: tqdm) -> np.ndarray:
    """Squared distance of every row to its k-th nearest neighbour, (N,)."""
    nearest = np.full((len(features), num_neighbours + 1), np.inf)  # a row is its own nearest: one more than k

    def keep_smallest(block: slice, squares: np.ndarray) -> None:
        width = nearest.shape[1]
        if squares.shape[1] > width:
            squares = np.partition(squares, width - 1, axis=1)[:, :width]
        nearest[block] = np.sort(np.concatenate([nearest[block], squares], axis=1), axis=1)[:, :width]

    for block, other_block, squares in _squared_distances(features, None, bar):
        keep_smallest(block, squares)
        if block != other_block:
            keep_smallest(other_block, squares.T)
    return nearest[:, -1]


def _squared_distances(
    features: np.ndarray, others: np.ndarray | None, bar: tqdm
) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """A block of each, and the squared distances between their rows; without `others`, each pair of the features' once."""
    for block in _blocks(features, BLOCK):
        rows = features[block].astype(np.float64)
        for other_block in _blocks(features if others is None else others, BLOCK):
            if others is not None:
                other_rows = others[other_block].astype(np.float64)
            elif other_block.start < block.start:
                continue
            else:
                other_rows = rows if other_block == block else features[other_block].astype(np.float64)
            norms, other_norms = (rows**2).sum(axis=1), (other_rows**2).sum(axis=1)
            squares = rows @ other_rows.T
            squares *= -2
            squares += norms[:, None]
            squares += other_norms
            # what rounding leaves of the distance between equal rows, of the size of their norms, is none
            for of_row, norm in zip(squares, norms):
                of_row[of_row <= ROUNDING * features.shape[1] * (norm + other_norms)] = 0
            yield block, other_block, squares
            bar.update()


def _blocks(rows: np.ndarray, size: int) -> list[slice]:
    return [slice(start, min(start + size, len(rows))) for start in range(0, len(rows), size)]


def _check_finite(name: str, blocks: Iterable[np.ndarray]) -> None:
    if not all(np.isfinite(block).all() for block in blocks):
        raise InputError(f"{name} hold values that are not finite.")


# ---------------------------------------------------------------------------------------------------------- the table


@dataclass(frozen=True)
class Metric:
    """A row of the table: a number that tells how good samples are.

    Args:
        key (`str`): In `report.json` and `sweep.json`.
        name (`str`): What people call it, with Inception's features.
        function (callable): Takes what it needs of the samples, then the same of the reference, and returns a `float`;
            or a `dict` of them by key, so that rows of one function share one call of it.
        needs (`"pool"`, `"spatial"` or `"logits"`): Which of the [`Features`], as an array (N, D).
        better (`"higher"` or `"lower"`): Where good samples lie.
        name_of_others (`str`, *optional*): Its name with other features than Inception's; `name` by default.
        of_statistics (`bool`): Takes the pair (mean, covariance) of those features in place of them; a set may state it
            without images.
        of_samples_alone (`bool`): Takes nothing of the reference.
        shows_progress (`bool`): The function takes `progress_bar`, too.
        without_images (`str`, *optional*): How a warning ends where there are statistics alone.
    """

    key: str
    name: str
    function: Callable[..., float | dict[str, float]]
    needs: Literal["pool", "spatial", "logits"]
    better: Literal["higher", "lower"]
    name_of_others: str | None = None
    of_statistics: bool = False
    of_samples_alone: bool = False
    shows_progress: bool = False
    without_images: str | None = None

    def why_missing(self, role: str, extractor: str | None) -> str:
        """Why there is no such number where a set lacks what it needs.

        Args:
            role (`str`): Which set: samples or reference.
            extractor (`str`, *optional*): What made its features; None where there are statistics alone.
        """
        needed = self.needs if self.needs == "logits" else f"{self.needs} features"
        if extractor is not None:
            return f"{extractor} gives no {needed}: there is no {self.name}."
        if self.of_statistics:
            return f"There are no statistics of {needed} of the {role}: there is no {self.name}."
        return f"There are statistics alone of the {role}: {self.without_images or f'{self.name} needs images'}."


def _frechet_distance(samples: tuple[np.ndarray, np.ndarray], reference: tuple[np.ndarray, np.ndarray]) -> float:
    return frechet_distance(*samples, *reference)


def _precision_recall(samples: np.ndarray, reference: np.ndarray, progress_bar: bool) -> dict[str, float]:
    precision, recall = precision_recall(reference, samples, progress_bar=progress_bar)
    return {"precision": precision, "recall": recall}


METRICS = (
    Metric(
        key="fid",
        name="FID",
        name_of_others="Frechet distance",
        function=_frechet_distance,
        needs="pool",
        of_statistics=True,
        better="lower",
    ),
    Metric(
        key="sfid",
        name="sFID",
        name_of_others="Frechet distance, spatial",
        function=_frechet_distance,
        needs="spatial",
        of_statistics=True,
        better="lower",
    ),
    Metric(
        key="inception_score",
        name="Inception Score",
        name_of_others="Inception Score, other logits",
        function=inception_score,
        needs="logits",
        of_samples_alone=True,
        better="higher",
        without_images="the Inception Score needs images",
    ),
    Metric(
        key="precision",
        name="Precision",
        function=_precision_recall,
        shows_progress=True,
        needs="pool",
        better="higher",
        without_images="precision and recall need images",
    ),
    Metric(
        key="recall",
        name="Recall",
        function=_precision_recall,
        shows_progress=True,
        needs="pool",
        better="higher",
        without_images="precision and recall need images",
    ),
)


def metric_names(extractor: str | None, metrics: Sequence[Metric] = METRICS) -> dict[str, str]:
    """What a report calls each metric: FID, sFID and Inception Score are names of Inception's features alone."""
    return {
        metric.key: metric.name if extractor == INCEPTION else metric.name_of_others or metric.name
        for metric in metrics
    }
