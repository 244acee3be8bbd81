"""The paper's Table 4 on digits: what the scale of classifier guidance does to fidelity and to diversity.

    python benchmarks/digits_table4.py --output_dir table4

draws the same number of each digit for both unets at every scale, and writes `table.md` and `curve.png`:

    judged    share that an independent judge reads as the digit asked for
    precision, recall, Frechet distance    against the 1,437 real training digits, in the judge's feature space

The samples of a cell stay in `UNET_SCALE.npz` (the reference's layout). A run that was stopped goes on with the cells
that are missing; another setting needs another folder. Two processes may share the work, one with
`--unets conditional`, the other with `--unets unconditional`; a third run without the flag then makes the table.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from digits_judge import DigitsJudge, real_digits
from matplotlib.figure import Figure
from pydantic import NonNegativeInt, PositiveInt

from diffusers_cg import DIGITS, ADMUNet2DModel, ClassifierGuidedDDIMPipeline, ClassifierGuidedDDPMPipeline
from diffusers_cg.errors import InputError
from diffusers_cg.evaluation import feature_statistics, frechet_distance, precision_recall
from diffusers_cg.generation import draw_images
from diffusers_cg.pipelines import ClassifierGuidedPipeline
from diffusers_cg_cli.command import run_script
from diffusers_cg_cli.settings import Settings


PIPELINES = {"ddpm": ClassifierGuidedDDPMPipeline, "ddim": ClassifierGuidedDDIMPipeline}
UNETS = {"conditional": "unet", "unconditional": "unet_unconditional"}
NUM_CLASSES = 10
COLUMNS = ("judged", "precision", "recall", "frechet_distance")


class Table4Settings(Settings):
    model: Path = DIGITS
    """Folder that the digits recipe assembled."""
    scales: list[float] = [0, 1, 3, 10]
    """Columns of the table."""
    unets: list[Literal["conditional", "unconditional"]] = ["conditional", "unconditional"]
    """Rows of the table."""
    num_samples: PositiveInt = 1000
    """Images per cell."""
    sampler: Literal["ddpm", "ddim"] = "ddpm"
    num_inference_steps: PositiveInt = 100
    batch_size: PositiveInt = 100
    """Changes the speed, not the images."""
    seed: NonNegativeInt = 0
    """Image k is drawn from seed + k."""
    output_dir: Path


def check_same_settings(args: Settings, names: Sequence[str]) -> None:
    """Makes the output folder for samples of these settings.

    Raises:
        InputError: if it holds those of others.
    """
    args.output_dir.mkdir(parents=True, exist_ok=True)
    path = args.output_dir / "settings.json"
    settings = args.model_dump(mode="json", include=set(names))
    if path.exists() and json.loads(path.read_text()) != settings:
        raise InputError(f"{args.output_dir} holds samples of other settings ({path}): pass another --output_dir.")
    path.write_text(json.dumps(settings, indent=2) + "\n")


def draw_cell(
    path: Path,
    pipe: ClassifierGuidedPipeline,
    labels: np.ndarray,
    seeds: Iterable[int],
    batch_size: int,
    scale: float,
    num_inference_steps: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 16, 16, 1) uint8, each from its own seed, and the labels (N,) that they were asked for, kept in a file."""
    if path.exists():
        with np.load(path) as cell:
            return cell["arr_0"], cell["arr_1"]
    pipe.set_progress_bar_config(desc=path.stem, leave=False)
    batches = draw_images(
        pipe,
        labels.tolist(),
        (torch.Generator().manual_seed(seed) for seed in seeds),
        batch_size,
        num_inference_steps=num_inference_steps,
        classifier_scale=scale,
        output_type="np",
    )
    images = (np.concatenate(list(batches)) * 255).round().astype(np.uint8)
    partial = path.with_suffix(".partial.npz")
    np.savez_compressed(partial, arr_0=images, arr_1=labels)
    partial.rename(path)
    return images, labels


def measure(judge: DigitsJudge, reference: np.ndarray, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    features = judge.features(images)
    precision, recall = precision_recall(reference, features)
    return {
        "judged": float((judge.predict(images) == labels).mean()),
        "precision": precision,
        "recall": recall,
        "frechet_distance": frechet_distance(*feature_statistics(reference), *feature_statistics(features)),
    }


def main(args: Table4Settings) -> None:
    check_same_settings(args, ("model", "num_samples", "sampler", "num_inference_steps", "seed"))
    judge = DigitsJudge()
    real = real_digits()
    reference = judge.features(real["train"][0])
    asked = np.arange(args.num_samples) % NUM_CLASSES
    cells = {}
    for name in args.unets:
        unet = ADMUNet2DModel.from_pretrained(args.model, subfolder=UNETS[name])
        pipe = PIPELINES[args.sampler].from_pretrained(args.model, unet=unet, solver=None)
        for scale in args.scales:
            path = args.output_dir / f"{name}_{scale:g}.npz"
            seeds = range(args.seed, args.seed + args.num_samples)
            images, labels = draw_cell(path, pipe, asked, seeds, args.batch_size, scale, args.num_inference_steps)
            cells[name, scale] = measure(judge, reference, images / 255.0, labels)
    held_out = measure(judge, reference, *real["test"])

    rows = [
        "| unet | scale | judged | precision | recall | Frechet distance |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    rows += [format_row(unet_name, f"{scale:g}", values) for (unet_name, scale), values in cells.items()]
    rows.append(format_row("real held-out digits", "", held_out))
    table = "\n".join(rows) + "\n"
    (args.output_dir / "table.md").write_text(table)
    plot(cells, args.output_dir / "curve.png", f"{args.sampler.upper()}, {args.num_inference_steps} steps")
    print(f"{args.num_samples} images per row, {args.sampler.upper()}, {args.num_inference_steps} steps.\n\n{table}")
    print(f"Look at {args.output_dir / 'table.md'} and {args.output_dir / 'curve.png'}.")


def format_row(name: str, scale: str, values: dict[str, float]) -> str:
    judged, precision, recall, distance = (values[column] for column in COLUMNS)
    return f"| {name} | {scale} | {judged:.1%} | {precision:.3f} | {recall:.3f} | {distance:.2f} |"


def plot(cells: dict[tuple[str, float], dict[str, float]], path: Path, title: str) -> None:
    """Everything against the scale, and precision against recall along it (the paper's figures 3 and 4)."""
    figure = Figure(figsize=(16, 4), layout="constrained")
    axes = figure.subplots(1, 4)
    for unet_name in dict.fromkeys(name for name, _ in cells):
        scales = [scale for name, scale in cells if name == unet_name]
        columns = {column: [cells[unet_name, scale][column] for scale in scales] for column in COLUMNS}
        axes[0].plot(scales, columns["judged"], marker="o", label=unet_name)
        (line,) = axes[1].plot(scales, columns["precision"], marker="o", label=f"precision, {unet_name}")
        axes[1].plot(
            scales, columns["recall"], marker="s", ls="--", color=line.get_color(), label=f"recall, {unet_name}"
        )
        axes[2].plot(scales, columns["frechet_distance"], marker="o", label=unet_name)
        axes[3].plot(columns["recall"], columns["precision"], marker="o", label=unet_name)
        for scale, recall, precision in zip(scales, columns["recall"], columns["precision"]):
            axes[3].annotate(f"{scale:g}", (recall, precision), textcoords="offset points", xytext=(5, 5))
    for axis, label in zip(axes, ("judged to be the digit asked for", "precision, recall", "Frechet distance")):
        axis.set(xlabel="classifier scale", ylabel=label, xscale="symlog")
        axis.set_xticks(scales, [f"{scale:g}" for scale in scales])
    axes[3].set(xlabel="recall", ylabel="precision")
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    run_script(main, Table4Settings, __doc__)
