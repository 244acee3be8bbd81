"""Which images are to be drawn, and the randomness that each of them owns."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from diffusers_cg.diffusion import seeded_generator
from diffusers_cg.errors import InputError


@dataclass(frozen=True)
class Request:
    """One image to draw.

    Args:
        class_label (`int`, *optional*): Its class; None where nobody needs one.
        number (`int`): Its number among those of its class.
    """

    class_label: int | None
    number: int

    @property
    def path(self) -> Path:
        """Its file, by class and number."""
        folder = "images" if self.class_label is None else str(self.class_label)
        return Path(folder) / f"{self.number:05d}.png"

    def generator(self, seed: int, stage: int) -> torch.Generator:
        """Source of all its randomness in a stage, which nothing else that is asked for has a part in."""
        return seeded_generator(seed, self.class_label or 0, self.number, stage)


def make_requests(
    num_samples: int, classes: Sequence[int] | None = None, random_classes: bool = False, seed: int = 0
) -> list[Request]:
    """As many images, in turn of every class; of none in particular where `classes` is None.

    The requests for fewer images are the first ones of those for more.

    Args:
        num_samples (`int`): At least 1.
        classes (sequence of `int`, *optional*): Each once.
        random_classes (`bool`): Draw the class of every image, uniformly, instead of taking turns.
        seed (`int`): Of that draw.

    Raises:
        ValueError: if there are none to draw, or a class is negative or named twice.
    """
    if num_samples < 1:
        raise InputError(f"`num_samples` must be at least 1, got {num_samples}.")
    if classes is None:
        return [Request(None, number) for number in range(num_samples)]
    check_classes(classes)
    turns = np.arange(num_samples) % len(classes)
    if random_classes:
        turns = np.random.default_rng(seed).integers(len(classes), size=num_samples)
    counts = dict.fromkeys(classes, 0)
    requests = []
    for turn in turns:
        label = classes[turn]
        requests.append(Request(label, counts[label]))
        counts[label] += 1
    return requests


def check_classes(classes: Sequence[int]) -> None:
    """Raises `ValueError` unless at least one class is named, each once and none below 0."""
    if not classes or len(set(classes)) < len(classes) or min(classes) < 0:
        raise InputError(f"`classes` must name at least one class, each once and none below 0, got {list(classes)}.")
