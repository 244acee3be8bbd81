"""Images as training takes them: preprocessed, in an order that can be resumed anywhere, in batches."""

import itertools
import signal
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Sampler, default_collate, get_worker_info

from diffusers_cg.data import (
    Checked,
    ImageSet,
    ImageStream,
    StoredImage,
    look_at_images,
    open_dataset,
    open_folder,
    readable_images,
)
from diffusers_cg.data.classes import Labels, same_classes
from diffusers_cg.data.hf_datasets import is_dataset
from diffusers_cg.data.images import downscale, resize_and_crop, to_tensor
from diffusers_cg.errors import InputError


if TYPE_CHECKING:
    from diffusers_cg.training.config import DataSettings

# settings that make no sense of a folder, whose classes are its subfolders
OF_DATASETS = (
    "dataset_config_name",
    "split",
    "image_column",
    "label_column",
    "class_names",
    "num_classes",
    "streaming",
    "validation_split",
)
# ask a training to save a checkpoint and end; Windows knows no SIGUSR1
STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name))
SPARE_IMAGES = 15  # that are tried in place of one that cannot be read
SEARCHED_IMAGES = 2000  # of a stream, for examples of its classes

Item = dict[str, torch.Tensor | int]
Draw = tuple[int, Iterable[StoredImage]]
"""The number of a draw, and its image, which is not decoded yet; those that follow may stand in for it."""


# -------------------------------------------------------------------------------------------------------------- sources


def open_training_images(
    settings: "DataSettings",
    labels: Labels = "required",
    split: str | None = None,
    known_classes: Sequence[str] | None = None,
) -> ImageSet | ImageStream:
    """The images that the settings name; [`checked_images`] are those that can be read.

    Args:
        settings (`DataSettings`): Which images.
        labels (`str`): `"required"`, or `"optional"`: then labels, which nothing is trained on, are taken where there are any
            and all is in order, and images without are one class, called `images`.
        split (`str`, *optional*): Another split of the dataset than the settings'.
        known_classes (sequence of `str`, *optional*): The classes that those of the images are among.

    Raises:
        InputError: if the settings name no source or several, or the source does not hold images with labels as needed.
    """
    sources = {f"--{name}": getattr(settings, name) for name in ("train_data_dir", "dataset_name", "train_data_files")}
    given = [flag for flag, value in sources.items() if value is not None]
    if len(given) != 1:
        raise InputError(
            f"Pass one of {', '.join(sources)} to say where the images are, got {' and '.join(given) or 'none'}."
        )
    if settings.train_data_dir is not None:
        needless = [name for name in OF_DATASETS if getattr(settings, name, None) not in (None, False)]
        if needless:
            raise InputError(
                f"--{needless[0]} is for --dataset_name and --train_data_files, not for --train_data_dir."
            )
        return open_image_folder(settings, settings.train_data_dir, labels)
    if settings.class_from_file_name:
        raise InputError("--class_from_file_name is for --train_data_dir: columns say the classes of a dataset.")
    return open_dataset(
        settings.train_data_files if settings.dataset_name is None else settings.dataset_name,
        labels,
        split=split or settings.split or "train",
        config_name=settings.dataset_config_name,
        image_column=settings.image_column,
        label_column=settings.label_column,
        known_classes=known_classes,
        class_names=settings.class_names,
        num_classes=settings.num_classes,
        image_range=settings.image_range,
        streaming=settings.streaming,
        cache_dir=settings.cache_dir,
    )


def open_image_folder(
    settings: "DataSettings", folder: Path, labels: Labels, known_classes: Sequence[str] | None = None
) -> ImageSet:
    """The images of a folder, as the settings say; [`open_folder`] refuses what is none.

    Raises:
        InputError: if it is a dataset.
    """
    try:
        return open_folder(
            folder,
            labels,
            known_classes=known_classes,
            image_range=settings.image_range,
            class_from_file_name=settings.class_from_file_name,
        )
    except InputError as error:
        if folder.is_dir() and is_dataset(folder):
            raise InputError(
                f"{folder} is no folder of images but a dataset: pass it as --dataset_name {folder}."
            ) from error
        raise


def in_class_order(images: ImageSet | ImageStream, *orders: Sequence[str] | None) -> ImageSet | ImageStream:
    """The images, their labels in the first of some orders of class names that is one of the same classes: a checkpoint's,
    say, or a pretrained model's.
    """
    for class_names in orders:
        if same_classes(images.class_names, class_names):
            return images.with_classes(class_names)
    return images


def checked_images(images: ImageSet | ImageStream, settings: "DataSettings") -> ImageSet | ImageStream:
    """[`readable_images`], if the settings have them verified; of a stream the first few are looked at.

    Each of several processes looks at its share, and all learn what was found. All call this.
    """
    processes = PartialState()
    if isinstance(images, ImageStream) and settings.verify_images and processes.is_main_process:
        images.warn_of_constant()
    if isinstance(images, ImageStream) or not settings.verify_images:
        return images
    checked = look_at_images(images, settings.dataloader_num_workers, processes.process_index, processes.num_processes)
    checked = Checked(
        faults=dict(sorted(gather_object(list(checked.faults.items())))),
        constant=sorted(gather_object(checked.constant)),
    )
    if processes.is_main_process:
        images.warn_of_constant(checked.constant)
    return readable_images(images, settings.skip_bad_images, checked=checked, say=processes.print)


# ---------------------------------------------------------------------------------------------------------------- items


@dataclass
class TrainingImages:
    """Images, preprocessed. Everything about an item follows from the seed and the draw (see [`EndlessSampler`]), so it is
    the same whoever loads it and after a resume.

    Args:
        dataset ([`ImageSet`] or [`ImageStream`]): Images with labels, from [`open_training_images`].
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
        stratified (`bool`): Whether what was held out of them is the same part of every class.
    """

    dataset: ImageSet | ImageStream
    resolution: int
    channels: int
    center_crop: bool = True
    random_flip: bool = False
    seed: int = 0
    low_res_size: int | None = None
    skip_bad_images: bool = False
    shuffle_buffer_size: int = 1000
    images_per_epoch: int | None = None
    stratified: bool = True

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: int | tuple[int, int]) -> Item:
        """The item of an index, or of (index, draw): see [`load`]. A stream has none."""
        index, draw = item if isinstance(item, tuple) else (item, item)
        return self.load(draw, self.candidates(index))

    def candidates(self, index: int) -> Iterator[StoredImage]:
        """The image of an index, and those that may stand in for it."""
        return (self.dataset[(index + spare) % len(self)] for spare in range(SPARE_IMAGES + 1))

    @property
    def is_streamed(self) -> bool:
        return isinstance(self.dataset, ImageStream)

    @property
    def class_names(self) -> list[str]:
        """What the classes are called, in the order of their labels."""
        return self.dataset.class_names

    @property
    def num_images(self) -> int | None:
        """Number of images in an epoch; None if it is not known, of a stream."""
        return self.images_per_epoch if self.is_streamed else len(self.dataset)

    @cached_property
    def fingerprint(self) -> str:
        """What tells other images from these: see [`ImageSet.fingerprint`]."""
        return self.dataset.fingerprint()

    def load(self, draw: int, candidates: Iterable[StoredImage]) -> Item:
        """The item of a draw, from the first of the images that can be read.

        Returns:
            `clean_images` (C, H, W) float32 in [-1, 1], `class_labels` and `draws` int. With `low_res_size` also
            `low_res_images` (C, h, w) float32 in [-1, 1]: the same pictures, by [`downscale`]. With `skip_bad_images`
            also `bad_images`: whether another image had to stand in.

        Raises:
            InputError: if an image cannot be read and bad ones are not skipped, or all of them are bad; or if the label
                is not one of the classes'.
        """
        is_bad = False
        for stored in candidates:
            try:
                image = stored.load(self.channels)
            except InputError as error:
                fault = str(error)
                if not self.skip_bad_images:
                    raise InputError(f"{fault} Pass --skip_bad_images to train without such images.") from error
                warnings.warn(fault, stacklevel=2)
                is_bad = True
            else:
                item = self._preprocess(image, self._label(stored), draw)
                return {**item, "bad_images": is_bad} if self.skip_bad_images else item
        raise InputError(f"None of {SPARE_IMAGES + 1} images in a row can be read; the last: {fault}")

    def _label(self, stored: StoredImage) -> int:
        num_classes = len(self.class_names)
        if not isinstance(stored.label, int) or not 0 <= stored.label < num_classes:  # of a stream, anything
            raise InputError(f"{stored.name} has the label {stored.label}, which is none of 0..{num_classes - 1}.")
        return int(stored.label)  # a truth value is one

    def _preprocess(self, image: Image.Image, label: int, draw: int) -> Item:
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
class SetDraws(torch.utils.data.Dataset):
    """[`Draw`]s of an [`ImageSet`], asked for by (index, draw)."""

    images: TrainingImages

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: tuple[int, int]) -> Draw:
        index, draw = item
        return draw, self.images.candidates(index)


@dataclass
class StreamDraws(torch.utils.data.IterableDataset):
    """Yields the [`Draw`]s of an [`ImageStream`].

    If bad images are skipped, those that follow a draw's own in the stream may stand in. So a draw has the same image
    wherever the stream is entered: what comes before has no say.

    Args:
        images (`TrainingImages`): Of a stream.
        first_draw (`int`): Where to begin. The images before it in the epoch are read again and passed over (of earlier
            epochs one is read, for their length), for the order follows from what was read.
        endless (`bool`): Every epoch in another order, one after the other; or else one epoch in the stream's own.
    """

    images: TrainingImages
    first_draw: int = 0
    endless: bool = True

    def __iter__(self) -> Iterator[Draw | InputError]:
        try:
            yield from self._draws()
        except InputError as error:
            if get_worker_info() is None:
                raise
            yield from itertools.repeat(error)  # for every process that shares the stream; see `BatchCollator`

    def _draws(self) -> Iterator[Draw]:
        num_spares = SPARE_IMAGES if self.images.skip_bad_images else 0
        window = deque()
        for numbered in itertools.chain(self._numbered_images(), itertools.repeat(None, num_spares)):
            window.append(numbered)
            if len(window) > num_spares:
                draw, _ = window[0]
                yield draw, [candidate[1] for candidate in window if candidate is not None]
                window.popleft()

    def _numbered_images(self) -> Iterator[tuple[int, StoredImage]]:
        draw, epoch = 0, 0
        while True:
            epoch_begin = draw
            for stored in self._epoch(epoch):
                if draw >= self.first_draw:
                    yield draw, stored
                draw += 1
            length = draw - epoch_begin
            if length == 0:
                raise InputError(f"{self.images.dataset.source} holds no images.")
            if not self.endless:
                return
            whole_epochs = max(self.first_draw - draw, 0) // length
            draw += whole_epochs * length
            epoch += 1 + whole_epochs

    def _epoch(self, epoch: int) -> Iterator[StoredImage]:
        """The images once. In an order of the epoch's own, the shards are put in another order, and images go through a
        buffer. (`IterableDataset.shuffle` gives another order where a process loads images than where none does.)
        """
        stream, buffer_size = self.images.dataset, self.images.shuffle_buffer_size
        if not (self.endless and buffer_size):
            yield from stream
            return
        rng = np.random.default_rng([self.images.seed, epoch])
        buffer = []
        for shard in rng.permutation(stream.num_shards):
            for stored in stream.shard(int(shard)):
                if len(buffer) < buffer_size:
                    buffer.append(stored)
                    continue
                place = int(rng.integers(buffer_size))
                yield buffer[place]
                buffer[place] = stored
        for place in rng.permutation(len(buffer)):
            yield buffer[place]


# ------------------------------------------------------------------------------------------------------------- batches


@dataclass
class BatchCollator:
    """Decodes the images of draws, and makes a batch of them; where that fails in a worker, the batch is the error.

    A process of several keeps its share of the draws before it comes to this, and decodes no others.
    """

    images: TrainingImages
    num_threads: int = 0

    def __call__(self, draws: list[Draw | InputError]) -> dict[str, torch.Tensor] | InputError:
        try:
            if self.num_threads < 2:
                return default_collate([self._load(draw) for draw in draws])
            with ThreadPoolExecutor(self.num_threads) as pool:
                return default_collate(list(pool.map(self._load, draws)))
        except InputError as error:
            if get_worker_info() is None:
                raise
            return error  # raised in a worker, it would come out as a text with the worker's traceback

    def _load(self, draw: Draw | InputError) -> Item:
        if isinstance(draw, InputError):
            raise draw
        return self.images.load(*draw)


def raise_errors(batches: Iterable[dict[str, torch.Tensor] | InputError]) -> Iterator[dict[str, torch.Tensor]]:
    """The batches of a [`training_loader`]; an error that a worker sent in place of one is raised."""
    for batch in batches:
        if isinstance(batch, InputError):
            raise batch
        yield batch


def training_loader(images: TrainingImages, batch_size: int, first_draw: int, num_workers: int) -> DataLoader:
    """Endless batches, starting at a draw, for [`raise_errors`].

    One process reads a stream, so that it is read once and in order, and `num_workers` threads of it decode.
    """
    options = {
        "batch_size": batch_size,
        "pin_memory": torch.cuda.is_available(),
        "worker_init_fn": ignore_stop_signals,
    }
    if images.is_streamed:
        collator = BatchCollator(images, num_threads=num_workers)
        return DataLoader(
            StreamDraws(images, first_draw), num_workers=min(num_workers, 1), collate_fn=collator, **options
        )
    sampler = EndlessSampler(len(images), images.seed, first_draw)
    return DataLoader(
        SetDraws(images), sampler=sampler, num_workers=num_workers, collate_fn=BatchCollator(images), **options
    )


def ignore_stop_signals(worker: int) -> None:
    """In a process that loads images: sent to the whole group, they are for the process that trains, which needs its
    loaders to finish the step. It ends them, and they end when it is gone.
    """
    for signum in STOP_SIGNALS:
        signal.signal(signum, signal.SIG_IGN)


def evaluation_loader(images: TrainingImages, batch_size: int) -> DataLoader:
    """Every image once, in order; an item's draw is its place."""
    if images.is_streamed:
        return DataLoader(StreamDraws(images, endless=False), batch_size, collate_fn=BatchCollator(images))
    in_order = [(index, index) for index in range(len(images))]
    return DataLoader(SetDraws(images), batch_size, sampler=in_order, collate_fn=BatchCollator(images))


def examples_by_class(images: TrainingImages, num_classes: int, per_class: int) -> list[list[Item]]:
    """Items of the first images of the first classes that have any, fewer where there are not so many.

    Of a stream, only the beginning is searched: for the first classes, or else for those of the first images.
    """
    if images.is_streamed:
        first, others = {}, {}
        for draw, candidates in itertools.islice(StreamDraws(images, endless=False), SEARCHED_IMAGES):
            label = candidates[0].label
            found = first if label in range(num_classes) else others
            if label in range(len(images.class_names)) and (label in found or len(found) < num_classes):
                of_class = found.setdefault(label, [])
                if len(of_class) < per_class:
                    of_class.append((draw, candidates))
        return [[images.load(*draw) for draw in of_class] for _, of_class in sorted((first or others).items())]
    labels = images.dataset.labels
    return [
        [images[index] for index in np.flatnonzero(labels == label)[:per_class].tolist()]
        for label in np.unique(labels)[:num_classes].tolist()
    ]
