"""The paper's upsampling stack on digits: 4x4 pixels to 16x16, against interpolation and against a single stage.

    python benchmarks/digits_cascade.py --single_stage RUN_DIR/single_stage --output_dir cascade

writes two tables to `table.md` and the pictures `upsampled.png` and `generated.png`:

    held-out real digits, scaled down to 4x4: PSNR against the originals, and how many the judge reads right
    generated digits: cascades and single-stage generation, in the columns of `digits_table4.py`

`--single_stage` names a unet that trained as long as the stack (`training/recipes/digits_cascade.sh` makes one).
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler
from digits_judge import DigitsJudge, real_digits
from digits_table4 import NUM_CLASSES, format_row, measure
from PIL import Image
from pydantic import PositiveInt

from diffusers_cg import (
    DIGITS,
    ClassifierGuidedDDIMPipeline,
    ClassifierGuidedSuperResolutionPipeline,
    NoisyClassifierModel,
)
from diffusers_cg.data.grids import image_grid
from diffusers_cg.diffusion import seeded_generator
from diffusers_cg.generation import draw_images
from diffusers_cg_cli.command import run_script
from diffusers_cg_cli.settings import Settings


STEPS = 25
SCALES = (0.0, 1.0, 3.0)


class CascadeSettings(Settings):
    single_stage: Path | None = None
    """Output folder of train_unet.py at 16x16 to compare with."""
    num_samples: PositiveInt = 1000
    """Generated images per row."""
    batch_size: PositiveInt = 100
    """Changes the speed, not the images."""
    output_dir: Path


def load_upsampler() -> ClassifierGuidedSuperResolutionPipeline:
    """The upsampler that ships, with DDIM steps, guided by the classifier of the digits pipeline."""
    folder = DIGITS / "upsampler"
    return ClassifierGuidedSuperResolutionPipeline.from_pretrained(
        folder,
        scheduler=DDIMScheduler.from_pretrained(folder, subfolder="scheduler", timestep_spacing="leading"),
        classifier=NoisyClassifierModel.from_pretrained(DIGITS, subfolder="classifier"),
    )


def draw(pipe, labels: np.ndarray, scale: float, batch_size: int, low: np.ndarray | None = None) -> np.ndarray:
    """Images (N, H, W, 1) in [0, 1]; image k is drawn from seed k, upsampled with noise of its own."""
    pipe.set_progress_bar_config(desc=f"{len(labels)} images, scale {scale:g}", leave=False)
    seeds = range(len(labels))
    if low is None:
        generators = (torch.Generator().manual_seed(k) for k in seeds)
    else:
        generators = (seeded_generator(k, 1) for k in seeds)
    call = {"num_inference_steps": STEPS, "classifier_scale": scale, "output_type": "np"}
    return np.concatenate(list(draw_images(pipe, labels.tolist(), generators, batch_size, low, **call)))


def resize(images: np.ndarray, side: int, resample: Image.Resampling) -> np.ndarray:
    """Images (N, H, W, 1) in [0, 1] at another size."""
    return np.stack(
        [
            np.asarray(Image.fromarray(image[..., 0].astype(np.float32)).resize((side, side), resample))
            for image in images
        ]
    )[..., None].clip(0, 1)


def main(args: CascadeSettings) -> None:
    args.output_dir.mkdir(parents=True, exist_ok=True)
    judge, splits = DigitsJudge(), real_digits()
    real, labels = splits["test"]
    upsampler = load_upsampler()

    low = resize(real, 4, Image.Resampling.BOX)
    versions = {
        "bilinear": resize(low, 16, Image.Resampling.BILINEAR),
        "bicubic": resize(low, 16, Image.Resampling.BICUBIC),
        **{f"ours, scale {scale:g}": draw(upsampler, labels, scale, args.batch_size, low) for scale in SCALES},
        "original": real,
    }
    lines = ["| 360 held-out digits, 4x4 to 16x16 | PSNR (dB) | judged |", "| --- | --- | --- |"]
    for name, images in versions.items():
        error = ((images - real) ** 2).mean(axis=(1, 2, 3))
        psnr = "" if name == "original" else f"{(-10 * np.log10(error)).mean():.2f}"
        lines.append(f"| {name} | {psnr} | {(judge.predict(images) == labels).mean():.1%} |")
    shown = [int(np.flatnonzero(labels == label)[0]) for label in range(NUM_CLASSES)]
    columns = {"4x4": low, **versions}
    grid = image_grid(
        [[images[k] for images in columns.values()] for k in shown], column_labels=list(columns), tile_size=96
    )
    grid.save(args.output_dir / "upsampled.png")

    labels = np.arange(args.num_samples) % NUM_CLASSES
    reference = judge.features(splits["train"][0])
    base = ClassifierGuidedDDIMPipeline.from_pretrained(DIGITS / "low_res")
    single = None
    if args.single_stage is not None:
        single = ClassifierGuidedDDIMPipeline.from_pretrained(args.single_stage, classifier=upsampler.classifier)
    generated, lows = {}, {}
    for scale in SCALES:
        lows[scale] = draw(base, labels, scale, args.batch_size)
        generated["cascade", scale] = draw(upsampler, labels, scale, args.batch_size, lows[scale])
        if single is not None:
            generated["single stage", scale] = draw(single, labels, scale, args.batch_size)
    lines += ["", "| generated digits | scale | judged | precision | recall | Frechet distance |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for name, scale in sorted(generated):
        measured = measure(judge, reference, generated[name, scale], labels)
        lines.append(format_row(name, f"{scale:g}", measured))
    pairs = [
        [image for scale in SCALES for image in (lows[scale][label], generated["cascade", scale][label])]
        for label in range(NUM_CLASSES)
    ]
    titles = [title for scale in SCALES for title in (f"low, {scale:g}", f"high, {scale:g}")]
    grid = image_grid(pairs, row_labels=[str(k) for k in range(NUM_CLASSES)], column_labels=titles, tile_size=96)
    grid.save(args.output_dir / "generated.png")

    table = "\n".join(lines) + "\n"
    (args.output_dir / "table.md").write_text(table)
    print(table)
    for name in ("table.md", "upsampled.png", "generated.png"):
        print(f"Look at {args.output_dir / name}.")


if __name__ == "__main__":
    run_script(main, CascadeSettings, __doc__)
