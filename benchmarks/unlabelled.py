"""Guidance without labels, which the paper names as future work (section 7), on digits.

    python benchmarks/unlabelled.py --output_dir unlabelled

throws the labels of the 1,437 training digits away, sorts them into clusters by `training/cluster_labels.py`, trains a
classifier of those clusters, and guides the unconditional unet that ships by it. Neither network ever sees a label. It
prints and writes `table.md`:

    agreement    of the clusters with the digits: adjusted Rand index, and the share that bears the digit that is most
                 frequent in its cluster (purity)
    asked for    share of the images drawn whose nearest cluster centre is that of the cluster asked for
    judged       share that an independent judge reads as the digit most frequent in the cluster asked for

and `guided.png`, a row per noise and a column per cluster. A run that was stopped goes on where it was.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from digits_judge import DigitsJudge
from digits_table4 import check_same_settings, draw_cell
from PIL import Image
from pydantic import NonNegativeInt, PositiveInt
from sklearn.metrics import adjusted_rand_score

from diffusers_cg import DIGITS, ADMUNet2DModel, ClassifierGuidedDDPMPipeline, NoisyClassifierModel
from diffusers_cg.data.files import list_files
from diffusers_cg.data.grids import image_grid
from diffusers_cg.training.cluster_labels import cluster_names, load_clusters, nearest_centers
from diffusers_cg.training.export_digits import split_digits
from diffusers_cg_cli.command import run_script
from diffusers_cg_cli.settings import Settings


TRAINING = Path(__file__).parents[1] / "training"


class UnlabelledSettings(Settings):
    num_clusters: PositiveInt = 10
    max_train_steps: PositiveInt = 1500
    """Of the classifier."""
    scales: list[float] = [0, 1, 3]
    """Rows of the table."""
    num_samples: PositiveInt = 500
    """Images per row."""
    num_inference_steps: PositiveInt = 100
    batch_size: PositiveInt = 100
    """Changes the speed, not the images."""
    seed: NonNegativeInt = 0
    output_dir: Path


def run(script: str, *flags: object) -> None:
    subprocess.run([sys.executable, str(TRAINING / script), *map(str, flags)], check=True)


def write_unlabelled(folder: Path) -> dict[str, np.ndarray]:
    """Writes the digits as `train/NUMBER.png` and `test/NUMBER.png`, and gives back what the files do not tell: labels."""
    labels = {}
    for split, (images, labels[split]) in split_digits().items():
        (folder / split).mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(images):
            Image.fromarray(image).save(folder / split / f"{number:04d}.png")
    return labels


def clusters_of(folder: Path, names: Sequence[str], num_images: int) -> np.ndarray:
    """The cluster (N,) of every image, by its number."""
    clusters = np.empty(num_images, dtype=np.int64)
    for cluster, name in enumerate(names):
        clusters[[int(file.stem) for file in list_files(folder / name)]] = cluster
    return clusters


def main(args: UnlabelledSettings) -> None:
    check_same_settings(args, ("num_clusters", "max_train_steps", "num_samples", "num_inference_steps", "seed"))
    folder, labelled, classifier_dir = (args.output_dir / name for name in ("digits", "labelled", "classifier"))
    labels = write_unlabelled(folder)
    settings = ["--features", "pixels", "--seed", args.seed]
    run("cluster_labels.py", "--image_dir", folder / "train", "--num_clusters", args.num_clusters, *settings,
        "--output_dir", labelled)  # fmt: skip
    run("cluster_labels.py", "--image_dir", folder / "test", "--clusters_from", labelled,
        "--output_dir", args.output_dir / "labelled_test")  # fmt: skip
    if not (classifier_dir / "config.json").is_file():
        resume = ["--resume_from_checkpoint", "latest"] if list(classifier_dir.glob("checkpoint-*")) else []
        run("train_classifier.py", "--train_data_dir", labelled, "--validation_data_dir",
            args.output_dir / "labelled_test", "--config", "digits_classifier", "--checkpointing_steps", 250, "--max_train_steps", args.max_train_steps, "--seed",
            args.seed, *resume, "--output_dir", classifier_dir)  # fmt: skip

    names = cluster_names(args.num_clusters)
    clusters = clusters_of(labelled, names, len(labels["train"]))
    digit_of = np.array([np.bincount(labels["train"][clusters == c]).argmax() for c in range(args.num_clusters)])
    held_out = clusters_of(args.output_dir / "labelled_test", names, len(labels["test"]))
    rows = [
        "| digits | images | adjusted Rand index | purity |",
        "| --- | --- | --- | --- |",
        *(
            f"| {name} | {len(found)} | {adjusted_rand_score(labels[split], found):.2f} "
            f"| {(digit_of[found] == labels[split]).mean():.1%} |"
            for name, split, found in (("clustered", "train", clusters), ("held out", "test", held_out))
        ),
        "",
        "| scale | asked for | judged |",
        "| --- | --- | --- |",
    ]

    judge = DigitsJudge()
    feature_settings, centers = load_clusters(labelled)
    extract = feature_settings.extractor()
    pipe = ClassifierGuidedDDPMPipeline.from_pretrained(
        DIGITS,
        unet=ADMUNet2DModel.from_pretrained(DIGITS, subfolder="unet_unconditional"),
        classifier=NoisyClassifierModel.from_pretrained(classifier_dir),
    )
    grids = {}
    for scale in args.scales:
        # a noise per row of the figure
        seeds = [args.seed + number // args.num_clusters for number in range(args.num_samples)]
        labels_asked = np.arange(args.num_samples) % args.num_clusters
        path = args.output_dir / f"scale_{scale:g}.npz"
        images, asked = draw_cell(path, pipe, labels_asked, seeds, args.batch_size, scale, args.num_inference_steps)
        pictures = [Image.fromarray(image[..., 0]).convert("RGB") for image in images]
        nearest, _ = nearest_centers(extract(pictures), centers)
        judged = judge.predict(images / 255.0)
        rows.append(f"| {scale:g} | {(nearest == asked).mean():.1%} | {(judged == digit_of[asked]).mean():.1%} |")
        grids[scale] = [pictures[first : first + args.num_clusters] for first in range(0, 40, args.num_clusters)]
    table = "\n".join(rows) + "\n"
    (args.output_dir / "table.md").write_text(table)

    examples = [
        [Image.open(folder / "train" / f"{number:04d}.png") for number in column]
        for column in zip(*(np.flatnonzero(clusters == cluster)[:3] for cluster in range(args.num_clusters)))
    ]
    picture = image_grid(
        [*examples, *(row for rows_of_scale in grids.values() for row in rows_of_scale)],
        row_labels=["a few of the", "cluster", ""]
        + [f"scale {scale:g}" if i == 0 else "" for scale in grids for i in range(len(grids[scale]))],
        column_labels=[name.replace("cluster_", "cluster ") for name in names],
        title=f"Real images of {args.num_clusters} clusters found without labels, and images drawn for each; a noise per row",
        tile_size=56,
    )
    picture.save(args.output_dir / "guided.png")
    print(f"{args.num_samples} images per scale, {args.num_inference_steps} DDPM steps.\n\n{table}")
    print(f"Look at {args.output_dir / 'table.md'} and {args.output_dir / 'guided.png'}.")


if __name__ == "__main__":
    os.environ.setdefault("ACCELERATE_USE_CPU", "true")
    run_script(main, UnlabelledSettings, __doc__)
