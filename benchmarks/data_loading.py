"""How fast images are loaded, against how fast a training step takes them.

    python benchmarks/data_loading.py --output_dir data_loading

Makes 10,000 JPEG files of 256x256 pixels in 10 classes, random crops of the two photographs that come with
scikit-learn, mirrored, brightened or darkened at random, and packs the same files into webdataset shards. Then it loads
them as the training scripts do (decoded, randomly cropped to `--resolution`, in batches) by 0, 1 and 2 workers, and times
steps of the paper's classifier at that resolution.
"""

import io
import json
import tarfile
import time
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageOps
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from diffusers_cg import NoisyClassifierModel
from diffusers_cg.data import open_dataset, open_folder
from diffusers_cg.data.files import atomic_directory
from diffusers_cg.training.data import TrainingImages, training_loader
from diffusers_cg_cli.command import run_script
from diffusers_cg_cli.settings import Settings


NUM_CLASSES = 10
SIDE = 256
IMAGES_PER_SHARD = 1000
WARM_UP_BATCHES = 4


class LoadingSettings(Settings):
    output_dir: Path
    """For the images and the report."""
    num_images: PositiveInt = 10_000
    resolution: list[PositiveInt] = [64, 256]
    """What the images are cropped to."""
    num_workers: list[NonNegativeInt] = [0, 1, 2]
    batch_size: PositiveInt = 32
    seconds: PositiveFloat = 20
    """How long each loader is timed."""
    train_steps: PositiveInt = 3
    """Training steps timed, of 8 images."""
    seed: NonNegativeInt = 0


def make_jpeg(photographs: list[Image.Image], rng: np.random.Generator) -> bytes:
    """A file of 256x256 pixels: a random part of one of the photographs, at a random scale."""
    photograph = photographs[rng.integers(len(photographs))]
    side = int(rng.integers(SIDE, min(photograph.size) + 1))
    left, top = (int(rng.integers(whole - side + 1)) for whole in photograph.size)
    image = photograph.resize((SIDE, SIDE), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))
    if rng.random() < 0.5:
        image = ImageOps.mirror(image)
    image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.7, 1.3))
    file = io.BytesIO()
    image.save(file, "jpeg", quality=95)
    return file.getvalue()


def make_images(directory: Path, num_images: int, seed: int) -> None:
    """Writes the images as `folder/CLASS/NUMBER.jpg` and, the same ones, as `shards/NUMBER.tar`."""
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    rng = np.random.default_rng(seed)
    for label in range(NUM_CLASSES):
        (directory / "folder" / str(label)).mkdir(parents=True)
    (directory / "shards").mkdir()
    for first in tqdm(range(0, num_images, IMAGES_PER_SHARD), desc="Making images", unit="shard"):
        with tarfile.open(directory / "shards" / f"{first:06d}.tar", "w") as shard:
            for number in range(first, min(first + IMAGES_PER_SHARD, num_images)):
                content, label = make_jpeg(photographs, rng), number % NUM_CLASSES
                (directory / "folder" / str(label) / f"{number:06d}.jpg").write_bytes(content)
                for suffix, data in (("jpg", content), ("cls", str(label).encode())):
                    entry = tarfile.TarInfo(f"{number:06d}.{suffix}")
                    entry.size = len(data)
                    shard.addfile(entry, io.BytesIO(data))


def loading_speed(loader: DataLoader, seconds: float) -> tuple[float, float]:
    """Images per second, after the first batches, and core seconds of this process per image."""
    batches = iter(loader)
    num_images = 0
    for _ in islice(batches, WARM_UP_BATCHES):
        pass
    started, core_started = time.perf_counter(), time.process_time()
    while time.perf_counter() - started < seconds:
        num_images += len(next(batches)["draws"])
    return num_images / (time.perf_counter() - started), (time.process_time() - core_started) / num_images


def training_speed(resolution: int, num_steps: int, batch_size: int = 8) -> tuple[float, float]:
    """[`loading_speed`] of training steps of the paper's 64x64 classifier: forward, backward and optimizer."""
    model = NoisyClassifierModel(sample_size=resolution)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    sample, timesteps = torch.randn(batch_size, 3, resolution, resolution), torch.full((batch_size,), 500)
    labels = torch.arange(batch_size)
    for step in range(num_steps + 1):  # the first one is not timed
        if step == 1:
            started, core_started = time.perf_counter(), time.process_time()
        F.cross_entropy(model(sample, timesteps).logits, labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    num_images = num_steps * batch_size
    return num_images / (time.perf_counter() - started), (time.process_time() - core_started) / num_images


def table(rows: Iterable[tuple], *head: str) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def main(args: LoadingSettings) -> None:
    data = args.output_dir / f"images_{args.num_images}_{args.seed}"
    if not data.exists():
        with atomic_directory(data) as partial:
            make_images(partial, args.num_images, args.seed)
    sizes = [file.stat().st_size for file in (data / "folder").rglob("*.jpg")]
    print(f"{len(sizes)} files of {np.mean(sizes) / 1e3:.1f} kB on average.", flush=True)

    shards = {"split": "train", "streaming": True, "num_classes": NUM_CLASSES}
    sources = {
        "folder": open_folder(data / "folder", "required"),
        "webdataset, streamed": open_dataset(data / "shards" / "*.tar", "required", **shards),
    }
    rows = []
    for name, dataset in sources.items():
        for resolution in args.resolution:
            images = TrainingImages(dataset, resolution, channels=3, center_crop=False, random_flip=True)
            for num_workers in args.num_workers:
                loader = training_loader(images, args.batch_size, 0, num_workers)
                speed, core_seconds = loading_speed(loader, args.seconds)
                core_time = f"{1000 * core_seconds:.1f}" if num_workers == 0 else ""  # workers have their own
                rows.append((name, resolution, num_workers, f"{speed:.0f}", core_time))
                print(rows[-1], flush=True)
    speed, core_seconds = training_speed(64, args.train_steps)
    steps = [("classifier, 64x64", f"{speed:.2f}", f"{1000 * core_seconds:.0f}")]
    measured = ("images/s", "core ms per image")
    text = "\n\n".join(
        [table(rows, "source", "resolution", "workers", *measured), table(steps, "training step", *measured)]
    )
    (args.output_dir / "report.md").write_text(text + "\n")
    (args.output_dir / "report.json").write_text(json.dumps({"loading": rows, "training": steps}, indent=2) + "\n")
    print(text)


if __name__ == "__main__":
    run_script(main, LoadingSettings, __doc__)
