"""Which scheduler draws digits in few evaluations of the unet as well as DDPM does in 250, guided and not.

    python benchmarks/digits_few_steps.py

draws from the conditional unet that ships, by every scheduler and number of evaluations, and writes under `benchmarks/`

    results/digits_few_steps.jsonl    a line per cell: scheduler, evaluations, guidance, seed, and what was measured
    results/digits_few_steps.md       the table, with the spread over seeds
    figures/digits_few_steps.png      Frechet distance and judged accuracy against evaluations

in the measures of `digits_table4.py`. A second-order scheduler takes as many steps as fit into the evaluations. *Core
time* is what the images cost one core. Cells whose line is there are not drawn again, so a run that was stopped goes on;
two processes may share the work by the flags that choose cells.
"""

import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import diffusers
import numpy as np
import torch
from diffusers import SchedulerMixin
from digits_judge import DigitsJudge, real_digits
from digits_table4 import COLUMNS, NUM_CLASSES, UNETS, measure
from matplotlib import colormaps
from matplotlib.figure import Figure
from pydantic import NonNegativeInt, PositiveInt
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from tqdm.auto import tqdm

from diffusers_cg import DIGITS, ADMUNet2DModel, ClassifierGuidedDDIMPipeline, ClassifierGuidedDDPMPipeline
from diffusers_cg.diffusion import EDMHeunScheduler
from diffusers_cg.models import DTYPES
from diffusers_cg.pipelines import ClassifierGuidedPipeline
from diffusers_cg_cli.command import run_script
from diffusers_cg_cli.settings import Settings


NUM_SAMPLES = 1000
FOLDER = Path(__file__).parent


# ----------------------------------------------------------------------------------------------------------- schedulers


def first_order(num_evaluations: int) -> int:
    return num_evaluations


def second_order(num_evaluations: int) -> int:
    """Two evaluations a step, but one at the last."""
    return (num_evaluations + 1) // 2


def pseudo_linear(num_evaluations: int) -> int:
    """PNDM looks twice at its second step."""
    return num_evaluations - 1


def edm_churn(num_evaluations: int) -> dict[str, float]:
    """As for ImageNet 64x64, with the same part of noise added in each step."""
    return {"sigma_max": 80.0, "s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.003, "s_churn": 0.15 * num_evaluations / 2}


@dataclass(frozen=True)
class Solver:
    """A scheduler as it is compared: its class, the changes to the pipeline's own schedule, and how it counts steps.

    Args:
        kind (`str`): A class of diffusers or `EDMHeunScheduler`.
        changes (`dict` or callable): Of the config; of the number of evaluations, where they depend on it.
        steps (callable): Number of evaluations -> number of steps.
    """

    kind: str
    changes: dict[str, Any] | Callable[[int], dict[str, Any]] | None = None
    steps: Callable[[int], int] = first_order

    def scheduler(self, config: dict[str, Any], num_evaluations: int) -> SchedulerMixin:
        kind = EDMHeunScheduler if self.kind == "EDMHeunScheduler" else getattr(diffusers, self.kind)
        changes = self.changes(num_evaluations) if callable(self.changes) else self.changes or {}
        return kind.from_config(config, **changes)


SOLVERS = {
    "DDIM": Solver("DDIMScheduler"),
    "DPM-Solver++ 2M": Solver("DPMSolverMultistepScheduler"),
    "DPM-Solver++ 3M": Solver("DPMSolverMultistepScheduler", {"solver_order": 3}),
    "DPM-Solver++ 2M SDE": Solver("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "DPM-Solver++ singlestep": Solver("DPMSolverSinglestepScheduler"),
    "UniPC": Solver("UniPCMultistepScheduler"),
    "UniPC, linspace": Solver("UniPCMultistepScheduler", {"timestep_spacing": "linspace"}),
    "DEIS": Solver("DEISMultistepScheduler"),
    "PNDM": Solver("PNDMScheduler", {"skip_prk_steps": True}, pseudo_linear),
    "Euler": Solver("EulerDiscreteScheduler"),
    "Euler ancestral": Solver("EulerAncestralDiscreteScheduler"),
    "Heun": Solver("HeunDiscreteScheduler", steps=second_order),
    "LMS": Solver("LMSDiscreteScheduler"),
    "DPM2": Solver("KDPM2DiscreteScheduler", steps=second_order),
    "EDM Heun": Solver("EDMHeunScheduler", {"sigma_max": 80.0}, second_order),
    "EDM Heun, churn": Solver("EDMHeunScheduler", edm_churn, second_order),
}
EVALUATIONS = (10, 8, 5, 15, 20, 25)
PAPER = (("DDPM", 250), ("DDPM", 100), ("DDIM", 25))
GUIDANCE = {"none": 0.0, "scale 1": 1.0, "scale 0.5": 0.5}
PLOTTED = ("none", "scale 1")
PRODUCTS = [
    operator.default
    for operator in (
        torch.ops.aten.convolution,
        torch.ops.aten.convolution_backward,
        torch.ops.aten.mm,
        torch.ops.aten.addmm,
        torch.ops.aten.bmm,
    )
]


# ----------------------------------------------------------------------------------------------------------------- cells


@dataclass(frozen=True)
class Cell:
    """What one set of images is drawn with.

    Args:
        unet (`str`): `"conditional"` or `"unconditional"`.
        guidance (`str`): Its name in a table.
        solver (`str`): `"DDPM"` or one of [`SOLVERS`].
        num_evaluations (`int`): Of the unet, at most.
        seed (`int`): Image k follows from seed x 1,000 + k.
    """

    unet: str
    guidance: str
    solver: str
    num_evaluations: int
    seed: int


def load_pipe(
    unet: str, solver: str, num_evaluations: int, dtype: torch.dtype = torch.float32
) -> tuple[ClassifierGuidedPipeline, int]:
    """The pipeline that draws a cell, its networks in `dtype`, and its number of steps."""
    of_ddpm = solver == "DDPM"
    unet = ADMUNet2DModel.from_pretrained(DIGITS, subfolder=UNETS[unet], dtype=dtype)
    pipe = (ClassifierGuidedDDPMPipeline if of_ddpm else ClassifierGuidedDDIMPipeline).from_pretrained(
        DIGITS, unet=unet, solver=None, dtype=dtype
    )
    if of_ddpm:
        return pipe, num_evaluations
    pipe.scheduler = SOLVERS[solver].scheduler(pipe.scheduler.config, num_evaluations)
    return pipe, SOLVERS[solver].steps(num_evaluations)


class ProductsInFloat32(TorchDispatchMode):
    """Convolutions and matrix products of half-precision numbers, summed in float32 and rounded once, as kernels that have
    such instructions do; those of CPUs without are several times as slow.
    """

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function not in PRODUCTS:
            return function(*args, **(kwargs or {}))
        dtype = args[0].dtype
        args, kwargs = tree_map_only(torch.Tensor, torch.Tensor.float, (args, kwargs or {}))
        return tree_map_only(torch.Tensor, lambda result: result.to(dtype), function(*args, **kwargs))


class Results:
    """What was measured of cells, a JSON line each, and the measuring of others.

    Args:
        path (`Path`): The file, which grows.
        batch_size (`int`): Changes the speed, not the images.
        dtype (`torch.dtype`): Of the networks; in another than float32 they draw with [`ProductsInFloat32`].
    """

    def __init__(self, path: Path, batch_size: int, dtype: torch.dtype = torch.float32):
        self.path, self.batch_size, self.dtype = path, batch_size, dtype
        self.judge = DigitsJudge()
        self.reference = self.judge.features(real_digits()["train"][0])

    def lines(self) -> Iterator[dict[str, Any]]:
        if self.path.exists():
            yield from map(json.loads, self.path.read_text().splitlines())

    def measured(self) -> dict[Cell, dict[str, Any]]:
        names = Cell.__dataclass_fields__
        return {Cell(**{name: line[name] for name in names}): line for line in self.lines()}

    def measure(self, cells: Iterable[Cell], call: Callable[[Cell, ClassifierGuidedPipeline], dict[str, Any]]) -> None:
        """Draws and measures the cells that are missing; `call` gives what each of a cell's calls is given."""
        for cell in tqdm(list(dict.fromkeys(cells)), desc="cells"):
            if cell in self.measured():  # by now: another process may work on the same file
                continue
            pipe, num_steps = load_pipe(cell.unet, cell.solver, cell.num_evaluations, self.dtype)
            pipe.set_progress_bar_config(desc=f"{cell.solver}, {cell.num_evaluations}, {cell.guidance}", leave=False)
            with nullcontext() if self.dtype == torch.float32 else ProductsInFloat32():
                line = asdict(cell) | self.draw(pipe, cell.seed, num_inference_steps=num_steps, **call(cell, pipe))
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a") as file:
                file.write(json.dumps(line) + "\n")

    def draw(self, pipe: ClassifierGuidedPipeline, seed: int, **call: Any) -> dict[str, Any]:
        """The measures of 1,000 images, what each of them cost, and the core time of all."""
        labels = np.arange(NUM_SAMPLES) % NUM_CLASSES
        started = time.process_time()
        images = []
        for first in range(0, NUM_SAMPLES, self.batch_size):
            numbers = range(first, min(first + self.batch_size, NUM_SAMPLES))
            output = pipe(
                class_labels=labels[numbers].tolist(),
                generator=[torch.Generator().manual_seed(seed * NUM_SAMPLES + number) for number in numbers],
                output_type="np",
                **call,
            )
            images.append(output.images)
        seconds = time.process_time() - started
        measures = measure(self.judge, self.reference, np.concatenate(images), labels)
        return {**measures, "evaluations": output.evaluations, "core_seconds": round(seconds, 1)}


# ------------------------------------------------------------------------------------------------------------- tables


def spread(values: Sequence[float], form: str) -> str:
    """The mean and, of several, the smallest and the largest."""
    mean = format(float(np.mean(values)), form)
    return f"{mean} ({format(min(values), form)} to {format(max(values), form)})" if len(values) > 1 else mean


def by_seeds(measured: dict[Cell, dict[str, Any]]) -> dict[tuple, list[dict[str, Any]]]:
    """The lines of all seeds by (unet, guidance, solver, evaluations)."""
    grouped = {}
    for cell, line in measured.items():
        grouped.setdefault((cell.unet, cell.guidance, cell.solver, cell.num_evaluations), []).append(line)
    return grouped


def table_row(names: Sequence[str], lines: Sequence[dict[str, Any]]) -> str:
    cost = lines[0]["evaluations"]
    cells = [
        *names,
        *(str(cost.get(name, 0)) for name in ("unet", "classifier", "backward")),
        *(spread([line[name] for line in lines], form) for name, form in zip(COLUMNS, (".1%", ".3f", ".3f", ".3f"))),
        f"{np.mean([line['core_seconds'] for line in lines]):.0f} s",
        str(len(lines)),
    ]
    return f"| {' | '.join(cells)} |"


def table_head(names: Sequence[str]) -> list[str]:
    columns = [
        *names,
        "unet",
        "classifier",
        "backward",
        "judged",
        "precision",
        "recall",
        "Frechet distance",
        "core time",
        "seeds",
    ]
    return [f"| {' | '.join(columns)} |", f"| {' | '.join('---' for _ in columns)} |"]


def within_spread(lines: Sequence[dict[str, Any]], paper: Sequence[dict[str, Any]]) -> bool:
    """Whether the means of a scheduler are no worse than the worst seed of DDPM, in Frechet distance and in accuracy."""
    distance, judged = (np.mean([line[name] for line in lines]) for name in ("frechet_distance", "judged"))
    return bool(
        distance <= max(line["frechet_distance"] for line in paper) and judged >= min(line["judged"] for line in paper)
    )


# ------------------------------------------------------------------------------------------------------------ the command


class TableSettings(Settings):
    seeds: list[NonNegativeInt] = [0, 1, 2]
    batch_size: PositiveInt = 250
    """Changes the speed, not the images."""
    output_dir: Path = FOLDER
    """Folder of `results` and `figures`."""

    def results(self, name: str, dtype: torch.dtype = torch.float32) -> Results:
        """Those of the table of this name; this process computes on one core from here on."""
        torch.set_num_threads(1)
        return Results(self.output_dir / "results" / f"{name}.jsonl", self.batch_size, dtype)


class FewStepsSettings(TableSettings):
    solvers: list[Literal[tuple(SOLVERS)]] = list(SOLVERS)
    """Rows of the table."""
    evaluations: list[PositiveInt] = list(EVALUATIONS)
    """Of the unet."""
    guidance: list[Literal[tuple(GUIDANCE)]] = ["scale 1", "none"]
    """Scale of the classifier that ships."""
    paper: bool = True
    """Whether DDPM of 250 and 100 steps is drawn, too, which takes the most time by far."""
    dtype: Literal[tuple(DTYPES)] = "fp32"
    """Of the networks. The files of another than fp32 bear its name."""


def main(args: FewStepsSettings) -> None:
    name = "digits_few_steps" if args.dtype == "fp32" else f"digits_few_steps_{args.dtype}"
    results = args.results(name, DTYPES[args.dtype])
    of_solvers = itertools.product(args.seeds, args.evaluations, args.solvers, args.guidance)
    of_paper = itertools.product(args.seeds, PAPER if args.paper else (), args.guidance)
    cells = [
        *(Cell("conditional", guidance, solver, number, seed) for seed, number, solver, guidance in of_solvers),
        *(Cell("conditional", guidance, solver, number, seed) for seed, (solver, number), guidance in of_paper),
    ]
    results.measure(cells, lambda cell, pipe: {"classifier_scale": GUIDANCE[cell.guidance]})

    grouped = by_seeds(results.measured())
    rows = table_head(["guidance", "solver"])
    for guidance, solver in itertools.product(GUIDANCE, ("DDPM", *SOLVERS)):
        for key in sorted(key for key in grouped if key[1:3] == (guidance, solver)):
            rows.append(table_row([guidance, solver], grouped[key]))
    table = "\n".join(rows) + "\n"
    (results.path.with_suffix(".md")).write_text(table)
    print(f"{NUM_SAMPLES} images a seed.\n\n{table}")
    for guidance in PLOTTED:
        paper = grouped.get(("conditional", guidance, "DDPM", 250))
        if not paper:
            print(f"Guidance {guidance}: DDPM 250 is not drawn yet.")
            continue
        reached = [
            f"{solver} {number}"
            for (_, of_row, solver, number), lines in grouped.items()
            if of_row == guidance and number <= 10 and within_spread(lines, paper)
        ]
        print(f"Guidance {guidance}, no worse than DDPM 250 within its spread, at 10 evaluations or fewer: {reached}.")
    figure = args.output_dir / "figures" / f"{name}.png"
    plot(grouped, figure)
    print(f"Look at {results.path.with_suffix('.md')} and {figure}.")


def plot(grouped: dict[tuple, list[dict[str, Any]]], path: Path) -> None:
    """Frechet distance and judged accuracy against evaluations of the unet, without and with guidance; what is far worse is cut."""
    figure = Figure(figsize=(16, 9), layout="constrained")
    axes = figure.subplots(2, len(PLOTTED), sharex=True, sharey="row")
    for (column, guidance), (row, name) in itertools.product(
        enumerate(PLOTTED), enumerate(("frechet_distance", "judged"))
    ):
        axis = axes[row, column]
        for solver, color, marker in zip(SOLVERS, colormaps["tab20"].colors, itertools.cycle("os^vD")):
            points = sorted(
                (lines[0]["evaluations"]["unet"], [line[name] for line in lines])
                for (_, of_row, of_solver, _), lines in grouped.items()
                if (of_row, of_solver) == (guidance, solver)
            )
            if points:
                numbers, values = zip(*points)
                means = np.array([np.mean(each) for each in values])
                errors = [means - [min(each) for each in values], [max(each) for each in values] - means]
                axis.errorbar(numbers, means, errors, color=color, marker=marker, ms=5, capsize=3, label=solver)
        for number, gray in ((250, "0.2"), (100, "0.6")):
            lines = grouped.get(("conditional", guidance, "DDPM", number))
            if lines:
                values = [line[name] for line in lines]
                axis.axhline(np.mean(values), color=gray, lw=1, label=f"DDPM {number}")
                axis.axhspan(min(values), max(values), color=gray, alpha=0.2)
        axis.grid(alpha=0.3, which="both")
        axis.set(xlim=(4, 26))
    for column, guidance in enumerate(PLOTTED):
        axes[0, column].set(title=f"guidance: {guidance}")
        axes[1, column].set(xlabel="evaluations of the unet")
    axes[0, 0].set(ylabel="Frechet distance", yscale="log", ylim=(0.04, 1))
    axes[1, 0].set(ylabel="judged right", ylim=(0.95, 1.001))
    handles = dict(zip(*reversed(axes[0, -1].get_legend_handles_labels())))
    figure.legend(handles.values(), handles.keys(), loc="outside right center")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=70)


if __name__ == "__main__":
    run_script(main, FewStepsSettings, __doc__)
