"""Time and memory of the metrics at the size of the paper's evaluation.

    python benchmarks/evaluation_cost.py

computes FID of 50,000 samples against 10,000 reference images and precision and recall of the same, each in a process
of its own, from random features of Inception's width in float32. It prints a table; peak memory is all of the process,
the features (0.46 GiB) with it. Core time adds up the cores: it tells how much of the time other programs took. What
the features cost to make depends on the device, and is not in it.
"""

import multiprocessing
import os
import resource
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from pydantic import PositiveInt

from diffusers_cg_cli.command import run_script
from diffusers_cg_cli.settings import Settings


def features(num_images: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((num_images, width), dtype=np.float32)


def measure(metric: str, num_samples: int, num_reference: int, width: int) -> tuple[float, float, float]:
    """Seconds, seconds of all cores together, and peak GiB of the process."""
    from diffusers_cg.evaluation import feature_statistics, frechet_distance, precision_recall

    samples, reference = features(num_samples, width, 0), features(num_reference, width, 1)
    started, started_cores = time.monotonic(), time.process_time()
    if metric == "FID":
        frechet_distance(*feature_statistics(samples), *feature_statistics(reference))
    else:
        precision_recall(reference, samples)
    seconds, core_seconds = time.monotonic() - started, time.process_time() - started_cores
    return seconds, core_seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class CostSettings(Settings):
    num_samples: PositiveInt = 50_000
    num_reference: PositiveInt = 10_000
    width: PositiveInt = 2048


def main(args: CostSettings) -> None:
    sizes = (args.num_samples, args.num_reference, args.width)
    print(f"{args.num_samples} samples, {args.num_reference} reference images, {args.width} features; ", end="")
    print(
        f"{len(os.sched_getaffinity(0))} cores\n\n| metric | time | core time | peak memory |\n| --- | --- | --- | --- |",
        flush=True,
    )
    for metric in ("FID", "precision and recall"):
        # a fresh process, whose peak is its own
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            seconds, core_seconds, peak = pool.submit(measure, metric, *sizes).result()
        print(f"| {metric} | {seconds:.0f} s | {core_seconds:.0f} s | {peak:.2f} GiB |", flush=True)


if __name__ == "__main__":
    run_script(main, CostSettings, __doc__)
