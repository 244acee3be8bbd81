"""The trade-off between fidelity and diversity, scale by scale (the paper's figures 3 and 4): `diffusers-cg sweep`."""

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from diffusers_cg.data import Source, open_images
from diffusers_cg.data.files import atomic_update
from diffusers_cg.data.grids import image_grid
from diffusers_cg.errors import InputError, import_extra
from diffusers_cg.evaluation import FeatureExtractor, MeasuredSet, evaluate, measure
from diffusers_cg.evaluation.measured_set import MIN_IMAGES
from diffusers_cg.evaluation.report import REPORT_FILE, metric_names
from diffusers_cg.generation import Stage, sample_to_folder, start_processes
from diffusers_cg.generation.folder import BESIDE_SAMPLES
from diffusers_cg.generation.requests import check_classes


SWEEP_FILE, TABLE_FILE = "sweep.json", "table.md"
BY_SCALE_FILE, TRADE_OFF_FILE = "by_scale.png", "trade_off.png"
GRID_COLUMNS = 10


@dataclass(frozen=True)
class Sampler:
    """A way to take the steps.

    Args:
        name (`"ddpm"` or `"ddim"`): Algorithm 1 or 2.
        num_inference_steps (`int`): How many.
    """

    name: Literal["ddpm", "ddim"]
    num_inference_steps: int

    def __str__(self) -> str:
        return f"{self.name.upper()} {self.num_inference_steps}"


@dataclass(frozen=True)
class Point:
    """A point of the curve: what was measured of one sampler at one scale.

    Args:
        sampler (`Sampler`), scale (`float`): What the samples were drawn with.
        metrics (`dict`): As in [`Evaluation`].
    """

    sampler: Sampler
    scale: float
    metrics: dict[str, float | None]


def sweep_to_folder(
    output_dir: str | Path,
    model: str,
    reference: Source | MeasuredSet,
    extractor: FeatureExtractor,
    scales: Sequence[float],
    samplers: Sequence[Sampler],
    num_samples: int,
    classes: Sequence[int] | None = None,
    random_classes: bool = False,
    seed: int = 0,
    batch_size: int = 8,
    evaluation_batch_size: int = 64,
    cache_dir: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | None = None,
) -> list[Point]:
    """Draws as many samples with every sampler at every scale, from the same noise, and measures them.

    Leaves in the folder `SAMPLER_STEPS/scale_SCALE/` with `samples/` and their `report.json`; `table.md`, `sweep.json`;
    `by_scale.png`, every metric against the scale; `trade_off.png`, precision against recall and the Frechet distance
    against the Inception Score; and for each sampler `SAMPLER_STEPS.png`, a row of the same images for each scale.

    A call that was stopped goes on, as does one with more scales, samplers or samples. Several processes share the
    drawing; the main one measures.

    Args:
        output_dir (`str` or `Path`): New, or of an earlier call with the same model, classes and seed.
        model (`str`): Folder or Hub name of a pipeline that draws from noise.
        reference ([`MeasuredSet`], or as for [`open_set`]): Real images, or statistics of their features.
        extractor ([`FeatureExtractor`]): What makes the features.
        scales (sequence of `float`): Each once.
        samplers (sequence of [`Sampler`]): Each once.
        num_samples, classes, random_classes, seed, batch_size, dtype, device: As for [`sample_to_folder`].
        evaluation_batch_size (`int`): Images that the extractor gets at once, at least 1.
        cache_dir (`str` or `Path`, *optional*): Keeps the features of the reference, as for [`measure`].

    Returns:
        list of [`Point`]: By sampler, then by scale; on the main process, and nothing on others.

    Raises:
        ValueError, TypeError, NotADirectoryError: with one sentence, before anything is computed where that can be told.
        MissingExtraError: if matplotlib is not installed.
    """
    for name, values in (("scales", scales), ("samplers", samplers)):
        if not values or len(set(values)) < len(values):
            raise InputError(f"`{name}` must name at least one, each once, got {', '.join(map(str, values))}.")
    if num_samples < MIN_IMAGES:
        raise InputError(f"`num_samples` must be at least {MIN_IMAGES} for metrics, got {num_samples}.")
    import_extra("matplotlib.figure", "eval")  # before hours of work, not after
    stages = {
        (sampler, scale): Stage(model, sampler.name, sampler.num_inference_steps, scale, dtype)
        for sampler in samplers
        for scale in scales
    }
    classes = resolve_classes(stages.values(), classes)

    output_dir, processes = Path(output_dir), start_processes()
    if processes.is_main_process and not isinstance(reference, MeasuredSet):
        reference = measure(reference, extractor, evaluation_batch_size, cache_dir, progress_bar=True)
    points = []
    for (sampler, scale), stage in stages.items():
        directory = cell_directory(output_dir, sampler, scale)
        sample_to_folder(
            directory / "samples",
            stage,
            num_samples=num_samples,
            classes=classes,
            random_classes=random_classes,
            seed=seed,
            batch_size=batch_size,
            device=device,
        )
        if processes.is_main_process:
            metrics = measure_cell(directory, reference, extractor, num_samples, evaluation_batch_size)
            points.append(Point(sampler, scale, metrics))
    if processes.is_main_process:
        names = metric_names(extractor.name)
        with atomic_update(output_dir) as directory:
            (directory / SWEEP_FILE).write_text(json.dumps([asdict(point) for point in points], indent=2) + "\n")
            (directory / TABLE_FILE).write_text(to_markdown(points, names))
            plot_by_scale(points, names, directory / BY_SCALE_FILE)
            plot_trade_off(points, names, directory / TRADE_OFF_FILE)
            for sampler in samplers:
                cells = [cell_directory(output_dir, sampler, scale) for scale in scales]
                make_grid(cells, scales, str(sampler)).save(directory / f"{cells[0].parent.name}.png")
    return points


def resolve_classes(stages: Collection[Stage], classes: Sequence[int] | None) -> Sequence[int] | None:
    """The classes of all stages: those that any of them needs, so that all draw the same images.

    Raises:
        ValueError, TypeError: where sampling from one of the stages would.
    """
    if classes is not None:
        check_classes(classes)
    one_of_each = {stage.sampler: stage for stage in stages}
    pipes = {sampler: stage.load_base() for sampler, stage in one_of_each.items()}
    needed = [stage.needed_classes(pipes[stage.sampler]) for stage in stages]
    classes = classes or next((some for some in needed if some is not None), None)
    for stage in stages:
        stage.check(pipes[stage.sampler], classes)
    return classes


def cell_directory(output_dir: Path, sampler: Sampler, scale: float) -> Path:
    return output_dir / f"{sampler.name}_{sampler.num_inference_steps}" / f"scale_{scale:g}"


def measure_cell(
    directory: Path, reference: MeasuredSet, extractor: FeatureExtractor, num_samples: int, batch_size: int
) -> dict[str, float | None]:
    """The metrics of one cell, kept in its report as long as that is of the same images, reference and extractor."""
    wanted = {
        "reference": asdict(reference.facts),
        "extractor": extractor.name,
        "extractor_hash": extractor.hash,
    }
    file = directory / REPORT_FILE
    if file.is_file():
        report = json.loads(file.read_text())
        if report["samples"]["num_images"] == num_samples and wanted.items() <= report.items():
            return report["metrics"]
    samples = open_images(directory / "samples", leave_out=BESIDE_SAMPLES, progress_bar=True)
    evaluation = evaluate(samples, reference, extractor, batch_size, progress_bar=True)
    with atomic_update(directory) as partial:
        evaluation.save(partial)
    return evaluation.metrics


# ------------------------------------------------------------------------------------------------------------ for people


def to_markdown(points: Sequence[Point], names: dict[str, str]) -> str:
    """A row for each point."""
    present = [name for name in names if any(point.metrics[name] is not None for point in points)]
    rows = [
        ["sampler", "scale", *(names[name] for name in present)],
        ["---"] * (2 + len(present)),
        *(
            [str(point.sampler), f"{point.scale:g}", *(f"{point.metrics[name]:.3f}" for name in present)]
            for point in points
        ),
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def curves(points: Sequence[Point], *metrics: str) -> dict[str, tuple[list[float], ...]]:
    """Scales and metrics of every sampler that has all of them."""
    drawn = {}
    for sampler in dict.fromkeys(point.sampler for point in points):
        own = sorted((point for point in points if point.sampler == sampler), key=lambda point: point.scale)
        columns = [[point.scale for point in own], *([point.metrics[name] for point in own] for name in metrics)]
        if all(value is not None for column in columns for value in column):
            drawn[str(sampler)] = tuple(columns)
    return drawn


def plot_by_scale(points: Sequence[Point], names: dict[str, str], path: Path) -> None:
    """Every metric against the scale (figure 3 of the paper)."""
    present = [name for name in names if curves(points, name)]
    figure = import_extra("matplotlib.figure", "eval").Figure(figsize=(4 * len(present), 3.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(present), squeeze=False)[0], present):
        for label, (scales, values) in curves(points, name).items():
            axes.plot(scales, values, marker="o", label=label)
        ticks = sorted({point.scale for point in points})
        axes.set(title=names[name], xlabel="classifier scale", xscale="symlog")
        axes.set_xticks(ticks, [f"{scale:g}" for scale in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=110)


def plot_trade_off(points: Sequence[Point], names: dict[str, str], path: Path) -> None:
    """Precision against recall, and the Frechet distance against the Inception Score (figure 4 of the paper)."""
    pairs = [pair for pair in (("recall", "precision"), ("inception_score", "fid")) if curves(points, *pair)]
    figure = import_extra("matplotlib.figure", "eval").Figure(
        figsize=(5 * max(1, len(pairs)), 4), layout="constrained"
    )
    for axes, (x, y) in zip(figure.subplots(1, max(1, len(pairs)), squeeze=False)[0], pairs):
        for label, (scales, xs, ys) in curves(points, x, y).items():
            axes.plot(xs, ys, marker="o", label=label)
            for scale, position in zip(scales, zip(xs, ys)):
                axes.annotate(f"{scale:g}", position, textcoords="offset points", xytext=(5, 5))
        axes.set(xlabel=names[x], ylabel=names[y])
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=110)


def make_grid(cells: Sequence[Path], scales: Sequence[float], title: str) -> Image.Image:
    """The same few images at every scale, a row each: the first of every class, then the second, and so on."""
    rows = []
    for cell in cells:
        files = [Path(image.name) for image in open_images(cell / "samples", leave_out=BESIDE_SAMPLES)]
        files = sorted(files, key=lambda file: (file.name, len(file.parent.name), file.parent))
        rows.append([np.asarray(Image.open(file)) for file in files[:GRID_COLUMNS]])
    return image_grid(rows, row_labels=[f"scale {scale:g}" for scale in scales], title=title)
