"""Images as training takes them: preprocessed, in an order that can be resumed anywhere, in batches."""

import itertools
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Sampler, default_collate

from diffusers_cg.data.images import load_image, resize_and_crop, to_tensor
from diffusers_cg.data.sources import Row, encoded_image, is_streamed, reading, row_name
from diffusers_cg.errors import InputError


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


SPARE_IMAGES = 15  # that are tried in place of one that cannot be read
SEARCHED_IMAGES = 2000  # of a stream, for examples of its classes


def downscale(image: Image.Image, side: int) -> Image.Image:
    """The low-resolution version of a square image, in 8 bits as a user would have it.

    Every pixel is the mean of those that it covers (box filter) where `side` divides the image's, as for the paper's
    upsamplers; otherwise the filter is PIL's bicubic one, widened so that nothing aliases.
    """
    resample = Image.Resampling.BICUBIC if image.width % side else Image.Resampling.BOX
    return image.resize((side, side), resample)


@dataclass
class TrainingImages(torch.utils.data.Dataset):
    """Images of a dataset, preprocessed. An item is asked for by (index, draw): see [`EndlessSampler`].

    Everything about an item follows from the seed and the draw, so it is the same whoever loads it and after a resume.
    Of a streamed dataset there are no items to ask for, only batches: see [`ImageStream`].

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`): Images and labels, from `training/sources.py`.
        resolution (`int`): Side of the square images.
        channels (`int`): 1, 3 or 4.
        center_crop (`bool`): Cut out the middle, or else a random part.
        random_flip (`bool`): Mirror every other image, left to right.
        seed (`int`): Seed of the order and the augmentation.
        low_res_size (`int`, *optional*): Side of the low-resolution versions that an upsampler is trained on.
        skip_bad_images (`bool`): Let the next image of the dataset stand in for one that cannot be read.
        shuffle_buffer_size (`int`): Number of images of a stream among which the next one is drawn; 0 for its own
                order.
        images_per_epoch (`int`, *optional*): Number of images that counts as an epoch of a stream.
    """

    dataset: "Dataset | IterableDataset"
    resolution: int
    channels: int
    center_crop: bool = True
    random_flip: bool = False
    seed: int = 0
    low_res_size: int | None = None
    skip_bad_images: bool = False
    shuffle_buffer_size: int = 1000
    images_per_epoch: int | None = None

    @property
    def class_names(self) -> list[str]:
        """What the classes are called, in the order of their labels."""
        return self.dataset.features["label"].names

    @property
    def num_images(self) -> int | None:
        """Number of images in an epoch; None if it is not known, of a stream."""
        return self.images_per_epoch if is_streamed(self.dataset) else len(self.dataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: int | tuple[int, int]) -> dict[str, torch.Tensor | int]:
        """As [`load`]."""
        index, draw = item if isinstance(item, tuple) else (item, item)
        candidates = ((index + spare) % len(self) for spare in range(SPARE_IMAGES + 1))
        return self.load(draw, ((number, self.dataset[number]) for number in candidates))

    def load(self, draw: int, rows: Iterable[tuple[int, Row]]) -> dict[str, torch.Tensor | int]:
        """The item of a draw, from the first of the numbered rows whose image can be read.

        Returns:
            `clean_images` (C, H, W) float32 in [-1, 1], `class_labels` and `draws` int. With `low_res_size` also
            `low_res_images` (C, h, w) float32 in [-1, 1]: the same pictures, by [`downscale`]. With `skip_bad_images`
            also `bad_images`: whether another image had to stand in.

        Raises:
            InputError: if an image cannot be read and bad ones are not skipped, or all of the rows are bad; or if the
                label is not one of the classes'.
        """
        is_bad = False
        for number, row in rows:
            try:
                image = load_image(encoded_image(row), self.channels, row_name(row, number))
            except InputError as error:
                fault = str(error)
                if not self.skip_bad_images:
                    raise InputError(f"{fault} Pass --skip_bad_images to train without such images.") from error
                warnings.warn(fault, stacklevel=2)
                is_bad = True
            else:
                item = self._preprocess(image, self._label(row, number), draw)
                return {**item, "bad_images": is_bad} if self.skip_bad_images else item
        raise InputError(f"None of {SPARE_IMAGES + 1} images in a row can be read; the last: {fault}")

    def _label(self, row: Row, number: int) -> int:
        label, num_classes = row["label"], len(self.class_names)
        if label is None or not 0 <= label < num_classes:
            raise InputError(f"{row_name(row, number)} has the label {label}, which is none of 0..{num_classes - 1}.")
        return label

    def _preprocess(self, image: Image.Image, label: int, draw: int) -> dict[str, torch.Tensor | int]:
        rng = np.random.default_rng([self.seed, draw])
        image = resize_and_crop(image, self.resolution, self.center_crop, rng)
        if self.random_flip and rng.random() < 0.5:
            image = ImageOps.mirror(image)
        item = {"clean_images": to_tensor(image), "class_labels": label, "draws": draw}
        if self.low_res_size is not None:
            item["low_res_images"] = to_tensor(downscale(image, self.low_res_size))
        return item


# --------------------------------------------------------------------------------------------------------------- order


class EndlessSampler(Sampler[tuple[int, int]]):
    """Yields (index, draw) without end: every epoch is a permutation of its own, which follows from the seed.

    `draw` counts the images of the whole training, over all processes. Whatever an image needs at random (crop,
    timestep, noise) is derived from it, so that a training resumed at any draw goes on as if it had never stopped.
    """

    def __init__(self, num_images: int, seed: int, first_draw: int = 0):
        self.num_images = num_images
        self.seed = seed
        self.first_draw = first_draw

    def __iter__(self) -> Iterator[tuple[int, int]]:
        draw = self.first_draw
        while True:
            epoch, position = divmod(draw, self.num_images)
            permutation = np.random.default_rng([self.seed, epoch]).permutation(self.num_images)
            for index in permutation[position:]:
                yield int(index), draw
                draw += 1


@dataclass
class ImageStream(torch.utils.data.IterableDataset):
    """Yields the rows of a streamed dataset, not yet decoded, each as [`TrainingImages.load`] takes it: (draw, rows).

    The first of the rows is the draw's own; if bad images are skipped, those that follow it in the stream are the ones
    that may stand in. So a draw has the same image wherever the stream is entered: what comes before has no say.

    Args:
        images (`TrainingImages`): Of a streamed dataset.
        first_draw (`int`): Where to begin. The rows before it in the epoch are read again and passed over (of earlier
            epochs one is read, for their length), for the order follows from what was read.
        endless (`bool`): Every epoch in another order, one after the other; or else one epoch in the stream's own.
    """

    images: TrainingImages
    first_draw: int = 0
    endless: bool = True

    def __iter__(self) -> Iterator[tuple[int, list[tuple[int, Row]]]]:
        num_spares = SPARE_IMAGES if self.images.skip_bad_images else 0
        window = deque()
        for numbered in itertools.chain(self._numbered_rows(), itertools.repeat(None, num_spares)):
            window.append(numbered)
            if len(window) > num_spares:
                draw, _ = window[0]
                yield draw, [candidate for candidate in window if candidate is not None]
                window.popleft()

    def _numbered_rows(self) -> Iterator[tuple[int, Row]]:
        draw, epoch = 0, 0
        while True:
            epoch_begin = draw
            with reading("The stream"):
                for row in self._epoch_rows(epoch):
                    if draw >= self.first_draw:
                        yield draw, row
                    draw += 1
            length = draw - epoch_begin
            if length == 0:
                raise InputError("The stream holds no images.")
            if not self.endless:
                return
            whole_epochs = max(self.first_draw - draw, 0) // length
            draw += whole_epochs * length
            epoch += 1 + whole_epochs

    def _epoch_rows(self, epoch: int) -> Iterator[Row]:
        """The rows once. In an order of the epoch's own, the shards are put in another order, and rows go through a
        buffer. (`IterableDataset.shuffle` gives another order where a process loads images than where none does.)
        """
        dataset, buffer_size = self.images.dataset, self.images.shuffle_buffer_size
        if not (self.endless and buffer_size):
            yield from dataset
            return
        rng = np.random.default_rng([self.images.seed, epoch])
        buffer = []
        for shard in rng.permutation(dataset.num_shards):
            for row in dataset.shard(dataset.num_shards, int(shard)):
                if len(buffer) < buffer_size:
                    buffer.append(row)
                    continue
                place = int(rng.integers(buffer_size))
                yield buffer[place]
                buffer[place] = row
        for place in rng.permutation(len(buffer)):
            yield buffer[place]


# ------------------------------------------------------------------------------------------------------------- batches


@dataclass
class StreamCollator:
    """Decodes the rows that an [`ImageStream`] yields, and makes a batch of them.

    A process of several keeps its share of the rows before it comes to this, and decodes no others.
    """

    images: TrainingImages
    num_threads: int

    def __call__(self, drawn: list[tuple[int, list[tuple[int, Row]]]]) -> dict[str, torch.Tensor]:
        if self.num_threads < 2:
            return default_collate([self.images.load(*one) for one in drawn])
        with ThreadPoolExecutor(self.num_threads) as pool:
            return default_collate(list(pool.map(lambda one: self.images.load(*one), drawn)))


def stream_loader(stream: ImageStream, batch_size: int, num_workers: int) -> DataLoader:
    """Batches of a stream, which one process reads, so that it is read once and in order, and `num_workers` threads of
    it decode. With 0 workers both happen where the batch is asked for.
    """
    return DataLoader(
        stream,
        batch_size=batch_size,
        num_workers=min(num_workers, 1),
        collate_fn=StreamCollator(stream.images, num_workers),
        pin_memory=torch.cuda.is_available(),
    )


def training_loader(images: TrainingImages, batch_size: int, first_draw: int, num_workers: int) -> DataLoader:
    """Endless batches, starting at a draw."""
    if is_streamed(images.dataset):
        return stream_loader(ImageStream(images, first_draw), batch_size, num_workers)
    sampler = EndlessSampler(len(images), images.seed, first_draw)
    return DataLoader(
        images, batch_size=batch_size, sampler=sampler, num_workers=num_workers, pin_memory=torch.cuda.is_available()
    )


def evaluation_loader(images: TrainingImages, batch_size: int) -> DataLoader:
    """Every image once, in order."""
    if is_streamed(images.dataset):
        return stream_loader(ImageStream(images, endless=False), batch_size, num_workers=0)
    return DataLoader(images, batch_size=batch_size)


def examples_by_class(images: TrainingImages, num_classes: int, per_class: int) -> list[list[dict]]:
    """Items of the first images of the first classes, fewer where there are not so many.

    Of a stream, only the beginning is searched.
    """
    found = [[] for _ in range(num_classes)]
    if is_streamed(images.dataset):
        for drawn in itertools.islice(ImageStream(images, endless=False), SEARCHED_IMAGES):
            label = drawn[1][0][1]["label"]
            if label < num_classes and len(found[label]) < per_class:
                found[label].append(drawn)
        return [[images.load(*drawn) for drawn in of_class] for of_class in found]
    labels = np.asarray(images.dataset["label"])
    return [
        [images[index] for index in np.flatnonzero(labels == label)[:per_class].tolist()]
        for label in range(num_classes)
    ]
