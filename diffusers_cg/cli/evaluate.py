"""`diffusers-cg evaluate`: the paper's five metrics of samples."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffusers_cg.errors import InputError
from diffusers_cg_cli.app import app
from diffusers_cg_cli.command import command
from diffusers_cg_cli.options import (
    CACHE_DIR,
    CONFIG_NAME,
    EXTRACTOR,
    IMAGE_COLUMN,
    INCEPTION_WEIGHTS,
    REFERENCE,
    RESOLUTION,
    SPLIT,
    given,
)


if TYPE_CHECKING:
    import torch

    from diffusers_cg.evaluation import FeatureExtractor, FeatureStatistics, ImageSet


@app.command()
@command
def evaluate(
    samples: Annotated[
        str, typer.Argument(metavar="SAMPLES", help="Images or statistics to measure, given as the reference is.")
    ],
    reference: Annotated[str, REFERENCE],
    output: Annotated[Path, typer.Option("--output", help="Folder to write; a report that is there is replaced.")],
    resolution: Annotated[int | None, RESOLUTION] = None,
    split: Annotated[str | None, SPLIT] = None,
    config_name: Annotated[str | None, CONFIG_NAME] = None,
    image_column: Annotated[str | None, IMAGE_COLUMN] = None,
    extractor: Annotated[str, EXTRACTOR] = "inception",
    inception_weights: Annotated[Path | None, INCEPTION_WEIGHTS] = None,
    cache_dir: Annotated[Path | None, CACHE_DIR] = None,
    batch_size: Annotated[int, typer.Option("--batch_size", help="Images at once; changes no number.")] = 64,
    device: Annotated[
        str | None, typer.Option("--device", help="Of Inception: cuda, cpu, ...; a GPU if there is one by default.")
    ] = None,
) -> None:
    """Measures FID, sFID, Inception Score, precision and recall of samples into report.json and report.md.

    The features of the reference's images are kept for the next samples. Between statistics (mu, sigma) no extractor is
    needed, and there are Frechet distances alone.
    """
    from diffusers_cg.data.files import atomic_directory
    from diffusers_cg.evaluation import ImageSet
    from diffusers_cg.evaluation import evaluate as measure
    from diffusers_cg.evaluation.inception import INCEPTION
    from diffusers_cg.evaluation.report import REPORT_FILE
    from diffusers_cg.generation import resolve_device

    with atomic_directory(output, replaces=REPORT_FILE) as directory:
        sets = open_sets([samples, reference], resolution, split, config_name, image_column)
        loaded = None
        if extractor != INCEPTION or inception_weights or any(isinstance(each, ImageSet) for each in sets):
            loaded = open_extractor(extractor, inception_weights, resolve_device(device))
        evaluation = measure(
            *sets,
            loaded,
            batch_size=batch_size,
            cache_dir=cache_dir or output.parent / "reference_features",
            progress_bar=True,
        )
        evaluation.save(directory)
    print(evaluation.to_markdown())
    print(f"Saved {output}.")


def open_sets(
    sources: list[str], resolution: int | None, split: str | None, config_name: str | None, image_column: str | None
) -> list["ImageSet | FeatureStatistics"]:
    """Opens what the flags of `evaluate` and `sweep` name."""
    from diffusers_cg.data import is_dataset, open_set
    from diffusers_cg.generation import BESIDE_SAMPLES

    of_dataset = given(split=split, config_name=config_name, image_column=image_column)
    if of_dataset and not any(map(is_dataset, sources)):
        raise InputError(
            f"--split, --config_name and --image_column are for datasets, and {' and '.join(sources)} is none: leave "
            "them out."
        )
    options = {"resolution": resolution, "leave_out": BESIDE_SAMPLES, "progress_bar": True}
    return [open_set(source, **options, **of_dataset) for source in sources]


def open_extractor(
    extractor: str,
    inception_weights: Path | None,
    device: "torch.device",
) -> "FeatureExtractor":
    """The extractor that the flags name."""
    from diffusers_cg.evaluation import InceptionFeatures, load_extractor
    from diffusers_cg.evaluation.inception import INCEPTION

    if extractor != INCEPTION:
        if inception_weights is not None:
            raise InputError(f"--inception_weights is for the extractor {INCEPTION}, not for {extractor}.")
        return load_extractor(extractor)
    return InceptionFeatures(inception_weights, device)
