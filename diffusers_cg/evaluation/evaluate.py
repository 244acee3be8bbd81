"""The paper's five metrics of a set of samples against a reference."""

from pathlib import Path

from diffusers_cg.data import FeatureStatistics, ImageSet, Source, open_set
from diffusers_cg.data.npz import STATISTICS
from diffusers_cg.errors import InputError
from diffusers_cg.evaluation.features import AnyExtractor, FeatureExtractor, as_extractor
from diffusers_cg.evaluation.frechet_distance import frechet_distance
from diffusers_cg.evaluation.inception import INCEPTION
from diffusers_cg.evaluation.inception_score import inception_score
from diffusers_cg.evaluation.measured_set import (
    MeasuredSet,
    check_images,
    measure,
    try_extractor,
    usable_statistics,
)
from diffusers_cg.evaluation.precision_recall import precision_recall
from diffusers_cg.evaluation.report import Evaluation


NUM_NEIGHBOURS = 3
COMPARABLE_NUMBER = 10_000

Opened = ImageSet | FeatureStatistics | MeasuredSet


def evaluate(
    samples: Source | MeasuredSet,
    reference: Source | MeasuredSet,
    extractor: AnyExtractor | None = None,
    batch_size: int = 64,
    cache_dir: str | Path | None = None,
    progress_bar: bool = False,
) -> Evaluation:
    """FID, sFID, Inception Score, precision and recall of samples.

    Args:
        samples: At least 4 images, or statistics of features; see [`open_set`]. What [`measure`] returned is not
            measured again.
        reference: The same, of real images. With statistics on either side there are no precision and recall.
        extractor ([`FeatureExtractor`] or a function, *optional*): What makes the features of images (B, H, W, C) uint8.
            Spatial features and logits may be missing, and with them sFID and Inception Score. Statistics and measured
            sets need none.
        batch_size (`int`): Images at once, at least 1.
        cache_dir (`str` or `Path`, *optional*): Folder for the features of references; see [`measure`].
        progress_bar (`bool`): Show bars over images and blocks of distances.

    Raises:
        ValueError, TypeError: with one sentence, if a set or the extractor is not as described, or the two sets' features
            are of different extractors.
        InputError: if an image cannot be decoded.
    """
    if batch_size < 1:
        raise InputError(f"`batch_size` must be at least 1, got {batch_size}.")
    samples, reference = (
        each if isinstance(each, MeasuredSet) else open_set(each, progress_bar=progress_bar)
        for each in (samples, reference)
    )
    for each in (samples, reference):
        if isinstance(each, ImageSet):
            check_images(each)
    if extractor is not None:
        extractor = as_extractor(extractor)
        _check_extractor(samples, reference, extractor)
    if not isinstance(reference, MeasuredSet):
        reference = measure(reference, extractor, batch_size, cache_dir, progress_bar)
    if not isinstance(samples, MeasuredSet):
        samples = measure(samples, extractor, batch_size, progress_bar=progress_bar)
    return compare(samples, reference, progress_bar)


def compare(samples: MeasuredSet, reference: MeasuredSet, progress_bar: bool = False) -> Evaluation:
    """[`evaluate`], of sets that are measured already.

    Raises:
        ValueError: if their features are of different extractors or widths.
    """
    makers = [(each.extractor, each.extractor_hash) for each in (samples, reference) if each.features is not None]
    _check_makers(*makers)
    extractor, extractor_hash = makers[0] if makers else (None, None)
    precision = recall = None
    if samples.features is not None and reference.features is not None:
        precision, recall = precision_recall(
            reference.features.pool, samples.features.pool, NUM_NEIGHBOURS, progress_bar
        )
    logits = None if samples.features is None else samples.features.logits
    metrics = {
        "fid": _distance("pool", samples, reference),
        "sfid": _distance("spatial", samples, reference),
        "inception_score": None if logits is None else inception_score(logits),
        "precision": precision,
        "recall": recall,
    }
    return Evaluation(
        metrics,
        samples.facts,
        reference.facts,
        extractor,
        extractor_hash,
        [*_incomparable(samples, reference, extractor), *_missing(samples, reference, extractor)],
    )


def _distance(kind: str, samples: MeasuredSet, reference: MeasuredSet) -> float | None:
    one, other = samples.statistics(kind), reference.statistics(kind)
    return None if one is None or other is None else frechet_distance(*one, *other)


def _check_makers(*makers: tuple[str, str | None]) -> None:
    if len(set(makers)) > 1:
        named = " and the other with ".join(f"{name} (hash {hash})" for name, hash in makers)
        raise InputError(f"Features of one set are made with {named}: measure both with one extractor.")


def _check_extractor(samples: Opened, reference: Opened, extractor: FeatureExtractor) -> None:
    """Tries the extractor on one image and compares it with what made the other set's features or statistics."""
    images = next((each for each in (samples, reference) if isinstance(each, ImageSet)), None)
    if images is None:
        return
    widths = try_extractor(images, extractor)
    for each in (samples, reference):
        if isinstance(each, MeasuredSet):
            if each.features is not None:
                _check_makers((extractor.name, extractor.hash), (each.extractor, each.extractor_hash))
            continue
        for kind, (mean, _) in usable_statistics(each, extractor).items():
            if widths.get(kind, len(mean)) != len(mean):
                raise InputError(
                    f"{STATISTICS[kind][0]} of {each.source} is of {len(mean)} features, but the extractor "
                    f"{extractor.name} makes {widths[kind]}: the statistics are another extractor's."
                )


def _incomparable(samples: MeasuredSet, reference: MeasuredSet, extractor: str | None) -> list[str]:
    """Why numbers do not compare with others."""
    warnings = []
    for name, each in (("samples", samples), ("reference", reference)):
        count = each.facts.num_images
        if count is not None and count < COMPARABLE_NUMBER and "pool" not in each.stated:
            warnings.append(
                f"Of the {name} there are {count} images: below {COMPARABLE_NUMBER} all metrics depend on the "
                "number, so compare only with numbers of as many images."
            )
        if each.is_lossy:
            warnings.append(f"Files of the {name} are compressed with loss (JPEG or WebP), which shifts FID and sFID.")
        elif each.has_jpeg_traces:
            warnings.append(f"Pixels of the {name} bear traces of JPEG, whose loss shifts FID and sFID.")
    facts = samples.facts, reference.facts
    if None not in (facts[0].shape, facts[1].shape) and facts[0].shape != facts[1].shape:
        warnings.append(
            f"The samples are {facts[0].size} and the reference {facts[1].size}: metrics tell sizes apart, too, so "
            "these are not comparable."
        )
    if extractor is None:
        warnings.append("Both sets are statistics: the Frechet distances are FID and sFID if Inception made both.")
    elif extractor != INCEPTION:
        warnings.append(f"The features are those of {extractor}: published numbers are of Inception's.")
    return warnings


def _missing(samples: MeasuredSet, reference: MeasuredSet, extractor: str | None) -> list[str]:
    """Why metrics are None."""
    warnings = []
    for name, each in (("samples", samples), ("reference", reference)):
        if each.features is None:
            warnings.append(f"There are statistics alone of the {name}: precision and recall need images.")
            if each.statistics("spatial") is None:
                warnings.append(f"There are no statistics of spatial features of the {name}: there is no sFID.")
    measured = next((each.features for each in (samples, reference) if each.features is not None), None)
    if measured is not None and measured.spatial is None:
        warnings.append(f"{extractor} gives no spatial features: there is no sFID.")
    if samples.features is None:
        warnings.append("There are statistics alone of the samples: the Inception Score needs images.")
    elif samples.features.logits is None:
        warnings.append(f"{extractor} gives no logits: there is no Inception Score.")
    return warnings
