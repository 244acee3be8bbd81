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

import argparse
import json
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from diffusers_cg.data.files import atomic_directory
from diffusers_cg.data.grids import image_grid
from diffusers_cg.data.images import list_files, load_image, resize_and_crop
from diffusers_cg.data.sources import readable_images
from diffusers_cg.errors import InputError, import_extra
from diffusers_cg_cli.command import command


CLUSTERS_FILE = "clusters.json"
CENTERS_FILE = "centers.npz"
LARGE_SET = 20_000  # images, from which k-means goes through them in parts
MINI_BATCH = 4096
NUM_RESTARTS = 10
SHEET_CLUSTERS = 100
SHEET_COLUMNS = 8


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image_dir", type=Path, required=True, help="Folder of images, at any depth.")
    parser.add_argument(
        "--output_dir", type=Path, required=True, help="Folder to write; clusters that are there are replaced."
    )
    clusters = parser.add_mutually_exclusive_group(required=True)
    clusters.add_argument("--num_clusters", type=int, help="How many labels to make.")
    clusters.add_argument(
        "--clusters_from", type=Path, help="Output folder of an earlier run, whose clusters these images are put into."
    )
    parser.add_argument(
        "--features", choices=("model", "pixels"), default="model", help="What k-means compares (see above)."
    )
    parser.add_argument(
        "--model", default="facebook/dinov2-base", help="Vision model of transformers: an id on the Hub or a folder."
    )
    parser.add_argument(
        "--pooling",
        choices=("mean", "cls"),
        default="mean",
        help="Of the model's last layer: the mean over all positions, or the class token of a model that has one first "
        "(ViT, DINOv2). Either is scaled to length 1.",
    )
    parser.add_argument(
        "--pixels_size",
        type=int,
        default=16,
        help="Side to which images are cropped and scaled for --features pixels; the RGB values are the features.",
    )
    parser.add_argument(
        "--files",
        choices=("hardlink", "symlink", "copy"),
        default="hardlink",
        help="How images come into the clusters. Hard links take no space and outlive the originals' removal, but are "
        "the same files: what edits one in place edits both. On another file system they become copies.",
    )
    parser.add_argument("--batch_size", type=int, default=64, help="Images at once.")
    parser.add_argument("--dataloader_num_workers", type=int, default=0, help="Processes that load images.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of k-means.")
    parser.add_argument(
        "--skip_bad_images", action="store_true", help="Leave out files that are no images, instead of refusing them."
    )
    return parser.parse_args(argv)


# ----------------------------------------------------------------------------------------------------------- features


@dataclass(frozen=True)
class FeatureSettings:
    """What an image is described by; kept in `clusters.json` so that others can be described in the same way.

    Args:
        features (`str`): `"model"` or `"pixels"`.
        model, pooling (`str`, *optional*): Of a model's features, as the flags.
        pixels_size (`int`, *optional*): Of pixels, as the flag.
    """

    features: str
    model: str | None = None
    pooling: str | None = None
    pixels_size: int | None = None

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> "FeatureSettings":
        if args.features == "pixels":
            return cls("pixels", pixels_size=args.pixels_size)
        model = str(Path(args.model).resolve()) if Path(args.model).is_dir() else args.model
        return cls("model", model=model, pooling=args.pooling)

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


class _RGBImages(torch.utils.data.Dataset):
    def __init__(self, files: Sequence[Path]):
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Image.Image:
        return load_image(self.files[index], channels=3)


def extract_features(
    files: Sequence[Path], settings: FeatureSettings, batch_size: int = 64, num_workers: int = 0
) -> np.ndarray:
    """Features (N, D) float32 of image files, in their order."""
    extract = settings.extractor()
    loader = DataLoader(_RGBImages(files), batch_size=batch_size, num_workers=num_workers, collate_fn=list)
    features = []
    with tqdm(total=len(files), desc="Describing images", unit="image") as progress_bar:
        for images in loader:
            features.append(extract(images))
            progress_bar.update(len(images))
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


def contact_sheet(
    files: Sequence[Path], labels: np.ndarray, distances: np.ndarray, names: Sequence[str]
) -> Image.Image:
    """A row per cluster, of the images nearest its centre."""
    rows, row_labels = [], []
    for number, name in enumerate(names[:SHEET_CLUSTERS]):
        members = np.flatnonzero(labels == number)
        nearest = members[np.argsort(distances[members], kind="stable")[:SHEET_COLUMNS]]
        rows.append([load_image(files[index], channels=3) for index in nearest])
        row_labels.append(f"{name} ({len(members)})")
    shown = f", the {len(rows)} largest clusters" if len(names) > len(rows) else ""
    return image_grid(rows, row_labels=row_labels, title=f"nearest to the centre first{shown}")


def check_arguments(args: argparse.Namespace) -> None:
    """Raises `InputError` where a number cannot be meant, or one folder lies in the other."""
    for name, least in (("num_clusters", 2), ("pixels_size", 1), ("batch_size", 1), ("dataloader_num_workers", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise InputError(f"--{name} must be at least {least}, got {value}.")
    if not args.image_dir.is_dir():
        raise InputError(f"There is no folder {args.image_dir}: pass a folder of images as --image_dir.")
    source, target = args.image_dir.resolve(), args.output_dir.resolve()
    if source == target or source in target.parents or target in source.parents:
        raise InputError(
            f"--image_dir {args.image_dir} and --output_dir {args.output_dir} lie one in the other: write elsewhere."
        )


@command
def main(args: argparse.Namespace) -> None:
    check_arguments(args)
    centers = None
    if args.clusters_from is None:
        settings = FeatureSettings.from_args(args)
    else:
        settings, centers = load_clusters(args.clusters_from)
    files = list_files(args.image_dir)
    num_clusters = args.num_clusters if centers is None else len(centers)
    if not files or (centers is None and len(files) < num_clusters):
        raise InputError(
            f"{args.image_dir} holds {len(files)} files, too few for {num_clusters} clusters: pass more images or "
            "fewer clusters."
        )
    files = readable_images(files, args.skip_bad_images)
    if not files or (centers is None and len(files) < num_clusters):
        raise InputError(
            f"{args.image_dir} holds {len(files)} images that can be read, too few for {num_clusters} clusters."
        )

    features = extract_features(files, settings, args.batch_size, args.dataloader_num_workers)
    if centers is None:
        centers = find_centers(features, num_clusters, args.seed)
    elif centers.shape[1] != features.shape[1]:
        raise InputError(
            f"The centres of {args.clusters_from} are {centers.shape[1]} wide, the features of these images "
            f"{features.shape[1]}: the model is no longer the one of that run."
        )
    labels, distances = nearest_centers(features, centers)

    names = cluster_names(num_clusters)
    sizes = np.bincount(labels, minlength=num_clusters)
    facts = {
        "settings": asdict(settings),
        "seed": args.seed if args.clusters_from is None else None,
        "clusters_from": None if args.clusters_from is None else str(args.clusters_from),
        "num_images": len(files),
        "inertia": float((distances.astype(np.float64) ** 2).sum()),
        "sizes": dict(zip(names, sizes.tolist())),
    }
    with atomic_directory(args.output_dir, replaces=CLUSTERS_FILE) as directory:
        for name in names:
            (directory / name).mkdir()
        for file, label in zip(tqdm(files, desc="Sorting images", unit="image", leave=False), labels):
            place(file, directory / names[label] / file.relative_to(args.image_dir), args.files)
        contact_sheet(files, labels, distances, names).save(directory / "clusters.png")
        np.savez(directory / CENTERS_FILE, centers=centers)
        (directory / CLUSTERS_FILE).write_text(json.dumps(facts, indent=2) + "\n")
    print(
        f"Saved {args.output_dir}: {len(files)} images in {num_clusters} clusters of {sizes.min()} to {sizes.max()}."
    )
    if (sizes == 0).any():
        empty = ", ".join(name for name, size in zip(names, sizes) if size == 0)
        print(f"None of these images belongs to {empty}; the training scripts refuse folders without images.")


if __name__ == "__main__":
    main(parse_args())
