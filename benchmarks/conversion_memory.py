"""Peak memory and time of `diffusers-cg convert` for a checkpoint of real size.

    python benchmarks/conversion_memory.py --checkpoint 256x256_diffusion

makes a file of random numbers in the layout of one of OpenAI's released checkpoints (`tests/data/manifests`), converts
it in a process of its own, and prints that process's peak memory in units of the file's size.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

import torch

from diffusers_cg_cli.settings import Settings, parse


MANIFESTS = Path(__file__).parents[1] / "tests" / "data" / "manifests"


class ConversionSettings(Settings):
    checkpoint: Literal[tuple(sorted(path.stem for path in MANIFESTS.iterdir()))] = "64x64_diffusion"
    dtype: Literal["fp32", "fp16", "bf16"] = "fp32"


def main(args: ConversionSettings) -> None:
    shapes = json.loads((MANIFESTS / f"{args.checkpoint}.json").read_text())["shapes"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{args.checkpoint}.pt"
        torch.save({name: torch.randn(shape) for name, shape in shapes.items()}, path)
        size = path.stat().st_size
        started = time.monotonic()
        convert = ["convert", str(path), "--dtype", args.dtype, "--output", str(Path(folder) / "pipeline")]
        process = subprocess.Popen([sys.executable, "-m", "diffusers_cg", *convert])
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - started
    if process.returncode != 0:
        raise SystemExit(process.returncode)
    peak = usage.ru_maxrss * 1024
    print(
        f"{args.checkpoint} to {args.dtype}: file {size / 2**30:.2f} GiB, peak {peak / 2**30:.2f} GiB "
        f"({peak / size:.2f} x the file), {seconds:.0f} s"
    )


if __name__ == "__main__":
    main(parse(ConversionSettings, description=__doc__))
