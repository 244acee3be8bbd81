"""The paper's five metrics of a set of samples against a reference, and their report."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from diffusers_cg.evaluation.features import FeatureExtractor, Features, check_features, extract_features
from diffusers_cg.evaluation.frechet_distance import feature_statistics, frechet_distance
from diffusers_cg.evaluation.image_sets import STATISTICS, ImageSet, open_images, open_reference
from diffusers_cg.evaluation.inception import INCEPTION
from diffusers_cg.evaluation.inception_score import inception_score
from diffusers_cg.evaluation.precision_recall import precision_recall
from diffusers_cg.files import atomic_update


NUM_NEIGHBOURS = 3
COMPARABLE_NUMBER = 10_000
METRIC_NAMES = {
    "fid": "FID",
    "sfid": "sFID",
    "inception_score": "Inception Score",
    "precision": "Precision",
    "recall": "Recall",
}
REPORT_FILE, MARKDOWN_FILE = "report.json", "report.md"

Statistics = dict[str, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Measured:
    """A set of images, as a report names it.

    Args:
        source (`str`): What it was opened from.
        num_images (`int`, *optional*): None for a reference of statistics alone, as are the next two.
        shape (list of `int`, *optional*): [H, W, C].
        content_hash (`str`, *optional*): SHA-256, of a reference whose images were read.
    """

    source: str
    num_images: int | None = None
    shape: list[int] | None = None
    content_hash: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """Metrics of samples, and what they are worth.

    Args:
        metrics (`dict`): `fid`, `sfid`, `inception_score`, `precision`, `recall`; None where one cannot be computed.
        samples, reference ([`Measured`]): What was measured.
        extractor, extractor_hash (`str`): What it was measured with.
        warnings (list of `str`): A sentence for each reason why numbers are missing or not comparable with others.
    """

    metrics: dict[str, float | None]
    samples: Measured
    reference: Measured
    extractor: str
    extractor_hash: str
    warnings: list[str]

    def to_markdown(self) -> str:
        """A table of the metrics, and the rest in sentences."""
        rows = [
            f"| {METRIC_NAMES[name]} | {'-' if value is None else f'{value:.4f}'} |"
            for name, value in self.metrics.items()
        ]
        facts = [
            f"- Samples: {_describe(self.samples)}",
            f"- Reference: {_describe(self.reference)}",
            f"- Extractor: {self.extractor}, hash `{self.extractor_hash}`",
        ]
        warnings = [f"- Warning: {warning}" for warning in self.warnings]
        return "\n".join(["| Metric | Value |", "|---|---|", *rows, "", *facts, *warnings, ""])

    def save(self, directory: str | Path) -> None:
        """Writes `report.json` and `report.md` into an existing folder."""
        (Path(directory) / REPORT_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n")
        (Path(directory) / MARKDOWN_FILE).write_text(self.to_markdown())


def evaluate(
    samples: str | Path | np.ndarray,
    reference: str | Path | np.ndarray,
    extractor: FeatureExtractor,
    batch_size: int = 64,
    cache_dir: str | Path | None = None,
    progress_bar: bool = False,
) -> Evaluation:
    """FID, sFID, Inception Score, precision and recall of samples.

    Statistics that a reference states (`mu`, `sigma`, `mu_s`, `sigma_s`) are used with the extractor `inception`, which
    made the published ones, and where the reference has no images; otherwise its images are measured.

    Args:
        samples (`str`, `Path` or `np.ndarray`): At least 4 images; see [`open_images`].
        reference (`str`, `Path` or `np.ndarray`): At least 4 images, or statistics; see [`open_reference`].
        extractor ([`FeatureExtractor`]): What makes the features. Spatial features and logits may be missing, and with
            them sFID and Inception Score.
        batch_size (`int`): Images at once, at least 1.
        cache_dir (`str` or `Path`, *optional*): Folder for the features of references, found again by the content of
            the images and the hash of the extractor.
        progress_bar (`bool`): Show bars over images and blocks of distances.

    Raises:
        ValueError, TypeError: with one sentence, if a set or the extractor is not as described.
        UserError: if a file of a folder cannot be read as an image.
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
    sample_images = open_images(samples)
    reference_images, stated = open_reference(reference)
    for images in (sample_images, reference_images):
        if images is not None and len(images) <= NUM_NEIGHBOURS:
            raise ValueError(
                f"{images.source} holds {len(images)} image{'s' * (len(images) != 1)}: metrics need at least "
                f"{NUM_NEIGHBOURS + 1}, and thousands to mean something."
            )
    if reference_images is not None and extractor.name != INCEPTION:
        stated = {}
    _check_widths(stated, sample_images, extractor, reference)

    reference_features, content_hash = None, None
    if reference_images is not None:
        content_hash = reference_images.content_hash()
        reference_features = _cached_features(
            reference_images, content_hash, extractor, batch_size, cache_dir, progress_bar
        )
    features = extract_features(sample_images, extractor, batch_size, progress_bar)
    return Evaluation(
        metrics=_compute_metrics(features, reference_features, stated, progress_bar),
        samples=_measured(samples, sample_images),
        reference=_measured(reference, reference_images, content_hash),
        extractor=extractor.name,
        extractor_hash=extractor.hash,
        warnings=_warnings(sample_images, reference_images, stated, features, extractor),
    )


def _check_widths(stated: Statistics, images: ImageSet, extractor: FeatureExtractor, reference: object) -> None:
    """Tries the extractor on one image, before hours of work, and compares its features with the stated statistics."""
    tried = check_features(extractor(next(images.batches(1))), 1, extractor)
    for kind, (mean, _) in stated.items():
        if kind in tried and tried[kind].shape[1] != len(mean):
            raise ValueError(
                f"{STATISTICS[kind][0]} of {reference} is of {len(mean)} features, but the extractor "
                f"{extractor.name} makes {tried[kind].shape[1]}: the statistics are another extractor's."
            )


def _cached_features(
    images: ImageSet,
    content_hash: str,
    extractor: FeatureExtractor,
    batch_size: int,
    cache_dir: str | Path | None,
    progress_bar: bool,
) -> Features:
    """Features of a reference, without logits, which nothing needs."""
    key = hashlib.sha256(f"{content_hash} {images.shape} {extractor.name} {extractor.hash}".encode()).hexdigest()
    file = None if cache_dir is None else Path(cache_dir) / f"{key[:32]}.npz"
    if file is not None and file.is_file():
        try:
            with np.load(file) as arrays:
                return Features(**{name: arrays[name] for name in arrays.files})
        except Exception:  # a damaged file of the cache is made again, whatever is wrong with it
            file.unlink()
    features = extract_features(images, extractor, batch_size, progress_bar)
    features.logits = None
    if file is not None:
        with atomic_update(file.parent) as directory:
            np.savez(directory / file.name, **features.arrays())
    return features


def _compute_metrics(
    features: Features, reference: Features | None, stated: Statistics, progress_bar: bool
) -> dict[str, float | None]:
    precision = recall = None
    if reference is not None:
        precision, recall = precision_recall(reference.pool, features.pool, NUM_NEIGHBOURS, progress_bar)
    return {
        "fid": _distance("pool", features, reference, stated),
        "sfid": _distance("spatial", features, reference, stated),
        "inception_score": None if features.logits is None else inception_score(features.logits),
        "precision": precision,
        "recall": recall,
    }


def _distance(kind: str, features: Features, reference: Features | None, stated: Statistics) -> float | None:
    own = getattr(features, kind)
    others = None if reference is None else getattr(reference, kind)
    if own is None or (others is None and kind not in stated):
        return None
    return frechet_distance(*feature_statistics(own), *(stated.get(kind) or feature_statistics(others)))


def _measured(source: object, images: ImageSet | None, content_hash: str | None = None) -> Measured:
    if images is None:
        return Measured(str(source))
    return Measured(images.source, len(images), list(images.shape[1:]), content_hash)


def _warnings(
    samples: ImageSet, reference: ImageSet | None, stated: Statistics, features: Features, extractor: FeatureExtractor
) -> list[str]:
    warnings = []
    for name, images in (("samples", samples), ("reference", reference)):
        if images is None:
            continue
        if len(images) < COMPARABLE_NUMBER and not (name == "reference" and "pool" in stated):
            warnings.append(
                f"Of the {name} there are {len(images)} images: below {COMPARABLE_NUMBER} all metrics depend on the "
                "number, so compare only with numbers of as many images."
            )
        if images.is_lossy:
            warnings.append(f"Files of the {name} are compressed with loss (JPEG or WebP), which shifts FID and sFID.")
    if reference is not None and samples.shape[1:] != reference.shape[1:]:
        warnings.append(
            f"The samples are {_size(samples.shape[1:])} and the reference {_size(reference.shape[1:])}: metrics tell "
            "sizes apart, too, so these are not comparable."
        )
    if extractor.name != INCEPTION:
        warnings.append(f"The features are those of {extractor.name}: published numbers are of Inception's.")
    if reference is None:
        warnings.append("The reference holds statistics alone: precision and recall need its images.")
    if features.logits is None:
        warnings.append(f"{extractor.name} gives no logits: there is no Inception Score.")
    if features.spatial is None:
        warnings.append(f"{extractor.name} gives no spatial features: there is no sFID.")
    elif reference is None and "spatial" not in stated:
        warnings.append("The reference states no statistics of spatial features: there is no sFID.")
    return warnings


def _size(shape: list[int] | tuple[int, ...]) -> str:
    height, width, channels = shape
    return f"{width}x{height} in {'gray' if channels == 1 else 'color'}"


def _describe(measured: Measured) -> str:
    if measured.num_images is None:
        return f"{measured.source}, statistics alone"
    return f"{measured.source}, {measured.num_images} images of {_size(measured.shape)}"
