"""`diffusers-cg evaluate`: the paper's five metrics of samples."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import PositiveInt, model_validator
from tyro.conf import Positional

from diffusers_cg_cli.settings import input_error
from diffusers_cg_cli.shared import DeviceSettings, ImageRange, Side


if TYPE_CHECKING:
    import torch

    from diffusers_cg.evaluation import FeatureExtractor, FeatureStatistics, ImageSet


INCEPTION = "inception"
OF_DATASET = ("split", "config_name", "image_column")


class ReferenceSettings(DeviceSettings):
    """What samples are compared with, and by which features."""

    reference: str
    """Real images: an .npz (arr_0 uint8; or mu, sigma, mu_s, sigma_s), a folder, or a dataset: its folder or Hub name."""

    resolution: Side | None = None
    """Resize images to this side and crop them, as for training."""

    image_range: ImageRange | None = None
    """The values of black and white in images of more than 8 bits: 0 65535, say, or 0 1."""

    split: str | None = None
    """Of a dataset: train, validation, ...; the only one by default."""

    config_name: str | None = None
    """Configuration of a dataset that has several."""

    image_column: str | None = None
    """Of a dataset; its only column of images by default."""

    extractor: str = INCEPTION
    """inception, or module:function of your own."""

    inception_weights: Path | None = None
    """torch-fidelity's file; downloaded by default."""

    cache_dir: Path | None = None
    """Keeps features of references; reference_features beside --output by default."""

    @model_validator(mode="after")
    def _check_extractor(self) -> "ReferenceSettings":
        if self.inception_weights is not None and self.extractor != INCEPTION:
            raise ValueError(f"--inception_weights is for the extractor {INCEPTION}, not for {self.extractor}")
        return self


class EvaluateSettings(ReferenceSettings):
    """Measures FID, sFID, Inception Score, precision and recall of samples into report.json and report.md.

    The features of the reference's images are kept for the next samples. Between statistics (mu, sigma) no extractor is
    needed, and there are Frechet distances alone.
    """

    samples: Positional[str]
    """Images or statistics to measure, given as the reference is."""

    samples_split: str | None = None
    """--split of the samples alone."""

    samples_config_name: str | None = None
    """--config_name of the samples alone."""

    samples_image_column: str | None = None
    """--image_column of the samples alone."""

    reference_split: str | None = None
    """--split of the reference alone."""

    reference_config_name: str | None = None
    """--config_name of the reference alone."""

    reference_image_column: str | None = None
    """--image_column of the reference alone."""

    output: Path
    """Folder to write; a report that is there is replaced."""

    save_statistics: Path | None = None
    """File (.npz) for the reference's statistics and what made them, to be a reference later."""

    batch_size: PositiveInt = 64
    """Images at once; changes no number."""


def run(settings: EvaluateSettings) -> None:
    from diffusers_cg.data.files import atomic_directory
    from diffusers_cg.evaluation import ImageSet, evaluate, measure
    from diffusers_cg.evaluation.report import REPORT_FILE
    from diffusers_cg.generation import resolve_device

    with atomic_directory(settings.output, replaces=REPORT_FILE) as directory:
        samples, reference = open_sets(settings, samples=settings.samples, reference=settings.reference)
        extractor = None
        chosen = settings.extractor != INCEPTION or settings.inception_weights is not None
        if chosen or any(isinstance(each, ImageSet) for each in (samples, reference)):
            extractor = open_extractor(settings, resolve_device(settings.device))
        cache_dir = settings.cache_dir or settings.output.parent / "reference_features"
        options = {"batch_size": settings.batch_size, "cache_dir": cache_dir, "progress_bar": True}
        if settings.save_statistics is not None:
            reference = measure(reference, extractor, **options)
            reference.save_statistics(settings.save_statistics)
        evaluation = evaluate(samples, reference, extractor, **options)
        evaluation.save(directory)
    print(evaluation.to_markdown())
    print(f"Saved {settings.output}.")


def open_sets(settings: ReferenceSettings, **sources: str) -> list["ImageSet | FeatureStatistics"]:
    """The sets of some roles, `samples` and `reference`: a flag of a role's own goes before that of all."""
    from diffusers_cg.data import FeatureStatistics, ImageSet, is_dataset, open_set
    from diffusers_cg.generation import BESIDE_SAMPLES

    datasets = [role for role, source in sources.items() if is_dataset(source)]
    for role in ("", *sources):
        flags = {name: f"{role}_{name}".lstrip("_") for name in OF_DATASET}
        stated = [f"--{flag}" for flag in flags.values() if getattr(settings, flag, None) is not None]
        if stated and not (role in datasets if role else datasets):
            named = " and ".join([sources[role]] if role else sources.values())
            raise input_error(f"{', '.join(stated)} is for datasets, and {named} is none: leave it out.")
    sets = []
    for role, source in sources.items():
        options = {
            "resolution": settings.resolution,
            "image_range": settings.image_range,
            "leave_out": BESIDE_SAMPLES,
            "progress_bar": True,
        }
        for name in OF_DATASET:
            own = getattr(settings, f"{role}_{name}", None)
            options[name] = getattr(settings, name) if own is None else own
        sets.append(open_set(source, **options))
    if settings.resolution is not None and all(isinstance(each, FeatureStatistics) for each in sets):
        raise input_error(
            f"--resolution is for images, and {' and '.join(sources.values())} holds statistics: leave it out."
        )
    for images in sets:
        if isinstance(images, ImageSet):
            print(images.summary(), file=sys.stderr)
    return sets


def open_extractor(settings: ReferenceSettings, device: "torch.device") -> "FeatureExtractor":
    from diffusers_cg.evaluation import InceptionFeatures, load_extractor

    if settings.extractor == INCEPTION:
        return InceptionFeatures(settings.inception_weights, device)
    return load_extractor(settings.extractor)
