"""The trade-off between fidelity and diversity, scale by scale (the paper's figures 3 and 4), of whatever draws images."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from diffusers_cg.data import Source
from diffusers_cg.data.files import atomic_update
from diffusers_cg.data.grids import image_grid
from diffusers_cg.data.text import in_markdown
from diffusers_cg.errors import InputError, import_extra
from diffusers_cg.evaluation.comparison import check_makers, evaluate
from diffusers_cg.evaluation.features import (
    MIN_IMAGES,
    AnyExtractor,
    FeatureExtractor,
    MeasuredSet,
    as_extractor,
    measure,
)
from diffusers_cg.evaluation.metrics import METRICS, Metric, metric_names
from diffusers_cg.evaluation.report import REPORT_FILE, Evaluation


SWEEP_FILE, TABLE_FILE = "sweep.json", "table.md"
BY_SCALE_FILE, TRADE_OFF_FILE = "by_scale.png", "trade_off.png"
PASSES = {"unet": "Unet passes", "classifier": "Classifier passes", "backward": "Backward passes"}  # of one image
NUM_SHOWN = 10  # images of each cell in the picture of its curve


@dataclass(frozen=True)
class Cell:
    """What one set of samples is drawn with. Cells of the same steps lie on one curve.

    Args:
        sampler (`str`): `"ddpm"` or `"ddim"`, Algorithm 1 or 2, or the name of a scheduler.
        num_inference_steps (`int`): How many.
        scale (`float`): Of the guidance.
    """

    sampler: str
    num_inference_steps: int
    scale: float

    @property
    def curve(self) -> str:
        name = self.sampler.upper() if self.sampler in ("ddpm", "ddim") else self.sampler.removesuffix("Scheduler")
        return f"{name} {self.num_inference_steps}"

    @property
    def folder(self) -> Path:
        return Path(f"{self.sampler}_{self.num_inference_steps}") / f"scale_{self.scale:g}"


@dataclass(frozen=True)
class Point:
    """A point of a curve: what was measured of a cell's samples.

    Args:
        cell ([`Cell`]): What they were drawn with.
        metrics (`dict`): As in [`Evaluation`].
        evaluations (`dict`): What one of its images cost: passes of `"unet"`, `"classifier"`, `"backward"`; empty where that
            is not known.
    """

    cell: Cell
    metrics: dict[str, float | None]
    evaluations: dict[str, int] = field(default_factory=dict)


def sweep_to_folder(
    output_dir: str | Path,
    draw: Callable[[Cell, Path], tuple[Source, Sequence[Image.Image | np.ndarray], dict[str, int]]],
    cells: Sequence[Cell],
    num_samples: int,
    reference: Source | MeasuredSet,
    extractor: AnyExtractor,
    batch_size: int = 64,
    cache_dir: str | Path | None = None,
    metrics: Sequence[Metric] = METRICS,
    is_main_process: bool = True,
) -> list[Point]:
    """Measures what `draw` draws in every cell, and plots the points as curves.

    Leaves in the folder, of every cell, `SAMPLER_STEPS/scale_SCALE/` with `report.json` and `report.md`; `table.md` and
    `sweep.json`; `by_scale.png`, every metric against the scale; `trade_off.png`, precision against recall and the
    Frechet distance against the Inception Score; and for each curve `SAMPLER_STEPS.png`, a row of the same images for
    each scale. Reports of an earlier call are kept as long as they are of as many images, the same reference, extractor
    and metrics.

    Args:
        output_dir (`str` or `Path`): New, or of an earlier call.
        draw (callable): Draws the samples of a [`Cell`], whose folder it gets to keep them in, from the same noise in all
            cells, or finds those that are there. Returns them as [`open_set`] takes them, the first few as images to
            look at, and the evaluations of a [`Point`].
        cells (sequence of [`Cell`]): Each once, curve by curve.
        num_samples (`int`): How many images `draw` gives, at least 4.
        reference ([`MeasuredSet`], or as for [`open_set`]): Real images, or statistics of their features.
        extractor ([`FeatureExtractor`] or a function): What makes the features.
        batch_size (`int`): Images that the extractor gets at once, at least 1.
        cache_dir (`str` or `Path`, *optional*): Keeps the features of the reference, as for [`measure`].
        metrics (sequence of [`Metric`]): What to compute.
        is_main_process (`bool`): False where this process only helps another to draw: it measures nothing then.

    Returns:
        list of [`Point`]: In the order of the cells; on the main process, and nothing on others.

    Raises:
        InputError: with one sentence, before anything is drawn where that can be told.
        MissingExtraError: if matplotlib is not installed.
    """
    if not cells or len(set(cells)) < len(cells):
        raise InputError(f"`cells` must be at least one, each once, got {list(cells)}.")
    if num_samples < MIN_IMAGES:
        raise InputError(f"`num_samples` must be at least {MIN_IMAGES} for metrics, got {num_samples}.")
    import_extra("matplotlib.figure", "eval")  # before hours of work, not after
    extractor = as_extractor(extractor)

    if is_main_process and not isinstance(reference, MeasuredSet):
        reference = measure(reference, extractor, batch_size, cache_dir, progress_bar=True)
    if is_main_process and reference.extractor is not None:
        check_makers((extractor.name, extractor.hash), (reference.extractor, reference.extractor_hash))
    points, rows = [], {}
    for cell in cells:
        directory = Path(output_dir) / cell.folder
        samples, shown, evaluations = draw(cell, directory)
        if is_main_process:
            rows[cell] = shown[:NUM_SHOWN]
            of_cell = measure_cell(directory, samples, num_samples, reference, extractor, batch_size, metrics)
            points.append(Point(cell, of_cell, evaluations))
    if is_main_process:
        names = metric_names(extractor.name, metrics)
        with atomic_update(output_dir) as directory:
            (directory / SWEEP_FILE).write_text(to_json(points))
            (directory / TABLE_FILE).write_text(to_markdown(points, names))
            plot_by_scale(points, names, directory / BY_SCALE_FILE)
            plot_trade_off(points, names, directory / TRADE_OFF_FILE)
            for curve in dict.fromkeys(cell.curve for cell in cells):
                own = [cell for cell in cells if cell.curve == curve]
                labels = [f"scale {cell.scale:g}" for cell in own]
                grid = image_grid([rows[cell] for cell in own], row_labels=labels, title=curve)
                grid.save(directory / f"{own[0].folder.parent}.png")
    return points


def measure_cell(
    directory: Path,
    samples: Source,
    num_samples: int,
    reference: MeasuredSet,
    extractor: FeatureExtractor,
    batch_size: int,
    metrics: Sequence[Metric],
) -> dict[str, float | None]:
    """The metrics of one cell, kept in its report as long as that is of the same; see [`sweep_to_folder`]."""
    wanted = {
        "reference": asdict(reference.facts),
        "extractor": extractor.name,
        "extractor_hash": extractor.hash,
    }
    file = directory / REPORT_FILE
    if file.is_file():
        report = asdict(Evaluation.load(directory))
        is_of_these = report["samples"]["num_images"] == num_samples and wanted.items() <= report.items()
        if is_of_these and report["metrics"].keys() == {metric.key for metric in metrics}:
            return report["metrics"]
    evaluation = evaluate(samples, reference, extractor, batch_size, progress_bar=True, metrics=metrics)
    with atomic_update(directory) as partial:
        evaluation.save(partial)
    return evaluation.metrics


# ------------------------------------------------------------------------------------------------------------ for people


def to_json(points: Sequence[Point]) -> str:
    rows = [
        {
            "sampler": {"name": point.cell.sampler, "num_inference_steps": point.cell.num_inference_steps},
            "scale": point.cell.scale,
            "evaluations": point.evaluations,
            "metrics": point.metrics,
        }
        for point in points
    ]
    return json.dumps(rows, indent=2) + "\n"


def to_markdown(points: Sequence[Point], names: dict[str, str]) -> str:
    """A row for each point."""
    present = [name for name in names if any(point.metrics[name] is not None for point in points)]
    passes = [name for name in PASSES if any(point.evaluations for point in points)]
    rows = [
        ["sampler", "scale", *(in_markdown(names[name]) for name in present), *(PASSES[name] for name in passes)],
        ["---"] * (2 + len(present) + len(passes)),
        *(
            [
                point.cell.curve,
                f"{point.cell.scale:g}",
                *(f"{point.metrics[name]:.3f}" for name in present),
                *(str(point.evaluations.get(name, 0)) if point.evaluations else "" for name in passes),
            ]
            for point in points
        ),
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def curves(points: Sequence[Point], *metrics: str) -> dict[str, tuple[list[float], ...]]:
    """Scales and metrics of every curve that has all of them."""
    drawn = {}
    for curve in dict.fromkeys(point.cell.curve for point in points):
        own = sorted((point for point in points if point.cell.curve == curve), key=lambda point: point.cell.scale)
        columns = [
            [point.cell.scale for point in own],
            *([point.metrics.get(key) for point in own] for key in metrics),
        ]
        if all(value is not None for column in columns for value in column):
            drawn[curve] = tuple(columns)
    return drawn


def plot_by_scale(points: Sequence[Point], names: dict[str, str], path: Path) -> None:
    """Every metric against the scale (figure 3 of the paper)."""
    present = [name for name in names if curves(points, name)]
    figure = import_extra("matplotlib.figure", "eval").Figure(figsize=(4 * len(present), 3.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(present), squeeze=False)[0], present):
        for label, (scales, values) in curves(points, name).items():
            axes.plot(scales, values, marker="o", label=label)
        ticks = sorted({point.cell.scale for point in points})
        axes.set(title=names[name], xlabel="scale", xscale="symlog")
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
