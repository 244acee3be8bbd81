"""The gradient of sampling on the paper's 64x64 model: memory and time by the number of steps, checkpointed and whole.

    OMP_NUM_THREADS=2 python benchmarks/differentiable_sampling.py --num_inference_steps 1 2 4 50

draws one image by DDIM with that model (296M parameters, class-conditional, random weights) and takes the gradient of it in its
latents, in a process of its own per row, and prints that process's peak memory; then how far the two gradients differ. `--guided`
adds the 64x64 classifier. A row that might exceed `--limit` GiB, by the line through the two before it, is not run: begin with few steps.
"""

import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch
from diffusers import DDIMScheduler
from pydantic import PositiveFloat, PositiveInt

from diffusers_cg import ADMUNet2DModel, ClassifierGuidedDDIMPipeline, NoisyClassifierModel
from diffusers_cg.models.presets import PRESETS
from diffusers_cg_cli.command import run_script
from diffusers_cg_cli.settings import Settings


UNET, CLASSIFIER = "64x64_diffusion", "64x64_classifier"


class SamplingSettings(Settings):
    num_inference_steps: list[PositiveInt] = [1, 2, 4, 50]
    guided: bool = False
    limit: PositiveFloat = 12.0
    """GiB that a process of this benchmark may take."""


def draw(num_inference_steps: int, checkpointing: bool, guided: bool) -> tuple[torch.Tensor, float, float, float]:
    """(gradient (1, 3, 64, 64), GiB of this process before, its peak, seconds), with weights and latents from seed 0."""
    torch.manual_seed(0)
    models = [ADMUNet2DModel(**PRESETS[UNET].architecture)]
    if guided:
        models.append(NoisyClassifierModel(**PRESETS[CLASSIFIER].architecture))
    for model in models:
        for parameter in model.parameters():  # the layers that start at zero would pass no gradient on
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.02)
    # nothing is clipped, through which there would be no gradient
    scheduler = DDIMScheduler(beta_schedule=PRESETS[UNET].beta_schedule, clip_sample=False)
    pipe = ClassifierGuidedDDIMPipeline(models[0], scheduler, *models[1:])
    pipe.set_progress_bar_config(disable=True)
    latents = torch.randn(1, 3, 64, 64, requires_grad=True)
    before, started = peak_memory(), time.monotonic()
    with pipe.differentiable(checkpointing):
        images = pipe(
            [0],
            num_inference_steps=num_inference_steps,
            classifier_scale=float(guided),
            latents=latents,
            output_type="latent",
        ).images
    images.square().sum().backward()
    return latents.grad, before, peak_memory(), time.monotonic() - started


def peak_memory() -> float:
    """GiB that this process held at most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main(args: SamplingSettings) -> None:
    print("| checkpointing | steps | before | peak memory | seconds |\n| --- | --- | --- | --- | --- |", flush=True)
    gradients = {}
    for checkpointing in (True, False):
        name, peaks = ("yes" if checkpointing else "no"), {}
        for steps in sorted(args.num_inference_steps):
            if len(peaks) > 1 and fit(peaks)(steps) > args.limit:
                print(f"| {name} | {steps} | | not run, {fit(peaks)(steps):.1f} GiB expected | |", flush=True)
                continue
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                gradient, before, peaks[steps], seconds = pool.submit(draw, steps, checkpointing, args.guided).result()
            gradients[checkpointing, steps] = gradient
            print(f"| {name} | {steps} | {before:.2f} GiB | {peaks[steps]:.2f} GiB | {seconds:.0f} |", flush=True)
        if len(peaks) > 1:
            print(f"checkpointing {name}: {fit(peaks)[1]:.3f} GiB a step", flush=True)
    for steps in args.num_inference_steps:
        if (False, steps) in gradients:
            whole = gradients[False, steps]
            difference = (gradients[True, steps] - whole).abs().max() / whole.abs().max()
            print(f"largest relative difference of the gradients through {steps} steps: {difference:.1e}")


def fit(peaks: dict[int, float]) -> np.poly1d:
    """The line through the two largest numbers of steps."""
    steps = sorted(peaks)[-2:]
    return np.poly1d(np.polyfit(steps, [peaks[each] for each in steps], 1))


if __name__ == "__main__":
    run_script(main, SamplingSettings, __doc__)
