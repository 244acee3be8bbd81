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


class ReferenceSettings(DeviceSettings):
    """What samples are compared with, and by which features."""

    reference: str
    """Real images: an .npz (arr_0 uint8; or mu, sigma, mu_s, sigma_s), a folder, or a dataset: its folder or Hub name."""

    resolution: Side | None = None
    """Resize images of folders and datasets to this side and crop them, as for training."""

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

    output: Path
    """Folder to write; a report that is there is replaced."""

    batch_size: PositiveInt = 64
    """Images at once; changes no number."""


def run(settings: EvaluateSettings) -> None:
    from diffusers_cg.data.files import atomic_directory
    from diffusers_cg.evaluation import ImageSet, evaluate
    from diffusers_cg.evaluation.report import REPORT_FILE
    from diffusers_cg.generation import resolve_device

    with atomic_directory(settings.output, replaces=REPORT_FILE) as directory:
        sets = open_sets(settings, settings.samples, settings.reference)
        extractor = None
        chosen = settings.extractor != INCEPTION or settings.inception_weights is not None
        if chosen or any(isinstance(each, ImageSet) for each in sets):
            extractor = open_extractor(settings, resolve_device(settings.device))
        evaluation = evaluate(
            *sets,
            extractor,
            batch_size=settings.batch_size,
            cache_dir=settings.cache_dir or settings.output.parent / "reference_features",
            progress_bar=True,
        )
        evaluation.save(directory)
    print(evaluation.to_markdown())
    print(f"Saved {settings.output}.")


def open_sets(settings: ReferenceSettings, *sources: str) -> list["ImageSet | FeatureStatistics"]:
    from diffusers_cg.data import ImageSet, is_dataset, open_set
    from diffusers_cg.generation import BESIDE_SAMPLES

    names = ("split", "config_name", "image_column")
    of_dataset = {name: getattr(settings, name) for name in names if getattr(settings, name) is not None}
    if of_dataset and not any(map(is_dataset, sources)):
        raise input_error(
            f"--split, --config_name and --image_column are for datasets, and {' and '.join(sources)} is none: leave "
            "them out."
        )
    options = {
        "resolution": settings.resolution,
        "image_range": settings.image_range,
        "leave_out": BESIDE_SAMPLES,
        "progress_bar": True,
    }
    sets = [open_set(source, **options, **of_dataset) for source in sources]
    for images in sets:
        if isinstance(images, ImageSet):
            print(images.summary(), file=sys.stderr)
    return sets


def open_extractor(settings: ReferenceSettings, device: "torch.device") -> "FeatureExtractor":
    from diffusers_cg.evaluation import InceptionFeatures, load_extractor

    if settings.extractor == INCEPTION:
        return InceptionFeatures(settings.inception_weights, device)
    return load_extractor(settings.extractor)
