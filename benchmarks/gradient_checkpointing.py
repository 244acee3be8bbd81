"""Gradient checkpointing on the paper's 64x64 model: the same gradients with less memory.

    OMP_NUM_THREADS=1 python benchmarks/gradient_checkpointing.py --batch_sizes 1 2 4 8

runs forward and backward of the hybrid loss on that model (296M parameters, class-conditional) in a process of its own per
row, and prints that process's peak memory; then the largest relative difference between the gradients with and without
checkpointing. Memory grows linearly with the batch once that is large, so a line through the last two rows tells the
largest batch that fits in `--memory` GiB together with AdamW's two states (8 bytes a parameter, added to the measured
peak, which holds weights and gradients): it is extrapolated unless a row of that size is measured. A row that might
exceed `--limit` GiB is not run.
"""

import multiprocessing
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler
from pydantic import PositiveFloat, PositiveInt

from diffusers_cg import ADMUNet2DModel, GaussianDiffusion
from diffusers_cg.diffusion import training_losses
from diffusers_cg.models.presets import PRESETS
from diffusers_cg_cli.command import run_script
from diffusers_cg_cli.settings import Settings


CHECKPOINT = "64x64_diffusion"
ADAM_BYTES = 8  # per parameter: two averages in float32


class CheckpointingSettings(Settings):
    batch_sizes: list[PositiveInt] = [1, 2, 4, 8]
    memory: PositiveFloat = 20.0
    """GiB that a training may take."""
    limit: PositiveFloat = 16.0
    """GiB that a process of this benchmark may take."""


def step(batch_size: int, checkpointing: bool, file: Path | None) -> tuple[float, float]:
    """One forward and backward pass, with weights and images from seed 0: peak memory of this process in GiB, and seconds.

    The gradients go into a file if one is named.
    """
    torch.manual_seed(0)
    # without dropout, which would draw other zeros in the second pass of another schedule
    model = ADMUNet2DModel(**{**PRESETS[CHECKPOINT].architecture, "dropout": 0.0})
    for parameter in model.parameters():  # the layers that start at zero would pass no gradient on
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    if checkpointing:
        model.enable_gradient_checkpointing()
    scheduler = DDPMScheduler(beta_schedule=PRESETS[CHECKPOINT].beta_schedule, variance_type="learned_range")
    diffusion = GaussianDiffusion.from_scheduler(scheduler)
    clean_images, noise = torch.randn(2, batch_size, 3, 64, 64)
    timesteps = torch.randint(1000, (batch_size,))
    sample = diffusion.q_sample(clean_images, noise, timesteps)
    started = time.monotonic()
    output = model.train()(sample, timesteps, torch.randint(1000, (batch_size,))).sample
    training_losses(diffusion, output, clean_images, noise, sample, timesteps, 0.001).loss.mean().backward()
    seconds = time.monotonic() - started
    if file is not None:
        torch.save([parameter.grad for parameter in model.parameters()], file)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, seconds


def measure(batch_size: int, checkpointing: bool, file: Path | None = None) -> tuple[float, float]:
    """[`step`] in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(step, batch_size, checkpointing, file).result()


def gradient_difference(folder: Path, batch_size: int) -> float:
    """Largest difference of a gradient, relative to the largest entry of its parameter's."""
    files = [folder / name for name in ("plain", "checkpointed")]
    for checkpointing, file in enumerate(files):
        measure(batch_size, bool(checkpointing), file)
    plain, checkpointed = (torch.load(file, mmap=True, weights_only=True) for file in files)
    return max(((a - b).abs().max() / a.abs().max().clamp(min=1e-30)).item() for a, b in zip(plain, checkpointed))


def main(args: CheckpointingSettings) -> None:
    with torch.device("meta"):
        parameters = sum(p.numel() for p in ADMUNet2DModel(**PRESETS[CHECKPOINT].architecture).parameters())
    adam = parameters * ADAM_BYTES / 2**30
    print(f"{CHECKPOINT}: {parameters:,} parameters; AdamW's states take {adam:.2f} GiB\n")
    print(
        "| checkpointing | batch | peak memory | with AdamW | seconds |\n| --- | --- | --- | --- | --- |", flush=True
    )
    facts = {}
    for checkpointing in (False, True):
        name, peaks = ("yes" if checkpointing else "no"), {}
        for batch_size in sorted(args.batch_sizes):
            if len(peaks) > 1 and fit(peaks)(batch_size) > args.limit:
                print(
                    f"| {name} | {batch_size} | not run, {fit(peaks)(batch_size):.1f} GiB expected | | |", flush=True
                )
                continue
            peaks[batch_size], seconds = measure(batch_size, checkpointing)
            peak = peaks[batch_size]
            print(f"| {name} | {batch_size} | {peak:.2f} GiB | {peak + adam:.2f} GiB | {seconds:.0f} |", flush=True)
        facts[name] = peaks
    for name, peaks in facts.items():
        if len(peaks) > 1:
            largest = int((fit(peaks) - (args.memory - adam)).roots[0])
            print(
                f"\ncheckpointing {name}: {fit(peaks)[1]:.3f} GiB an image; at most {largest} images in "
                f"{args.memory:g} GiB{'' if largest in peaks else ' (extrapolated)'}"
            )
    with tempfile.TemporaryDirectory() as folder:
        print(f"\nlargest relative difference of a gradient: {gradient_difference(Path(folder), 1):.1e}")


def fit(peaks: dict[int, float]) -> np.poly1d:
    """The line through the two largest batches: in small ones the gradients, not the activations, may make the peak."""
    batch_sizes = sorted(peaks)[-2:]
    return np.poly1d(np.polyfit(batch_sizes, [peaks[batch_size] for batch_size in batch_sizes], 1))


if __name__ == "__main__":
    run_script(main, CheckpointingSettings, __doc__)
