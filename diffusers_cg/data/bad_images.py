"""Files that are no images, found before they stop anything."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from diffusers_cg.data.image_sets import ImageSet, StoredImage
from diffusers_cg.data.images import look_at_image
from diffusers_cg.errors import InputError


class Checked(NamedTuple):
    """What was found when images were decoded.

    Args:
        faults (`dict`): Why those that cannot be read cannot, by their indices.
        constant (list of `int`): Indices of those that come out in one colour.
    """

    faults: dict[int, str]
    constant: list[int]


def look_at_images(images: ImageSet, num_workers: int = 0, part: int = 0, num_parts: int = 1) -> Checked:
    """Decodes every image once, or those of one of several parts.

    Args:
        images ([`ImageSet`]): What to look at.
        num_workers (`int`): Processes that decode.
        part, num_parts (`int`): The part looks at every `num_parts`-th image.
    """
    indices = range(part, len(images), num_parts)
    loader = DataLoader(
        images,
        batch_size=32,
        sampler=indices,
        num_workers=num_workers,
        collate_fn=_look_at,
        generator=torch.Generator(),  # not the one that everything else is drawn from
    )
    checked, remaining = Checked({}, []), iter(indices)
    with tqdm(total=len(indices), desc="Checking images", unit="image", leave=False, disable=part > 0) as progress_bar:
        for batch in loader:
            for (fault, is_constant), index in zip(batch, remaining):
                if fault is not None:
                    checked.faults[index] = fault
                elif is_constant:
                    checked.constant.append(index)
            progress_bar.update(len(batch))
    return checked


def _look_at(batch: Sequence[StoredImage]) -> list[tuple[str | None, bool]]:
    """Of each image its fault, if it has one, and whether it is of one colour."""
    return [look_at_image(stored.content, stored.image_range) for stored in batch]


def find_bad_images(images: ImageSet, num_workers: int = 0) -> dict[int, str]:
    """Decodes every image once; returns the fault of each that cannot be read, by its index. Warns, once, of those that come
    out in one colour.
    """
    checked = look_at_images(images, num_workers)
    images.warn_of_constant(checked.constant)
    return checked.faults


def readable_images(
    images: ImageSet,
    skip_bad_images: bool = False,
    num_workers: int = 0,
    checked: Checked | None = None,
    say: Callable[[str], None] = print,
) -> ImageSet:
    """The images that can be read.

    Args:
        images ([`ImageSet`]): What to look at.
        skip_bad_images (`bool`): Leave out those that cannot be read, and say so.
        num_workers (`int`): Processes that decode.
        checked (`Checked`, *optional*): What was found, if they have been looked at already.
        say (callable): Takes the sentence on what is left out.

    Raises:
        InputError: if one cannot be read (the first few are named) and they are not to be skipped, or none of a class can.
    """
    faults = find_bad_images(images, num_workers) if checked is None else checked.faults
    if not faults:
        return images
    named = "; ".join(f"{images[index].name} ({fault})" for index, fault in list(faults.items())[:5])
    more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
    if not skip_bad_images:
        raise InputError(
            f"{len(faults)} of {len(images)} images cannot be read: {named}{more}. Remove them, or pass "
            "--skip_bad_images to go on without them."
        )
    say(f"Skipped {len(faults)} of {len(images)} images, which cannot be read: {named}{more}.")
    good = images.select(np.setdiff1d(np.arange(len(images)), list(faults)))
    if images.labels is not None:
        lost = np.setdiff1d(images.labels, good.labels)
        if len(lost):
            names = ", ".join(images.class_names[label] for label in lost)
            raise InputError(f"No image of these classes can be read: {names}. Replace or remove them.")
    return good
