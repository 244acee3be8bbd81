"""Gives a folder of images without labels synthetic ones: a subfolder per cluster of images that look alike.

    python training/cluster_labels.py --image_dir photos --num_clusters 100 --output_dir labelled
    accelerate launch training/train_classifier.py --train_data_dir labelled ...

Guidance by such labels is what the paper names as future work (section 7). An image is described by the output of a
vision model (`--model`: any of `transformers`, from the Hub or a folder), or by its own pixels (`--features pixels`);
k-means puts those near each other into one cluster. Clusters are numbered from the largest, and beside them lie

    clusters.png                     a row per cluster: the images nearest its centre
    clusters.json, centers.npz       the settings, sizes and inertia; the centres (num_clusters, width of the features)

`--clusters_from labelled` takes the features and centres of an earlier run instead of new ones, and so labels further
images (a validation set, say) in the same way.
"""

import json
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from diffusers_cg.data import ImageSet, StoredImage, open_folder, readable_images
from diffusers_cg.data.files import atomic_directory
from diffusers_cg.data.grids import image_grid
from diffusers_cg.data.images import resize_and_crop
from diffusers_cg.errors import InputError, import_extra
from diffusers_cg_cli.command import command
from diffusers_cg_cli.settings import Settings, parse
from diffusers_cg_cli.shared import ImageRange


CLUSTERS_FILE = "clusters.json"
CENTERS_FILE = "centers.npz"
LARGE_SET = 20_000  # images, from which k-means goes through them in parts
MINI_BATCH = 4096
NUM_RESTARTS = 10
SHEET_CLUSTERS = 100
SHEET_COLUMNS = 8


class ClusterSettings(Settings):
    """What to cluster, by what, and how many clusters to make."""

    image_dir: Path
    """Folder of images, at any depth."""

    output_dir: Path
    """Folder to write; clusters that are there are replaced."""

    num_clusters: Annotated[int, Field(ge=2)] | None = None
    """How many labels to make."""

    clusters_from: Path | None = None
    """In place of a number: output folder of an earlier run, whose clusters these images are put into."""

    features: Literal["model", "pixels"] = "model"
    """What k-means compares (see above)."""

    model: str = "facebook/dinov2-base"
    """Vision model of transformers: an id on the Hub or a folder."""

    pooling: Literal["mean", "cls"] = "mean"
    """Of the model's last layer: the mean over all positions, or the class token of a model that has one first (ViT,
    DINOv2). Either is scaled to length 1."""

    pixels_size: PositiveInt = 16
    """Side to which images are cropped and scaled for --features pixels; the RGB values are the features."""

    files: Literal["hardlink", "symlink", "copy"] = "hardlink"
    """How images come into the clusters. Hard links take no space and outlive the originals' removal, but are the same
    files: what edits one in place edits both. On another file system they become copies."""

    batch_size: PositiveInt = 64
    """Images at once."""

    dataloader_num_workers: NonNegativeInt = 0
    """Processes that load images."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of k-means."""

    image_range: ImageRange | None = None
    """The values of black and white in images of more than 8 bits: 0 65535, say, or 0 1."""

    skip_bad_images: bool = False
    """Leave out files that are no images, instead of refusing them."""

    @model_validator(mode="after")
    def check(self) -> "ClusterSettings":
        if (self.num_clusters is None) == (self.clusters_from is None):
            raise ValueError("Pass one of --num_clusters and --clusters_from.")
        source, target = self.image_dir.resolve(), self.output_dir.resolve()
        if source == target or source in target.parents or target in source.parents:
            raise ValueError(
                f"--image_dir {self.image_dir} and --output_dir {self.output_dir} lie one in the other: write elsewhere."
            )
        return self


@command
def parse_args(argv: Sequence[str] | None = None) -> ClusterSettings:
    return parse(ClusterSettings, argv, description=__doc__)


# ----------------------------------------------------------------------------------------------------------- features


@dataclass(frozen=True)
class FeatureSettings:
    """What an image is described by; kept in `clusters.json` so that others can be described in the same way.

    Args:
        features (`str`): `"model"` or `"pixels"`.
        model, pooling (`str`, *optional*): Of a model's features, as the flags.
        pixels_size (`int`, *optional*): Of pixels, as the flag.
        image_range (`list[float]`, *optional*): Of either, as the flag.
    """

    features: str
    model: str | None = None
    pooling: str | None = None
    pixels_size: int | None = None
    image_range: list[float] | None = None

    @classmethod
    def of(cls, settings: ClusterSettings) -> "FeatureSettings":
        if settings.features == "pixels":
            return cls("pixels", pixels_size=settings.pixels_size, image_range=settings.image_range)
        model = str(Path(settings.model).resolve()) if Path(settings.model).is_dir() else settings.model
        return cls("model", model=model, pooling=settings.pooling, image_range=settings.image_range)

    def extractor(self) -> Callable[[Sequence[Image.Image]], np.ndarray]:
        """A function from RGB images to their features (B, D) float32."""
        if self.features == "pixels":
            return lambda images: pixel_features(images, self.pixels_size)
        return ModelFeatures(self.model, self.pooling)


def pixel_features(images: Sequence[Image.Image], size: int) -> np.ndarray:
    """RGB values (B, 3 * size * size) float32 in [0, 1] of the middle square, scaled to `size` pixels a side."""
    squares = [np.asarray(resize_and_crop(image, size, center_crop=True), dtype=np.float32) for image in images]
    return np.stack(squares).reshape(len(squares), -1) / 255


class ModelFeatures:
    """The last layer of a vision model of `transformers`, pooled and scaled to length 1.

    Not the model's own pooled output: where a checkpoint has no weights for it, transformers makes up random ones.

    Args:
        model (`str`): An id on the Hub or a folder, with the preprocessing beside it. Of a model of text and images
            (CLIP, SigLIP) the part for images is used.
        pooling (`str`): `"mean"` over all positions, or `"cls"`, the first one.

    Raises:
        InputError: if the model cannot be loaded, or takes no images.
    """

    def __init__(self, model: str, pooling: str):
        transformers = import_extra("transformers", "cluster")
        self.pooling = pooling
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            # the same numbers with and without torchvision
            self.processor = transformers.AutoImageProcessor.from_pretrained(model, backend="pil")
            network = transformers.AutoModel.from_pretrained(model)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(
                f"--model {model} is no vision model of transformers that can be loaded here ({reason.rstrip('.')}): "
                "pass an id on the Hub, a folder with config.json and preprocessor_config.json, or --features pixels."
            ) from error
        network = getattr(network, "vision_model", network)
        if network.main_input_name != "pixel_values":
            raise InputError(f"--model {model} takes {network.main_input_name}, not images: pass a vision model.")
        self.network = network.to(self.device).eval()

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image]) -> np.ndarray:
        inputs = self.processor(images=list(images), return_tensors="pt").to(self.device)
        hidden = self.network(pixel_values=inputs["pixel_values"]).last_hidden_state
        if hidden.ndim == 4:  # (B, D, H, W) of a convolutional network
            hidden = hidden.flatten(2).transpose(1, 2)
        pooled = hidden.mean(dim=1) if self.pooling == "mean" else hidden[:, 0]
        return torch.nn.functional.normalize(pooled.float(), dim=1).cpu().numpy()


def load_rgb(batch: Sequence[StoredImage]) -> list[Image.Image]:
    return [stored.load(channels=3) for stored in batch]


def extract_features(
    images: ImageSet, settings: FeatureSettings, batch_size: int = 64, num_workers: int = 0
) -> np.ndarray:
    """Features (N, D) float32 of images, in their order."""
    extract = settings.extractor()
    loader = DataLoader(images, batch_size=batch_size, num_workers=num_workers, collate_fn=load_rgb)
    features = []
    with tqdm(total=len(images), desc="Describing images", unit="image") as progress_bar:
        for batch in loader:
            features.append(extract(batch))
            progress_bar.update(len(batch))
    return np.concatenate(features)


# ----------------------------------------------------------------------------------------------------------- clusters


def find_centers(features: np.ndarray, num_clusters: int, seed: int = 0) -> np.ndarray:
    """Centres (K, D) float32 of k-means on features (N, D), that of the largest cluster first.

    The best of several starts (k-means++), by all images at once or, of more than 20,000, by parts of them.

    Raises:
        InputError: if a cluster stays empty, since too few images differ.
    """
    cluster = import_extra("sklearn.cluster", "cluster")
    settings = {"n_clusters": num_clusters, "n_init": NUM_RESTARTS, "random_state": seed}
    if len(features) > LARGE_SET:
        kmeans = cluster.MiniBatchKMeans(batch_size=MINI_BATCH, **settings)
    else:
        kmeans = cluster.KMeans(**settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", import_extra("sklearn.exceptions", "cluster").ConvergenceWarning)
        centers = kmeans.fit(features).cluster_centers_
    sizes = np.bincount(nearest_centers(features, centers)[0], minlength=num_clusters)
    filled = np.count_nonzero(sizes)
    if filled < num_clusters:
        raise InputError(
            f"Only {filled} of {num_clusters} clusters hold images, the {len(features)} images do not differ enough: "
            f"pass --num_clusters {filled} or fewer."
        )
    return centers[np.argsort(-sizes, kind="stable")].astype(np.float32)


def nearest_centers(features: np.ndarray, centers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest of the centres (K, D) to each of the features (N, D): its number (N,), and its distance (N,)."""
    metrics = import_extra("sklearn.metrics", "cluster")
    return metrics.pairwise_distances_argmin_min(features, centers)


def load_clusters(directory: Path) -> tuple[FeatureSettings, np.ndarray]:
    """The features and centres of an earlier run.

    Raises:
        InputError: if the folder is none that this script wrote.
    """
    if not all((directory / name).is_file() for name in (CLUSTERS_FILE, CENTERS_FILE)):
        raise InputError(
            f"{directory} is no output folder of cluster_labels.py (it lacks {CLUSTERS_FILE} or {CENTERS_FILE})."
        )
    settings = json.loads((directory / CLUSTERS_FILE).read_text())["settings"]
    with np.load(directory / CENTERS_FILE) as file:
        return FeatureSettings(**settings), file["centers"]


# ------------------------------------------------------------------------------------------------------------- output


def cluster_names(num_clusters: int) -> list[str]:
    """Names of the subfolders, whose sorted order is the clusters' own."""
    width = len(str(num_clusters - 1))
    return [f"cluster_{number:0{width}d}" for number in range(num_clusters)]


def place(source: Path, target: Path, how: str) -> None:
    """Puts an image file to `target` by a hard link (a copy where there can be none), a symbolic link or a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if how == "symlink":
        target.symlink_to(source.resolve())
        return
    if how == "hardlink":
        try:
            os.link(source.resolve(), target)
            return
        except OSError:  # another file system, or one without links
            pass
    shutil.copyfile(source, target)


def contact_sheet(images: ImageSet, labels: np.ndarray, distances: np.ndarray, names: Sequence[str]) -> Image.Image:
    """A row per cluster, of the images nearest its centre."""
    rows, row_labels = [], []
    for number, name in enumerate(names[:SHEET_CLUSTERS]):
        members = np.flatnonzero(labels == number)
        nearest = members[np.argsort(distances[members], kind="stable")[:SHEET_COLUMNS]]
        rows.append([images[index].load(channels=3) for index in nearest])
        row_labels.append(f"{name} ({len(members)})")
    shown = f", the {len(rows)} largest clusters" if len(names) > len(rows) else ""
    return image_grid(rows, row_labels=row_labels, title=f"nearest to the centre first{shown}")


def check_number(images: ImageSet, what: str, num_clusters: int | None) -> None:
    """Raises `InputError` if there are too few images for new clusters, or for any."""
    if len(images) < (num_clusters or 1):
        raise InputError(
            f"{images.source} holds {len(images)} {what}, too few for {num_clusters or 'any'} clusters: pass more images "
            "or fewer clusters."
        )


@command
def main(settings: ClusterSettings) -> None:
    centers = None
    if settings.clusters_from is None:
        described_by = FeatureSettings.of(settings)
    else:
        described_by, centers = load_clusters(settings.clusters_from)
    num_clusters = settings.num_clusters if centers is None else len(centers)
    image_range = settings.image_range or described_by.image_range
    images = open_folder(settings.image_dir, image_range=image_range)
    print(images.summary())
    check_number(images, "files", settings.num_clusters)
    images = readable_images(images, settings.skip_bad_images)
    check_number(images, "images that can be read", settings.num_clusters)

    features = extract_features(images, described_by, settings.batch_size, settings.dataloader_num_workers)
    if centers is None:
        centers = find_centers(features, num_clusters, settings.seed)
    elif centers.shape[1] != features.shape[1]:
        raise InputError(
            f"The centres of {settings.clusters_from} are {centers.shape[1]} wide, the features of these images "
            f"{features.shape[1]}: the model is no longer the one of that run."
        )
    labels, distances = nearest_centers(features, centers)

    names = cluster_names(num_clusters)
    sizes = np.bincount(labels, minlength=num_clusters)
    facts = {
        "settings": asdict(described_by),
        "seed": settings.seed if settings.clusters_from is None else None,
        "clusters_from": None if settings.clusters_from is None else str(settings.clusters_from),
        "num_images": len(images),
        "inertia": float((distances.astype(np.float64) ** 2).sum()),
        "sizes": dict(zip(names, sizes.tolist())),
    }
    with atomic_directory(settings.output_dir, replaces=CLUSTERS_FILE) as directory:
        for name in names:
            (directory / name).mkdir()
        for stored, label in zip(tqdm(images, desc="Sorting images", unit="image", leave=False), labels):
            file = Path(stored.content)
            place(file, directory / names[label] / file.relative_to(settings.image_dir), settings.files)
        contact_sheet(images, labels, distances, names).save(directory / "clusters.png")
        np.savez(directory / CENTERS_FILE, centers=centers)
        (directory / CLUSTERS_FILE).write_text(json.dumps(facts, indent=2) + "\n")
    print(
        f"Saved {settings.output_dir}: {len(images)} images in {num_clusters} clusters of {sizes.min()} to {sizes.max()}."
    )
    if (sizes == 0).any():
        empty = ", ".join(name for name, size in zip(names, sizes) if size == 0)
        print(f"None of these images belongs to {empty}; the training scripts refuse folders without images.")


if __name__ == "__main__":
    main(parse_args())
