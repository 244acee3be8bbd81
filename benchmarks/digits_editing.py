"""Editing, restoring and explaining digits: inpainting, restoration, counterfactuals, anomaly maps, purification.

    python benchmarks/digits_editing.py

writes under `benchmarks/`

    results/digits_editing.jsonl     a line per row: what was measured
    results/digits_editing.md        the tables, one per task
    figures/editing_*.png            a picture per task

100 held-out digits, ten of each, a row. `--tasks` chooses tasks, whose lines replace the older ones, so that several processes may
share the work. The conditional unet that ships is told the right label, the unconditional one none.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from digits_cascade import draw as upsample
from digits_cascade import load_upsampler, resize
from digits_judge import DigitsJudge, real_digits
from digits_table4 import NUM_CLASSES, UNETS
from PIL import Image
from sklearn.metrics import roc_auc_score

from diffusers_cg import (
    DIGITS,
    ADMUNet2DModel,
    ClassifierGuidedDDIMPipeline,
    ClassifierGuidedInpaintPipeline,
    Denoiser,
)
from diffusers_cg.data.grids import image_grid
from diffusers_cg.pipelines import ClassifierGuidedPipeline
from diffusers_cg.restoration import BoxDownsampling, GaussianBlur, LinearOperator
from diffusers_cg_cli.command import run_script
from diffusers_cg_cli.settings import Settings


FOLDER = Path(__file__).parent
NUM_OF_EACH = 10
BATCH_SIZE = 100
STEPS = 25  # where nothing else is said
RESTORATION = {  # by method, what its calls are given
    "ddnm": {"num_inference_steps": STEPS},
    "diffpir": {"num_inference_steps": STEPS},
    "pigdm": {"num_inference_steps": STEPS},
    "dps": {"num_inference_steps": 50, "scale": 6.0},  # steps x scale as of the paper's 1,000 x .3
}
FORMATS = {
    "judged": ".1%",
    "as target": ".1%",
    "as source": ".1%",
    "PSNR (dB)": ".2f",
    "accuracy": ".1%",
    "PSNR of x": ".2f",
}  # others: .3f
Row = dict[str, Any]


def pipeline(
    unet: str, kind: type[ClassifierGuidedPipeline] = ClassifierGuidedDDIMPipeline
) -> ClassifierGuidedPipeline:
    pipe = kind.from_pretrained(
        DIGITS, unet=ADMUNet2DModel.from_pretrained(DIGITS, subfolder=UNETS[unet]), solver=None
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Digits:
    """Held-out digits, and what is measured of others made of them.

    Attributes:
        images (`torch.Tensor`): (100, 1, 16, 16) in [0, 1]; the first ten are one of each.
        labels (`torch.Tensor`): (100,).
        class_means (`torch.Tensor`): The mean training digit of each label, (10, 1, 16, 16).
    """

    def __init__(self):
        splits = real_digits()
        self.judge = DigitsJudge()
        pixels, labels = splits["test"]
        chosen = [np.flatnonzero(labels == label)[k] for k in range(NUM_OF_EACH) for label in range(NUM_CLASSES)]
        self.images, self.labels = to_tensor(pixels[chosen]), torch.from_numpy(labels[chosen]).long()
        pixels, labels = splits["train"]
        self.train, self.train_labels = to_tensor(pixels), torch.from_numpy(labels)
        self.class_means = torch.stack([self.train[self.train_labels == k].mean(dim=0) for k in range(NUM_CLASSES)])

    def judged(self, images: torch.Tensor, labels: torch.Tensor | None = None) -> float:
        """Share that the judge reads as the labels, by default those of the originals."""
        read = self.judge.predict(images.numpy().transpose(0, 2, 3, 1))
        return float((read == (self.labels if labels is None else labels).numpy()).mean())

    def psnr(self, images: torch.Tensor) -> float:
        """Against the originals, dB; the mean of the images'."""
        return float((-10 * (images.clamp(0, 1) - self.images).square().mean(dim=(1, 2, 3)).log10()).mean())


def to_tensor(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float()


def draw(call: Callable, given: dict[str, torch.Tensor], **options: Any) -> tuple[torch.Tensor, int]:
    """Images (B, 1, 16, 16) in [0, 1], of what is `given` for each, in batches, and how often each passed the unet."""
    number = len(next(iter(given.values())))
    outputs = [
        call(
            **{name: values[first : first + BATCH_SIZE] for name, values in given.items()},
            generator=generators(number)[first : first + BATCH_SIZE],
            output_type="pt",
            **options,
        )
        for first in range(0, number, BATCH_SIZE)
    ]
    return torch.cat([output.images for output in outputs]), outputs[0].evaluations["unet"]


def generators(number: int) -> list[torch.Generator]:
    """Of image k that of seed k."""
    return [torch.Generator().manual_seed(k) for k in range(number)]


def save_picture(picture: dict[str, torch.Tensor], path: Path) -> None:
    """A row per name, of the first of each digit."""
    rows = [images[:NUM_CLASSES].clamp(0, 1).numpy().transpose(0, 2, 3, 1) for images in picture.values()]
    grid = image_grid(rows, row_labels=list(picture), tile_size=40, gap=3)
    in_color = any(images.shape[-1] == 3 for images in rows)
    (grid if in_color else grid.convert("L")).save(path, optimize=True)


# ------------------------------------------------------------------------------------------------------------ inpainting


def inpaint(digits: Digits, picture: dict[str, torch.Tensor]) -> Iterator[Row]:
    """The lowest 5 of 16 rows. Twenty samples of the first ten digits by the conditional unet, one of all others."""
    mask = torch.zeros(16, 16)
    mask[11:] = 1
    num_averaged, num_samples = NUM_CLASSES, 20
    everyone = torch.arange(len(digits.images))
    and_again = torch.cat([everyone, torch.arange(num_averaged).repeat(num_samples - 1)])

    def in_hole(images: torch.Tensor, originals: torch.Tensor) -> float:
        return float((images - originals)[..., mask == 1].square().mean())

    masked = torch.where(mask == 1, 0.0, digits.images)
    mean_digits = torch.where(mask == 1, digits.class_means[digits.labels], digits.images)
    for name, images in {"left black": masked, "mean training digit of the label": mean_digits}.items():
        yield {
            "hole": name,
            "unet": "",
            "scale": "",
            "judged": digits.judged(images),
            "MSE": in_hole(images, digits.images),
            "MSE of the mean of 20": "",
            "passes": "",
        }
    picture |= {"original": digits.images, "known": masked}
    methods = {
        "repaint": {"num_inference_steps": STEPS, "jump_length": 5, "jump_n_sample": 2},
        "ddnm": {"num_inference_steps": STEPS, "jump_n_sample": 1},
    }
    for unet in UNETS:
        pipe = pipeline(unet, ClassifierGuidedInpaintPipeline)
        which = and_again if unet == "conditional" else everyone
        for method, options in methods.items():
            for scale in (0.0, 1.0):
                given = {"image": digits.images[which], "class_labels": digits.labels[which]}
                images, passes = draw(pipe, given, mask_image=mask, classifier_scale=scale, method=method, **options)
                first = images[: len(digits.images)]
                again = images[len(digits.images) :].unflatten(0, (-1, num_averaged))  # by sample, digit
                mean = (first[:num_averaged] + again.sum(dim=0)) / num_samples
                yield {
                    "hole": method,
                    "unet": unet,
                    "scale": f"{scale:g}",
                    "judged": digits.judged(first),
                    "MSE": in_hole(first, digits.images),
                    "MSE of the mean of 20": in_hole(mean, digits.images[:num_averaged]) if len(again) else "",
                    "passes": passes,
                }
                if unet == "conditional" or scale > 0:
                    picture[f"{method}, {unet}, scale {scale:g}"] = first


# ----------------------------------------------------------------------------------------------------------- restoration


def restored(
    digits: Digits,
    operator: LinearOperator,
    measurement: torch.Tensor,
    noise_std: float,
    by: dict[str, Any],
    names: Row,
) -> Iterator[tuple[Row, torch.Tensor]]:
    """By methods of each unet, unguided."""
    for unet, methods in by.items():
        pipe = pipeline(unet)
        for method, options in methods.items():
            given = {"measurement": measurement}
            if unet == "conditional":
                given["class_labels"] = digits.labels
            images, _ = draw(pipe.restore, given, operator=operator, method=method, noise_std=noise_std, **options)
            yield {**names, "by": f"{method}, {unet}", **restoration_measures(digits, images)}, images


def restoration_measures(digits: Digits, images: torch.Tensor) -> Row:
    return {"PSNR (dB)": digits.psnr(images), "judged": digits.judged(images)}


def super_resolution(digits: Digits, picture: dict[str, torch.Tensor]) -> Iterator[Row]:
    """4x4 to 16x16, by restoration of the mean of each square, and by a network trained for it."""
    operator = BoxDownsampling(4)
    small = operator.forward(digits.images)
    low, labels = small.numpy().transpose(0, 2, 3, 1), digits.labels.numpy()
    upsampler = load_upsampler()
    versions = {
        "bilinear": resize(low, 16, Image.Resampling.BILINEAR),
        "bicubic": resize(low, 16, Image.Resampling.BICUBIC),
        **{f"trained upsampler, scale {s:g}": upsample(upsampler, labels, s, BATCH_SIZE, low) for s in (0.0, 1.0)},
    }
    picture |= {"original": digits.images, "4x4": small}
    for name, images in versions.items():
        picture[name] = to_tensor(images)
        yield {"by": name, **restoration_measures(digits, picture[name])}
    by = dict.fromkeys(UNETS, RESTORATION)
    for row, images in restored(digits, operator, 2 * small - 1, 0.0, by, {}):
        picture[row["by"]] = images
        yield row


def deblur(digits: Digits, picture: dict[str, torch.Tensor]) -> Iterator[Row]:
    """A Gaussian of 1.5 pixels, without noise and with 0.05, of images in [-1, 1]."""
    operator = GaussianBlur(1.5)
    picture["original"] = digits.images
    for noise_std in (0.0, 0.05):
        noise = torch.randn(digits.images.shape, generator=torch.Generator().manual_seed(0))
        blurred = operator.forward(2 * digits.images - 1) + noise_std * noise
        names = {"noise": f"{noise_std:g}"}
        for name, images in {
            "blurred": blurred,
            "least squares": operator.pseudo_inverse(blurred, noise_std**2),  # with noise, x of unit variance
        }.items():
            images = (images / 2 + 0.5).clamp(0, 1)
            picture[f"{name}, noise {noise_std:g}"] = images
            yield {**names, "by": name, **restoration_measures(digits, images)}
        for row, images in restored(digits, operator, blurred, noise_std, {"unconditional": RESTORATION}, names):
            if noise_std > 0:
                picture[row["by"]] = images
            yield row


# --------------------------------------------------------------------------------------------------------- explanations


def edits(
    digits: Digits, images: torch.Tensor, labels: torch.Tensor, strength: float, scale: float
) -> Iterator[tuple[str, torch.Tensor]]:
    """Images under other labels: encoded by DDIM inversion, by both unets, and started from in noise."""
    call = {"num_inference_steps": STEPS, "classifier_scale": scale, "strength": strength, "output_type": "pt"}
    for unet in UNETS:
        pipe = pipeline(unet)
        source = digits.labels if unet == "conditional" else None
        yield f"edit, {unet}", pipe.edit(images, labels, source_labels=source, **call).images
    pipe = pipeline("conditional")
    yield "image=, conditional", pipe(labels, image=images, generator=generators(len(images)), **call).images


def counterfactuals(digits: Digits, picture: dict[str, torch.Tensor]) -> Iterator[Row]:
    """Each digit as the one five further, at scale 3."""
    targets = (digits.labels + 5) % NUM_CLASSES
    picture["original"] = digits.images
    rows = []
    for strength in (0.3, 0.5, 0.7, 0.9):
        for name, images in edits(digits, digits.images, targets, strength, scale=3.0):
            if strength > 0.3:
                picture[f"{name}, {strength:g}"] = images
            row = {
                "by": name,
                "strength": f"{strength:g}",
                "as target": digits.judged(images, targets),
                "as source": digits.judged(images),
                "RMSE": float((images - digits.images).square().mean(dim=(1, 2, 3)).sqrt().mean()),
            }
            rows.append(row)
    yield from sorted(rows, key=lambda row: row["by"])


def with_blots(images: torch.Tensor, side: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """A square for each image, (B, 1, 16, 16), and where it is, bool: white in the dark, and black in what is bright, in turn."""
    generator = torch.Generator().manual_seed(0)
    blotted, where = images.clone(), torch.zeros(images.shape, dtype=torch.bool)
    around = torch.nn.functional.avg_pool2d(images, side, stride=1)[:, 0]  # brightness of each square
    for k in range(len(images)):
        # half of the images of each label, as they come in tens
        is_white = (k + k // NUM_CLASSES) % 2 == 0
        places = (around[k] < 0.2).nonzero() if is_white else (around[k] >= around[k].max() - 0.1).nonzero()
        row, column = places[torch.randint(len(places), (), generator=generator)]
        square = (k, 0, slice(row, row + side), slice(column, column + side))
        blotted[square], where[square] = float(is_white), True
    return blotted, where


def anomaly(digits: Digits, picture: dict[str, torch.Tensor]) -> Iterator[Row]:
    """Where a 3x3 blot is, by the difference from the edit of the digit with its own label, at scale 3."""
    blotted, where = with_blots(digits.images)
    white = (blotted * where).amax(dim=(1, 2, 3)) > 0  # (B,)

    def row(name: str, strength: str, maps: torch.Tensor) -> Row:
        parts = {"AUROC": torch.ones_like(white), "white blots": white, "black blots": ~white}
        return {"map": name, "strength": strength} | {
            part: float(roc_auc_score(where[of].flatten(), maps[of].flatten())) for part, of in parts.items()
        }

    same_label = digits.train_labels == digits.labels[:, None]
    distances = torch.cdist(blotted.flatten(1), digits.train.flatten(1)).where(same_label, torch.inf)
    baselines = {
        "brightness": blotted,
        "distance from the mean training digit of the label": (blotted - digits.class_means[digits.labels]).abs(),
        "distance from the nearest training digit of the label": (blotted - digits.train[distances.argmin(1)]).abs(),
    }
    for name, maps in baselines.items():
        yield row(name, "", maps)
    picture |= {"with a blot": blotted, "where": where.float()}
    picture |= {"from the mean digit": list(baselines.values())[1], "from the nearest": list(baselines.values())[2]}
    rows = []
    for strength in (0.3, 0.5, 0.7):
        for name, images in edits(digits, blotted, digits.labels, strength, scale=3.0):
            maps = (images - blotted).abs()
            if strength == 0.5:
                shown = maps / maps.amax(dim=(1, 2, 3), keepdim=True)  # each image's largest difference is white
                picture |= {f"{name}, {strength:g}": images, f"|difference|, {name}": shown}
            rows.append(row(name, f"{strength:g}", maps))
    yield from sorted(rows, key=lambda each: each["map"])


# ------------------------------------------------------------------------------------------------ networks as functions


def purify(digits: Digits, picture: dict[str, torch.Tensor]) -> Iterator[Row]:
    """Digits attacked so that the classifier that ships errs on them, noised and denoised by the unconditional unet."""
    pipe = pipeline("unconditional")
    classifier = pipe.classifier.requires_grad_(False)
    zero = torch.zeros(len(digits.images), dtype=torch.long)

    def logits(images: torch.Tensor) -> torch.Tensor:
        return classifier(2 * images - 1, zero).logits

    epsilon, num_attack_steps = 0.15, 10
    attacked = digits.images.clone()
    for _ in range(num_attack_steps):
        attacked.requires_grad_(True)
        loss = torch.nn.functional.cross_entropy(logits(attacked), digits.labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, attacked)
        attacked = attacked.detach() + 2 * epsilon / num_attack_steps * gradient.sign()
        attacked = attacked.clamp(digits.images - epsilon, digits.images + epsilon).clamp(0, 1)

    versions = {"original": digits.images, "attacked": attacked}
    for strength in (0.1, 0.2, 0.3, 0.5):
        versions[f"purified, strength {strength:g}"] = pipe.purify(
            attacked, strength, num_inference_steps=50, generator=generators(len(attacked))
        )
    picture |= versions
    for name, images in versions.items():
        with torch.no_grad():
            accuracy = float((logits(images).argmax(1) == digits.labels).float().mean())
        yield {"digits": name, "accuracy": accuracy, "judged": digits.judged(images)}


def denoise(digits: Digits, picture: dict[str, torch.Tensor]) -> Iterator[Row]:
    """D(x, sigma) of the unconditional unet."""
    denoiser = Denoiser(pipeline("unconditional"), image_range=(0, 1), clip=True)
    noise = torch.randn(digits.images.shape, generator=torch.Generator().manual_seed(0))
    picture["original"] = digits.images
    for sigma in (0.1, 0.25, 0.5, 1.0):
        noisy = digits.images + sigma * noise
        with torch.no_grad():
            images = denoiser(noisy, sigma)
        picture |= {f"noise {sigma:g}": noisy, f"D(x, {sigma:g})": images}
        measures = restoration_measures(digits, images)
        yield {"sigma": f"{sigma:g}", "PSNR of x": float(digits.psnr(noisy)), **measures}


def features(digits: Digits, picture: dict[str, torch.Tensor]) -> Iterator[Row]:
    """The three principal components of the pixels' features as red, green and blue; nothing is measured."""
    unet = pipeline("unconditional").unet
    timestep = 100
    sample = 2 * digits.images - 1
    picture["original"] = digits.images
    blocks = [f"output_blocks.{number}" for number in range(len(unet.up_blocks) * 2)]
    with torch.no_grad():
        for name, found in unet.features(sample, torch.tensor(timestep), blocks=blocks).items():
            pixels = found.permute(0, 2, 3, 1).flatten(0, 2).float()
            pixels = pixels - pixels.mean(dim=0)
            components = torch.linalg.eigh(pixels.T @ pixels).eigenvectors[:, -3:].flip(1)
            shown = (pixels @ components).unflatten(0, (len(sample), *found.shape[2:]))
            low, high = (shown.flatten(0, 2).quantile(q, dim=0) for q in (0.02, 0.98))
            picture[f"{name}, {found.shape[2]}x{found.shape[3]}"] = ((shown - low) / (high - low)).permute(0, 3, 1, 2)
    return iter(())


TASKS = {
    "inpaint": inpaint,
    "super_resolution": super_resolution,
    "deblur": deblur,
    "counterfactuals": counterfactuals,
    "anomaly": anomaly,
    "purify": purify,
    "denoise": denoise,
    "features": features,
}


# ------------------------------------------------------------------------------------------------------------ the command


class EditingSettings(Settings):
    tasks: list[Literal[tuple(TASKS)]] = list(TASKS)
    """Tables and pictures to make anew."""
    output_dir: Path = FOLDER
    """Folder of `results` and `figures`."""


def table(rows: list[Row]) -> str:
    def cell(name: str, value: Any) -> str:
        return format(value, FORMATS.get(name, ".3f")) if isinstance(value, float) else str(value)

    lines = [list(rows[0]), ["---"] * len(rows[0]), *([cell(*item) for item in row.items()] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(args: EditingSettings) -> None:
    torch.set_num_threads(1)
    path = args.output_dir / "results" / "digits_editing.jsonl"
    for folder in ("results", "figures"):
        (args.output_dir / folder).mkdir(parents=True, exist_ok=True)
    digits = Digits()
    for task in args.tasks:
        picture = {}
        rows = []
        for row in TASKS[task](digits, picture):
            print(json.dumps(row), flush=True)
            rows.append(row)
        older = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in older if json.loads(line)["task"] != task]
        path.write_text("".join(line + "\n" for line in [*kept, *(json.dumps({"task": task} | row) for row in rows)]))
        figure = args.output_dir / "figures" / f"editing_{task}.png"
        save_picture(picture, figure)
        print(f"Look at {figure}.")

    measured = [json.loads(line) for line in path.read_text().splitlines()]
    text = ""
    for task in TASKS:
        rows = [
            {name: value for name, value in row.items() if name != "task"} for row in measured if row["task"] == task
        ]
        if rows:
            text += f"**{task.replace('_', ' ').capitalize()}**\n\n{table(rows)}\n"
    path.with_suffix(".md").write_text(text)
    print(f"{text}Look at {path.with_suffix('.md')}.")


if __name__ == "__main__":
    run_script(main, EditingSettings, __doc__)
