"""What guidance costs and gains on digits: in part of the steps, by a clean classifier, with an entropy-driven scale.

    python benchmarks/digits_guidance.py

guides the unconditional unet that ships in 10 steps of DPM-Solver++ and writes under `benchmarks/`

    results/digits_guidance.jsonl    a line per cell: guidance, seed, and what was measured
    results/digits_guidance.md       the table, with the spread over seeds
    figures/digits_guidance.png      precision, Frechet distance and accuracy against recall, by scale

in the measures of `digits_table4.py`. The noisy classifier is the one that ships. The clean one is a small ResNet of
`transformers` that is trained here, in seconds, on the 1,437 training digits without noise. Cells whose line is there are
not drawn again, so a run that was stopped goes on.
"""

import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from digits_few_steps import NUM_SAMPLES, Cell, TableSettings, by_seeds, table_head, table_row
from digits_judge import RESOLUTION, real_digits
from digits_table4 import COLUMNS, NUM_CLASSES
from matplotlib.figure import Figure
from torch.nn import functional as F
from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor

from diffusers_cg.guidance import ClassifierGuidance, CleanClassifierGuidance, Guidance, image_classifier
from diffusers_cg.pipelines import ClassifierGuidedPipeline
from diffusers_cg_cli.command import run_script


SOLVER, NUM_EVALUATIONS = "DPM-Solver++ 2M", 10


# ------------------------------------------------------------------------------------------------------ clean classifier


@functools.cache
def clean_classifier() -> Callable[[torch.Tensor], torch.Tensor]:
    """A ResNet of 79,000 parameters, trained on digits without noise, moved by a pixel at most, and averages of two."""
    torch.manual_seed(0)
    model = make_resnet()
    train_on_clean_digits(model, lambda images: model(images).logits, num_steps=450, learning_rate=6e-3)
    processor = ViTImageProcessor(size={"height": RESOLUTION, "width": RESOLUTION}, image_mean=[0.5], image_std=[0.5])
    classify = image_classifier(model, processor)
    images, labels = as_tensors("test")
    with torch.no_grad():
        accuracy = (classify(images).argmax(dim=1) == labels).float().mean()
    print(f"The clean classifier reads {accuracy:.1%} of the held-out digits right.")
    return classify


def make_resnet() -> ResNetForImageClassification:
    config = ResNetConfig(
        num_channels=1,
        embedding_size=32,
        hidden_sizes=[32, 64],
        depths=[1, 1],
        layer_type="basic",
        hidden_act="silu",
        num_labels=NUM_CLASSES,
    )
    return ResNetForImageClassification(config)


def train_on_clean_digits(
    model: torch.nn.Module,
    logits: Callable[[torch.Tensor], torch.Tensor],
    num_steps: int,
    learning_rate: float,
    batch_size: int = 64,
) -> None:
    """Trains a model whose judgement of images (B, 1, 16, 16) in [-1, 1] is `logits`, (B, 10), on digits without noise."""
    images, labels = as_tensors("train")
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=num_steps)
    model.train()
    for _ in range(num_steps):
        batch = torch.randint(len(images), (batch_size,))
        moved = torch.roll(images[batch], torch.randint(-1, 2, (2,)).tolist(), dims=(2, 3))
        # clean images as a unet sees them in much noise are averages of digits
        share, others = torch.rand(len(batch), 1).square() / 2, torch.randperm(len(batch))
        mixed = torch.lerp(moved, moved[others], share[..., None, None])
        classes = F.one_hot(labels[batch], NUM_CLASSES).float()
        loss = F.cross_entropy(logits(mixed), torch.lerp(classes, classes[others], share))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def as_tensors(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Real digits (N, 1, 16, 16) in [-1, 1], and their labels (N,)."""
    images, labels = real_digits()[split]
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() * 2 - 1, torch.from_numpy(labels).long()


# -------------------------------------------------------------------------------------------------------------- guidance


def noisy(pipe: ClassifierGuidedPipeline, scale: float, entropy_driven: bool = False) -> Guidance:
    return ClassifierGuidance(pipe.classifier, scale=scale, entropy_driven=entropy_driven)


def clean(scale: float) -> Guidance:
    return CleanClassifierGuidance(clean_classifier(), scale=scale)


FULL = "scale 2"  # what confined guidance is compared with
SCALES = (1.0, 2.0, 4.0, 8.0)
ENTROPY_SCALES = (0.5, 1.0, 2.0)
GUIDANCE: dict[str, Callable[[ClassifierGuidedPipeline], Guidance]] = {
    FULL: lambda pipe: noisy(pipe, 2.0),
    f"{FULL}, every second step": lambda pipe: noisy(pipe, 2.0).confined(every=2),
    f"{FULL}, first half": lambda pipe: noisy(pipe, 2.0).confined(stop=0.5),
    f"{FULL}, doubled in every second step": lambda pipe: noisy(pipe, 4.0).confined(every=2),
    "clean classifier": lambda pipe: clean(4.0),
    **{
        f"entropy-driven {scale:g}": functools.partial(noisy, scale=scale, entropy_driven=True)
        for scale in ENTROPY_SCALES
    },
    **{f"scale {scale:g}": functools.partial(noisy, scale=scale) for scale in SCALES},
}


# --------------------------------------------------------------------------------------------------------------- command


class GuidanceSettings(TableSettings):
    guidance: list[Literal[tuple(GUIDANCE)]] = list(GUIDANCE)
    """Rows of the table."""


def main(args: GuidanceSettings) -> None:
    results = args.results("digits_guidance")
    cells = [
        Cell("unconditional", guidance, SOLVER, NUM_EVALUATIONS, seed)
        for seed, guidance in itertools.product(args.seeds, args.guidance)
    ]
    results.measure(cells, lambda cell, pipe: {"guidance": GUIDANCE[cell.guidance](pipe)})

    grouped = {guidance: lines for (_, guidance, *_), lines in by_seeds(results.measured()).items()}
    shown = [guidance for guidance in sorted(GUIDANCE) if guidance in grouped]
    table = "\n".join([*table_head(["guidance"]), *(table_row([each], grouped[each]) for each in shown)]) + "\n"
    results.path.with_suffix(".md").write_text(table)
    figure = args.output_dir / "figures" / "digits_guidance.png"
    plot(grouped, figure)
    print(f"{NUM_SAMPLES} images a seed, {NUM_EVALUATIONS} steps of {SOLVER}.\n\n{table}")
    if len(constants(grouped)) > 1:
        for guidance in shown:
            if guidance.startswith("entropy-driven"):
                print(at_recall_of(guidance, grouped))
    print(f"Look at {results.path.with_suffix('.md')} and {figure}.")


def at_recall_of(guidance: str, grouped: dict[str, list[dict[str, Any]]]) -> str:
    """The measures of a guidance, and those of constant scales at its recall, on the lines between them."""
    means = {
        name: [np.mean([line[name] for line in grouped[of]]) for of in (guidance, *constants(grouped))]
        for name in COLUMNS
    }
    recall, *recalls = means["recall"]
    order = np.argsort(recalls)
    within = "" if min(recalls) <= recall <= max(recalls) else " (beyond all constant scales)"
    compared = (
        f"{name} {values[0]:.3f} against {np.interp(recall, np.array(recalls)[order], np.array(values[1:])[order]):.3f}"
        for name, values in means.items()
        if name != "recall"
    )
    return f"{guidance}, at its recall of {recall:.3f}{within}: {', '.join(compared)} of constant scales."


def constants(grouped: dict[str, list[dict[str, Any]]]) -> list[str]:
    return [name for name in (f"scale {scale:g}" for scale in SCALES) if name in grouped]


def plot(grouped: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Accuracy, precision and Frechet distance against recall: scales on lines, the other ways as points."""
    curves = {
        "constant scale": constants(grouped),
        "entropy-driven scale": [name for name in GUIDANCE if name.startswith("entropy-driven") and name in grouped],
    }
    others = [name for name in GUIDANCE if name in grouped and name not in sum(curves.values(), [])]
    figure = Figure(figsize=(15, 4.5), layout="constrained")
    measures = (("judged", "judged right"), ("precision", "precision"), ("frechet_distance", "Frechet distance"))
    for axis, (measure, label) in zip(figure.subplots(1, 3), measures):

        def point(guidance: str, measure: str = measure) -> tuple[float, float]:
            return tuple(np.mean([line[name] for line in grouped[guidance]]) for name in ("recall", measure))

        for curve, guidances in curves.items():
            guidances = sorted(guidances, key=lambda guidance: float(guidance.split()[-1]))
            if guidances:
                axis.plot(*zip(*map(point, guidances)), marker="o", label=curve)
            for guidance in guidances:
                axis.annotate(guidance.split()[-1], point(guidance), textcoords="offset points", xytext=(5, 5))
        for guidance, marker in zip(others, "s^vD*"):
            axis.plot(*point(guidance), marker=marker, ls="", ms=8, label=guidance)
        axis.set(xlabel="recall", ylabel=label)
        axis.margins(0.1)
        axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=75)


if __name__ == "__main__":
    run_script(main, GuidanceSettings, __doc__)
