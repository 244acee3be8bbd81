"""Features of a set, computed once and compared with as many others as there are."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from diffusers_cg.data import FeatureStatistics, ImageSet, Source, open_set
from diffusers_cg.data.files import atomic_update
from diffusers_cg.data.image_sets import Statistics
from diffusers_cg.errors import InputError
from diffusers_cg.evaluation.features import (
    AnyExtractor,
    FeatureExtractor,
    Features,
    as_extractor,
    check_features,
    extract_features,
)
from diffusers_cg.evaluation.frechet_distance import feature_statistics
from diffusers_cg.evaluation.inception import INCEPTION
from diffusers_cg.evaluation.jpeg_traces import has_jpeg_traces, num_images_needed
from diffusers_cg.evaluation.report import SetFacts


MIN_IMAGES = 4  # precision and recall look at three neighbours of an image


@dataclass
class MeasuredSet:
    """What [`measure`] makes: the features of images, statistics that were stated, or both.

    Args:
        facts ([`SetFacts`]): Where it is from.
        features ([`Features`], *optional*): None where there are statistics alone.
        stated (`dict`): Statistics that stand in for those of the features, as in [`FeatureStatistics`].
        is_lossy (`bool`): Whether files of the set were compressed with loss.
        has_jpeg_traces (`bool`): Whether its pixels went through JPEG before; see [`has_jpeg_traces`].
        extractor, extractor_hash (`str`, *optional*): What made the features.
    """

    facts: SetFacts
    features: Features | None = None
    stated: Statistics = field(default_factory=dict)
    is_lossy: bool = False
    has_jpeg_traces: bool = False
    extractor: str | None = None
    extractor_hash: str | None = None

    def __post_init__(self):
        self._statistics = dict(self.stated)

    def statistics(self, kind: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Mean and covariance of the features `"pool"` or `"spatial"`, computed once; None if there are none."""
        features = None if self.features is None else getattr(self.features, kind)
        if kind not in self._statistics and features is not None:
            self._statistics[kind] = feature_statistics(features)
        return self._statistics.get(kind)


def measure(
    source: Source,
    extractor: AnyExtractor | None,
    batch_size: int = 64,
    cache_dir: str | Path | None = None,
    progress_bar: bool = False,
) -> MeasuredSet:
    """Features of a set, for [`evaluate`]: a reference that is measured once serves any number of samples.

    Statistics that an `.npz` states beside its images stand in for those of its features if the extractor is
    `inception`, which made the published ones.

    Args:
        source: At least 4 images, or statistics of features; see [`open_set`].
        extractor ([`FeatureExtractor`] or a function, *optional*): What makes the features; statistics need none.
        batch_size (`int`): Images at once, at least 1.
        cache_dir (`str` or `Path`, *optional*): Folder for the features, found again by the content of the images and
            the hash of the extractor.
        progress_bar (`bool`): Show one over the images.

    Raises:
        ValueError, TypeError: with one sentence, if the set or the extractor is not as described, or if there is a
            `cache_dir` but the extractor states no hash.
        InputError: if an image cannot be decoded.
    """
    opened = open_set(source, progress_bar=progress_bar)
    if isinstance(opened, FeatureStatistics):
        return MeasuredSet(SetFacts(opened.source), stated=opened.statistics)
    check_images(opened)
    if extractor is None:
        raise InputError(f"{opened.source} holds images: pass an extractor to measure them with.")
    extractor = as_extractor(extractor)
    if batch_size < 1:
        raise InputError(f"`batch_size` must be at least 1, got {batch_size}.")
    facts = SetFacts(opened.source, len(opened), list(opened.shape[1:]), opened.content_hash())
    return MeasuredSet(
        facts,
        _cached_features(opened, facts, extractor, batch_size, cache_dir, progress_bar),
        usable_statistics(opened, extractor),
        opened.is_lossy,
        has_jpeg_traces(next(opened.batches(num_images_needed(opened.shape)))),
        extractor.name,
        extractor.hash,
    )


def check_images(images: ImageSet) -> None:
    """Raises a `ValueError` if there are too few images to measure."""
    if len(images) < MIN_IMAGES:
        raise InputError(
            f"{images.source} holds {len(images)} image{'s' * (len(images) != 1)}: metrics need at least "
            f"{MIN_IMAGES}, and thousands to mean something."
        )


def try_extractor(images: ImageSet, extractor: FeatureExtractor) -> dict[str, int]:
    """Widths of the features of one image by name, so that what is wrong with an extractor shows before hours of work.

    Raises:
        ValueError, TypeError: as [`check_features`].
    """
    features = check_features(extractor(next(images.batches(1))), 1, extractor)
    return {name: array.shape[1] for name, array in features.items()}


def usable_statistics(opened: ImageSet | FeatureStatistics, extractor: FeatureExtractor) -> Statistics:
    """Stated statistics that are used: Inception's, or those of a set without images."""
    is_used = isinstance(opened, FeatureStatistics) or extractor.name == INCEPTION
    return opened.statistics if is_used else {}


def _cached_features(
    images: ImageSet,
    facts: SetFacts,
    extractor: FeatureExtractor,
    batch_size: int,
    cache_dir: str | Path | None,
    progress_bar: bool,
) -> Features:
    if cache_dir is None:
        return extract_features(images, extractor, batch_size, progress_bar)
    if extractor.hash is None:
        raise InputError(
            f"Features of {extractor.name} cannot be kept in {cache_dir}, since it states no hash to find them by: pass "
            "FunctionExtractor(function, name, hash), or leave `cache_dir` out."
        )
    key = f"{facts.content_hash} {images.shape} {extractor.name} {extractor.hash}"
    file = Path(cache_dir) / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"
    if file.is_file():
        try:
            with np.load(file) as arrays:
                return Features(**{name: arrays[name] for name in arrays.files})
        except Exception:  # a damaged file of the cache is made again, whatever is wrong with it
            file.unlink()
    features = extract_features(images, extractor, batch_size, progress_bar)
    with atomic_update(file.parent) as directory:
        np.savez(directory / file.name, **features.arrays())
    return features
