"""Flags that several commands have."""

from typing import Any, Literal

import typer


Dtype = Literal["fp32", "fp16", "bf16"]
MODEL = typer.Option("--model", help="Pipeline that draws from noise: its folder, or Hub name.")
CLASSES = typer.Option("--classes", help="Class labels; all of the model's by default, if it needs any.")
RANDOM_CLASSES = typer.Option("--random_classes", help="Draw each image's class, instead of as many of each.")
SEED = typer.Option("--seed", help="What the images follow from.")
BATCH_SIZE = typer.Option("--batch_size", help="Images at once; changes none of them.")
DTYPE = typer.Option("--dtype", help="Precision of the networks.")
DEVICE = typer.Option("--device", help="cuda, cpu, ...; a GPU if there is one by default.")
REFERENCE = typer.Option(
    "--reference",
    help="Real images: an .npz (arr_0 uint8; or mu, sigma, mu_s, sigma_s), a folder, or a dataset: its folder or Hub "
    "name.",
)
RESOLUTION = typer.Option(
    "--resolution", help="Resize images of folders and datasets to this side and crop them, as for training."
)
SPLIT = typer.Option("--split", help="Of a dataset: train, validation, ...; the only one by default.")
CONFIG_NAME = typer.Option("--config_name", help="Configuration of a dataset that has several.")
IMAGE_COLUMN = typer.Option("--image_column", help="Of a dataset; its only column of images by default.")
EXTRACTOR = typer.Option("--extractor", help="inception, or module:function of your own.")
INCEPTION_WEIGHTS = typer.Option("--inception_weights", help="torch-fidelity's file; downloaded by default.")
CACHE_DIR = typer.Option(
    "--cache_dir", help="Keeps features of references; reference_features beside --output by default."
)


def given(**options: Any) -> dict[str, Any]:
    """Those options that are not None."""
    return {name: value for name, value in options.items() if value is not None}
