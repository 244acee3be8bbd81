"""Writes scikit-learn's 1,797 handwritten digits as folders of PNG files, one subfolder per class.

    python training/export_digits.py --output_dir digits

leaves `digits/train` (1,437 images) and `digits/test` (360), split by class with a fixed seed. The images keep their
own 8x8 pixels; their 17 gray levels become 0..255.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from PIL import Image
from pydantic import Field

from diffusers_cg.data.files import atomic_directory
from diffusers_cg.errors import import_extra
from diffusers_cg_cli.command import command
from diffusers_cg_cli.settings import Settings, parse


class ExportSettings(Settings):
    output_dir: Path
    """Folder to write; digits that are there are replaced."""
    test_fraction: Annotated[float, Field(ge=0.01, le=0.99)] = 0.2
    """Share of every class held out for testing: an image or two at least, on either side."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the split."""


@command
def parse_args(argv: Sequence[str] | None = None) -> ExportSettings:
    return parse(ExportSettings, argv, description=__doc__)


def split_digits(test_fraction: float = 0.2, seed: int = 0) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The digits as `{"train": (images, labels), "test": ...}`: (N, 8, 8) uint8 in 0..255 and (N,) int64."""
    digits = import_extra("sklearn.datasets", "train").load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    labels = digits.target.astype(np.int64)
    train, test = import_extra("sklearn.model_selection", "train").train_test_split(
        np.arange(len(labels)), test_size=test_fraction, random_state=seed, stratify=labels
    )
    return {name: (images[rows], labels[rows]) for name, rows in (("train", train), ("test", test))}


@command
def main(settings: ExportSettings) -> None:
    splits = split_digits(settings.test_fraction, settings.seed)
    with atomic_directory(settings.output_dir, replaces="train") as directory:
        for name, (images, labels) in splits.items():
            for number, (image, label) in enumerate(zip(images, labels)):
                folder = directory / name / str(label)
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(folder / f"{number:04d}.png")
    for name, (_, labels) in splits.items():
        print(f"{settings.output_dir / name}: {len(labels)} images of {len(set(labels.tolist()))} classes")


if __name__ == "__main__":
    main(parse_args())
