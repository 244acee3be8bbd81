"""Peak memory and time of `diffusers-cg convert` for checkpoints of real size.

    python benchmarks/conversion_memory.py --checkpoint 256x256_diffusion --classifier 256x256_classifier

makes files of random numbers in the layouts of OpenAI's released checkpoints (`tests/data/manifests`), converts them in a
process of its own, and prints that process's peak memory, libraries included, in units of the files' size.
"""

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file

from diffusers_cg.models import DTYPES
from diffusers_cg_cli.command import run_script
from diffusers_cg_cli.settings import Settings


MANIFESTS = Path(__file__).parents[1] / "tests" / "data" / "manifests"
Checkpoint = Literal[tuple(sorted(path.stem for path in MANIFESTS.iterdir()))]


class ConversionSettings(Settings):
    checkpoint: Checkpoint = "64x64_diffusion"
    classifier: Checkpoint | None = None
    dtype: Literal[tuple(DTYPES)] = "fp32"
    """To convert to."""
    file_dtype: Literal[tuple(DTYPES)] = "fp32"
    """Of the files."""
    suffix: Literal[".pt", ".safetensors"] = ".pt"


def write_random(path: Path, dtype: str) -> None:
    shapes = json.loads((MANIFESTS / f"{path.stem}.json").read_text())["shapes"]
    state_dict = {name: torch.randn(shape).to(DTYPES[dtype]) for name, shape in shapes.items()}
    (torch.save if path.suffix == ".pt" else save_file)(state_dict, path)


def main(args: ConversionSettings) -> None:
    with tempfile.TemporaryDirectory() as folder:
        names = [name for name in (args.checkpoint, args.classifier) if name is not None]
        paths = [Path(folder) / f"{name}{args.suffix}" for name in names]
        for path in paths:
            # not here: Linux counts what a process had before it became another one as its own
            writer = multiprocessing.get_context("spawn").Process(target=write_random, args=(path, args.file_dtype))
            writer.start()
            writer.join()
        size = sum(path.stat().st_size for path in paths)
        started = time.monotonic()
        convert = ["convert", str(paths[0]), "--dtype", args.dtype, "--output", str(Path(folder) / "pipeline")]
        convert += ["--classifier", str(paths[1])] if args.classifier else []
        process = subprocess.Popen([sys.executable, "-m", "diffusers_cg", *convert])
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - started
    if process.returncode != 0:
        raise SystemExit(process.returncode)
    peak = usage.ru_maxrss * 1024
    print(
        f"{' and '.join(names)}, {args.file_dtype} to {args.dtype}: files {size / 2**30:.2f} GiB, peak "
        f"{peak / 2**30:.2f} GiB ({peak / size:.2f} x the files), {seconds:.0f} s"
    )


if __name__ == "__main__":
    run_script(main, ConversionSettings, __doc__)
