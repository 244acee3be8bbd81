"""Metrics against the reference's numbers, closed forms and brute force."""

import json
import tracemalloc

import numpy as np
import pytest
from reference import DATA

from diffusers_cg.errors import InputError
from diffusers_cg.evaluation import (
    feature_statistics,
    frechet_distance,
    inception_score,
    metrics,
    precision_recall,
)


EXPECTED = json.loads((DATA / "metrics.json").read_text())
with np.load(DATA / "metrics.npz") as arrays:
    REFERENCE, SAMPLES, LOGITS = arrays["reference"], arrays["sample"], arrays["logits"]


def features(rows, width, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, width))


def distance(one, other):
    return frechet_distance(*feature_statistics(one), *feature_statistics(other))


# --------------------------------------------------------------------------------------------------- Frechet distance


def test_frechet_distance_of_the_reference():
    assert distance(REFERENCE, SAMPLES) == pytest.approx(EXPECTED["fid"], rel=1e-6)
    assert distance(SAMPLES, REFERENCE) == pytest.approx(EXPECTED["fid"], rel=1e-6)


def test_statistics():
    rows = features(20, 4)
    mean, covariance = feature_statistics(rows.astype(np.float32))
    assert mean.dtype == covariance.dtype == np.float64
    centred = rows - rows.mean(axis=0)
    np.testing.assert_allclose(mean, rows.mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(covariance, centred.T @ centred / 19, rtol=1e-5, atol=1e-6)
    assert feature_statistics(rows[:, :1])[1].shape == (1, 1)


def peak_bytes(function, *args):
    """Most memory that numpy held at once during a call, beyond what it held before."""
    tracemalloc.start()
    function(*args)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def test_statistics_of_many_float32_rows():
    """Far from the origin, where sums of squares in float32 would be lost; and without a float64 copy of the whole."""
    rows = (features(30_000, 32) + 1000).astype(np.float32)
    mean, covariance = feature_statistics(rows)
    np.testing.assert_allclose(mean, rows.mean(axis=0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(covariance, np.cov(rows.astype(np.float64), rowvar=False), rtol=1e-9, atol=1e-12)
    assert peak_bytes(feature_statistics, rows) < rows.nbytes


def test_frechet_distance_of_commuting_covariances():
    """|m - m'|^2 + sum of (sqrt l - sqrt l')^2 where both have the same axes."""
    axes, _ = np.linalg.qr(features(6, 6))
    variances, other_variances = np.array([4.0, 1, 1, 0.5, 0, 0]), np.array([1.0, 0, 9, 0.5, 2, 0])
    mean, other_mean = features(2, 6, seed=1)
    expected = ((mean - other_mean) ** 2).sum() + ((np.sqrt(variances) - np.sqrt(other_variances)) ** 2).sum()
    actual = frechet_distance(mean, axes * variances @ axes.T, other_mean, axes * other_variances @ axes.T)
    assert actual == pytest.approx(expected, rel=1e-6)


def test_fewer_samples_than_features():
    """Scaling by c about the mean, then shifting: c^2 - 2c + 1 of the covariance's trace, and the shift."""
    rows = features(10, 50)
    shifted = 3 * (rows - rows.mean(axis=0)) + rows.mean(axis=0) + 0.5
    expected = 4 * np.trace(np.cov(rows, rowvar=False)) + 50 * 0.25
    assert distance(rows, shifted) == pytest.approx(expected, rel=1e-6)


def test_fewer_samples_than_features_and_nothing_in_common():
    rows, other = np.zeros((2, 10, 50))
    rows[:, :25], other[:, 25:] = features(10, 25), features(10, 25, seed=1)
    (mean, covariance), (other_mean, other_covariance) = feature_statistics(rows), feature_statistics(other)
    expected = ((mean - other_mean) ** 2).sum() + np.trace(covariance) + np.trace(other_covariance)
    assert distance(rows, other) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("rows", [2, 10, 100])
def test_same_features_have_no_distance(rows):
    assert distance(features(rows, 20), features(rows, 20)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("bad", [np.zeros(5), np.zeros((1, 5)), np.zeros((0, 5)), np.zeros((4, 5, 5))], ids=np.shape)
def test_statistics_refuse_other_shapes(bad):
    with pytest.raises(ValueError, match=r"must be of shape \(at least 2, D\), got"):
        feature_statistics(bad)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite(value):
    rows = features(20, 4)
    rows[3, 2] = value
    with pytest.raises(ValueError, match="not finite"):
        feature_statistics(rows)
    for sets in ((rows, features(20, 4)), (features(20, 4), rows)):
        with pytest.raises(ValueError, match="not finite"):
            precision_recall(*sets)


def test_other_features():
    with pytest.raises(ValueError, match="different features"):
        distance(features(20, 4), features(20, 5))
    with pytest.raises(ValueError, match="different features"):
        precision_recall(features(20, 4), features(20, 5))
    with pytest.raises(ValueError, match="different features"):
        precision_recall(features(20, 4), features(20, 4).ravel())


# ----------------------------------------------------------------------------------------------- precision and recall


def test_precision_and_recall_of_the_reference():
    precision, recall = precision_recall(REFERENCE, SAMPLES, num_neighbours=EXPECTED["neighbours"])
    assert precision == pytest.approx(EXPECTED["precision"], rel=1e-6)
    assert recall == pytest.approx(EXPECTED["recall"], rel=1e-6)
    assert precision_recall(SAMPLES, REFERENCE) == (recall, precision)


def brute_force_coverage(rows, points, num_neighbours):
    """Share of rows within a ball around a point that reaches to its k-th nearest other point."""
    radii = [
        sorted(np.linalg.norm(points[i] - points[j]) for j in range(len(points)) if j != i)[num_neighbours - 1]
        for i in range(len(points))
    ]
    within = [any(np.linalg.norm(row - point) <= radius for point, radius in zip(points, radii)) for row in rows]
    return sum(within) / len(rows)


@pytest.mark.parametrize("num_neighbours", [1, 3, 5])
def test_precision_and_recall_by_brute_force(num_neighbours):
    reference, samples = features(40, 3), 0.8 * features(30, 3, seed=1) + 1
    precision, recall = precision_recall(reference, samples, num_neighbours)
    assert precision == brute_force_coverage(samples, reference, num_neighbours)
    assert recall == brute_force_coverage(reference, samples, num_neighbours)
    assert 0 < precision < 1 and 0 < recall < 1


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(metrics, "BLOCK", 256)
    return 256


def test_more_rows_than_a_block(small_blocks):
    """The same points in another order, so that neighbours lie in other blocks, and far ones that change nothing."""
    reference, samples = features(small_blocks + 60, 2), features(small_blocks + 30, 2, seed=1) + 1
    precision, recall = precision_recall(reference, samples)
    assert precision_recall(reference[::-1], samples[::-1]) == (precision, recall)
    distances = np.linalg.norm(samples[:, None] - reference[None], axis=2)
    radii = np.sort(np.linalg.norm(reference[:, None] - reference[None], axis=2), axis=1)[:, 3]
    assert precision == (distances <= radii).any(axis=1).mean()
    assert 0 < precision < 1


def test_distances_are_never_held_as_a_whole(small_blocks):
    rows = features(6 * small_blocks, 4).astype(np.float32)
    assert peak_bytes(precision_recall, rows[:small_blocks], rows) < 8 * small_blocks**2 * 4


def test_features_far_from_the_origin():
    """Their norms cancel: in float32 the distances would be noise."""
    reference, samples = features(300, 3), features(200, 3, seed=1) + 0.5
    far = [(rows + 4096).astype(np.float32) for rows in (reference, samples)]
    near = [rows.astype(np.float64) - 4096 for rows in far]
    assert precision_recall(*far) == precision_recall(*near)


def test_same_and_disjoint_sets():
    rows = features(50, 8)
    assert precision_recall(rows, rows) == (1.0, 1.0)
    assert precision_recall(rows, rows[::-1].astype(np.float32).astype(np.float64)) == (1.0, 1.0)
    assert precision_recall(rows, rows + 1000) == (0.0, 0.0)


def test_samples_of_one_mode_are_precise_and_recall_it_alone():
    far = np.concatenate([features(50, 4), features(50, 4, seed=1) + 1000])
    precision, recall = precision_recall(far, far[:50])
    assert (precision, recall) == (1.0, 0.5)


@pytest.mark.parametrize("sizes", [(3, 20), (20, 3)], ids=str)
def test_too_few_rows(sizes):
    with pytest.raises(ValueError, match=f"need more than 3 rows, got {sizes[0]} and {sizes[1]}"):
        precision_recall(*(features(size, 4) for size in sizes))


# ----------------------------------------------------------------------------------------------------- Inception Score


def test_inception_score_of_the_reference():
    assert inception_score(LOGITS, split_size=200) == pytest.approx(EXPECTED["inception_score_split_200"], rel=1e-6)


def test_inception_score_between_its_bounds():
    certain = np.where(np.eye(10, dtype=bool), 0.0, -1e9)
    assert inception_score(certain) == pytest.approx(10)
    assert inception_score(certain[:, ::-1] + 7) == pytest.approx(10)
    assert inception_score(certain[[3] * 10]) == pytest.approx(1)
    assert inception_score(np.zeros((10, 4))) == pytest.approx(1)


def test_inception_score_takes_logarithms_of_probabilities():
    probabilities = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
    assert inception_score(np.log(probabilities)) == pytest.approx(inception_score(LOGITS), rel=1e-9)
    divergence = (probabilities * np.log(probabilities / probabilities.mean(axis=0))).sum(axis=1)
    assert inception_score(LOGITS.astype(np.float32)) == pytest.approx(np.exp(divergence.mean()), rel=1e-6)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (3,)])
def test_inception_score_of_nothing(shape):
    with pytest.raises(ValueError, match="`logits` must be of shape"):
        inception_score(np.zeros(shape))


def test_bad_logits_and_splits():
    with pytest.raises(ValueError, match="Logits hold values that are not finite"):
        inception_score(np.where(np.eye(5, dtype=bool), np.nan, 0.0))
    with pytest.raises(ValueError, match="`split_size` must be at least 1, got 0"):
        inception_score(LOGITS, split_size=0)


# ------------------------------------------------------------------------------------------------------- equal sets


@pytest.mark.parametrize("width", [64, 500, 2048])
def test_a_set_that_holds_images_many_times_has_all_of_itself(width):
    """Rows that are equal have no distance, whatever the rounding of their norms leaves of one."""
    rng = np.random.default_rng(0)
    different = np.abs(rng.normal(size=(100, width))).astype(np.float32) * 0.4
    features = np.repeat(different, 8, axis=0)[rng.permutation(800)]
    assert precision_recall(features, features) == (1.0, 1.0)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("rows", [50, 600])
def test_a_set_has_no_distance_to_itself_at_any_scale(rows, scale):
    statistics = feature_statistics(np.abs(np.random.default_rng(0).normal(size=(rows, 256))) * scale)
    assert 0 <= frechet_distance(*statistics, *statistics) <= 1e-9 * np.trace(statistics[1])


@pytest.mark.parametrize("matrix", [[[1.0, 0.5], [0.0, 1.0]], [[1.0, 0.0], [0.0, -1.0]]], ids=["skew", "negative"])
def test_statistics_that_are_no_covariance(matrix):
    mean, good = np.zeros(2), np.eye(2)
    for pair in ((mean, np.array(matrix), mean, good), (mean, good, mean, np.array(matrix))):
        with pytest.raises(InputError, match="a matrix that is no covariance"):
            frechet_distance(*pair)
