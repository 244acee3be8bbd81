"""Samples against a reference: every metric of the table, and what the numbers are worth."""

from collections.abc import Sequence
from pathlib import Path

from diffusers_cg.data import FeatureStatistics, ImageSet, Source, open_set
from diffusers_cg.data.npz import STATISTICS
from diffusers_cg.errors import InputError
from diffusers_cg.evaluation.features import (
    AnyExtractor,
    FeatureExtractor,
    MeasuredSet,
    as_extractor,
    check_features,
    check_images,
    measure,
    usable_statistics,
)
from diffusers_cg.evaluation.metrics import INCEPTION, METRICS, Metric, metric_names
from diffusers_cg.evaluation.report import Evaluation


COMPARABLE_NUMBER = 10_000


def evaluate(
    samples: Source | MeasuredSet,
    reference: Source | MeasuredSet,
    extractor: AnyExtractor | None = None,
    batch_size: int = 64,
    cache_dir: str | Path | None = None,
    progress_bar: bool = False,
    metrics: Sequence[Metric] = METRICS,
) -> Evaluation:
    """FID, sFID, Inception Score, precision and recall of samples: [`measure`], then [`compare`].

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
        metrics (sequence of [`Metric`]): What to compute.

    Raises:
        InputError: with one sentence, if a set or the extractor is not as described, an image cannot be decoded, or the
            two sets' features are of different extractors.
    """
    opened = [
        each if isinstance(each, MeasuredSet) else open_set(each, progress_bar=progress_bar)
        for each in (samples, reference)
    ]
    opened = [measure(each, None) if isinstance(each, FeatureStatistics) else each for each in opened]
    if extractor is not None:
        extractor = as_extractor(extractor)
    _check_before_measuring(opened, extractor)
    samples, reference = opened
    if not isinstance(reference, MeasuredSet):
        reference = measure(reference, extractor, batch_size, cache_dir, progress_bar)
    if not isinstance(samples, MeasuredSet):
        samples = measure(samples, extractor, batch_size, progress_bar=progress_bar)
    return compare(samples, reference, progress_bar, metrics)


def compare(
    samples: MeasuredSet, reference: MeasuredSet, progress_bar: bool = False, metrics: Sequence[Metric] = METRICS
) -> Evaluation:
    """Metrics of two measured sets.

    Raises:
        InputError: if their features are of different extractors or widths.
    """
    makers = [(each.extractor, each.extractor_hash) for each in (samples, reference) if each.extractor is not None]
    check_makers(*makers)
    extractor, extractor_hash = makers[0] if makers else (None, None)
    values, missing, shared = {}, [], {}
    for metric in metrics:
        sets = {"samples": samples} if metric.of_samples_alone else {"samples": samples, "reference": reference}
        inputs = {
            role: each.statistics(metric.needs) if metric.of_statistics else each.feature(metric.needs)
            for role, each in sets.items()
        }
        lacking = [role for role, value in inputs.items() if value is None]
        if lacking:
            values[metric.key] = None
            missing += [metric.why_missing(role, sets[role].features and sets[role].extractor) for role in lacking]
            continue
        call = (metric.function, metric.needs, metric.of_statistics)
        if call not in shared:
            options = {"progress_bar": progress_bar} if metric.shows_progress else {}
            shared[call] = metric.function(*inputs.values(), **options)
        value = shared[call]
        values[metric.key] = float(value[metric.key] if isinstance(value, dict) else value)
    return Evaluation(
        values,
        samples.facts,
        reference.facts,
        extractor,
        extractor_hash,
        [*_incomparable(samples, reference, extractor), *dict.fromkeys(missing)],
        metric_names(extractor, metrics),
    )


def _check_before_measuring(sets: Sequence[ImageSet | MeasuredSet], extractor: FeatureExtractor | None) -> None:
    """Sees before hours of work whether the extractor, tried on one image, fits the sets that it did not make."""
    of_images = [each for each in sets if isinstance(each, ImageSet)]
    for each in of_images:
        check_images(each)
    if extractor is None or not of_images:
        return
    features = check_features(extractor(next(of_images[0].batches(1))), 1, extractor)
    for each in sets:
        if not isinstance(each, MeasuredSet):
            source, statistics = each.source, usable_statistics(each, extractor)
        else:
            source, statistics = each.facts.source, each.stated
            if each.extractor is not None:
                check_makers((extractor.name, extractor.hash), (each.extractor, each.extractor_hash))
        for kind, (mean, _) in statistics.items():
            if kind in features and features[kind].shape[1] != len(mean):
                raise InputError(
                    f"{STATISTICS[kind][0]} of {source} is of {len(mean)} features, but the extractor "
                    f"{extractor.name} makes {features[kind].shape[1]}: the statistics are another extractor's."
                )


def check_makers(*makers: tuple[str, str | None]) -> None:
    """Raises `InputError` unless all features are of one extractor: of one name and hash."""
    if len(set(makers)) > 1:
        named = " and the other with ".join(f"{name} (hash {hash})" for name, hash in makers)
        raise InputError(f"Features of one set are made with {named}: measure both with one extractor.")


def _incomparable(samples: MeasuredSet, reference: MeasuredSet, extractor: str | None) -> list[str]:
    """Why numbers do not compare with others."""
    warnings = []
    for role, each in (("samples", samples), ("reference", reference)):
        count = each.facts.num_images
        is_published = each.features is not None and "pool" in each.stated  # and of more images than there are
        if count is not None and count < COMPARABLE_NUMBER and not is_published:
            warnings.append(
                f"Of the {role} there are {count} images: below {COMPARABLE_NUMBER} all metrics depend on the "
                "number, so compare only with numbers of as many images."
            )
        if each.is_lossy:
            warnings.append(f"Files of the {role} are compressed with loss (JPEG or WebP), which shifts FID and sFID.")
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
