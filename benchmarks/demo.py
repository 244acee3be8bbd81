"""The digits pipeline that ships with the package, at work: a classifier steers two diffusion models.

    make demo

writes grids (a row per class, a column per scale) for the conditional and the unconditional unet and for both samplers,
pairs of digits drawn at 4x4 pixels and upsampled to 16x16, and a table of how often an independent judge sees the digit
that was asked for.
"""

import time
from pathlib import Path

import numpy as np
import torch
from digits_cascade import load_upsampler
from digits_judge import DigitsJudge
from PIL import Image
from pydantic import NonNegativeInt

from diffusers_cg import DIGITS, ADMUNet2DModel, ClassifierGuidedDDIMPipeline, ClassifierGuidedDDPMPipeline
from diffusers_cg.data.grids import image_grid
from diffusers_cg_cli.command import run_script
from diffusers_cg_cli.settings import Settings


SCALES = (0.0, 1.0, 3.0, 10.0)
CLASSES = tuple(range(10))
CASCADE_PAIRS = 3
SAMPLERS = {"DDIM": (ClassifierGuidedDDIMPipeline, 25), "DDPM": (ClassifierGuidedDDPMPipeline, 100)}


class DemoSettings(Settings):
    output_dir: Path = Path("demo")
    """Where pictures and table go."""
    seed: NonNegativeInt = 0


def main(args: DemoSettings) -> None:
    args.output_dir.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    judge = DigitsJudge()
    print(f"The judge reads {judge.held_out_accuracy:.1%} of held-out real digits right.\n")
    unets = {
        "conditional": ADMUNet2DModel.from_pretrained(DIGITS, subfolder="unet"),
        "unconditional": ADMUNet2DModel.from_pretrained(DIGITS, subfolder="unet_unconditional"),
    }

    labels = [label for label in CLASSES for _ in SCALES]
    scales = [scale for _ in CLASSES for scale in SCALES]
    rows = ["| unet | sampler | " + " | ".join(f"scale {scale:g}" for scale in SCALES) + " |"]
    rows.append("| --- | --- |" + " --- |" * len(SCALES))
    paths = []
    for unet_name, unet in unets.items():
        for sampler_name, (pipeline_class, num_steps) in SAMPLERS.items():
            pipe = pipeline_class.from_pretrained(DIGITS, unet=unet, solver=None)
            pipe.set_progress_bar_config(desc=f"{unet_name}, {sampler_name} {num_steps}")
            images = pipe(
                class_labels=labels,
                num_inference_steps=num_steps,
                classifier_scale=scales,
                # the same noise along a row: only the scale differs
                generator=[torch.Generator().manual_seed(args.seed + label) for label in labels],
                output_type="np",
            ).images

            by_class = images.reshape(len(CLASSES), len(SCALES), *images.shape[1:])
            grid = image_grid(
                by_class,
                row_labels=[str(label) for label in CLASSES],
                column_labels=[f"{scale:g}" for scale in SCALES],
                title=f"{unet_name}, {sampler_name} {num_steps}, by scale",
                tile_size=96,
            )
            path = args.output_dir / f"{unet_name}_{sampler_name.lower()}.png"
            grid.save(path)
            paths.append(path)

            right = (judge.predict(images) == np.array(labels)).reshape(len(CLASSES), len(SCALES)).sum(axis=0)
            rows.append(
                f"| {unet_name} | {sampler_name} {num_steps} | "
                + " | ".join(f"{count} of {len(CLASSES)}" for count in right)
                + " |"
            )

    path = args.output_dir / "cascade.png"
    cascade(args.seed).save(path)
    paths.append(path)

    table = "Images that the judge reads as the digit asked for:\n\n" + "\n".join(rows) + "\n"
    path = args.output_dir / "table.md"
    path.write_text(table)
    paths.append(path)
    print(f"\n{table}\nDone in {time.monotonic() - started:.0f} s. Look at:")
    for path in paths:
        print(f"  {path}")


def cascade(seed: int) -> Image.Image:
    """Pairs of digits, drawn at 4x4 and upsampled to 16x16, guided at both stages."""
    labels = [label for label in CLASSES for _ in range(CASCADE_PAIRS)]
    base, upsampler = ClassifierGuidedDDIMPipeline.from_pretrained(DIGITS / "low_res"), load_upsampler()
    base.set_progress_bar_config(desc="4x4")
    upsampler.set_progress_bar_config(desc="4x4 to 16x16")
    generators = [torch.Generator().manual_seed(seed + number) for number in range(len(labels))]
    low = base(class_labels=labels, generator=generators, output_type="pt").images
    high = upsampler(image=low, class_labels=labels, generator=generators, output_type="pt").images
    pairs = [version.permute(1, 2, 0).numpy() for pair in zip(low, high) for version in pair]
    columns = 2 * CASCADE_PAIRS
    return image_grid(
        [pairs[first : first + columns] for first in range(0, len(pairs), columns)],
        row_labels=[str(label) for label in CLASSES],
        column_labels=["4x4", "16x16"] * CASCADE_PAIRS,
        title="drawn at 4x4, upsampled to 16x16",
        tile_size=96,
    )


if __name__ == "__main__":
    run_script(main, DemoSettings, __doc__)
