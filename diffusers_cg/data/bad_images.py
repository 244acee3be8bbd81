"""Files that are no images, found before they stop anything."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from diffusers_cg.data.image_sets import ImageSet, StoredImage
from diffusers_cg.data.images import image_fault
from diffusers_cg.errors import InputError


def find_bad_images(images: ImageSet, num_workers: int = 0) -> dict[int, str]:
    """Decodes every image once; returns the fault of each that cannot be read, by its index.

    Args:
        images ([`ImageSet`]): What to look at.
        num_workers (`int`): Processes that decode.
    """
    loader = DataLoader(
        images,
        batch_size=32,
        num_workers=num_workers,
        collate_fn=_faults,
        generator=torch.Generator(),  # not the one that everything else is drawn from
    )
    faults = {}
    with tqdm(total=len(images), desc="Checking images", unit="image", leave=False) as progress_bar:
        for batch in loader:
            faults |= {progress_bar.n + i: fault for i, fault in enumerate(batch) if fault is not None}
            progress_bar.update(len(batch))
    return faults


def _faults(batch: Sequence[StoredImage]) -> list[str | None]:
    return [image_fault(stored.content) for stored in batch]


def readable_images(images: ImageSet, skip_bad_images: bool = False, num_workers: int = 0) -> ImageSet:
    """The images that can be read, by [`find_bad_images`].

    Raises:
        InputError: if one cannot (the first few are named) and they are not to be skipped, or none of a class can.
    """
    faults = find_bad_images(images, num_workers)
    if not faults:
        return images
    named = "; ".join(f"{images[index].name} ({fault})" for index, fault in list(faults.items())[:5])
    more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
    if not skip_bad_images:
        raise InputError(
            f"{len(faults)} of {len(images)} images cannot be read: {named}{more}. Remove them, or pass "
            "--skip_bad_images to go on without them."
        )
    print(f"Skipped {len(faults)} of {len(images)} images, which cannot be read: {named}{more}.", flush=True)
    good = images.select(np.setdiff1d(np.arange(len(images)), list(faults)))
    if images.labels is not None:
        lost = np.setdiff1d(images.labels, good.labels)
        if len(lost):
            names = ", ".join(images.class_names[label] for label in lost)
            raise InputError(f"No image of these classes can be read: {names}. Replace or remove them.")
    return good
