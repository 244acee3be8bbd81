"""The paper's architecture ablations (Tables 1 to 3) on digits, every variant trained for the same time.

    OMP_NUM_THREADS=1 python benchmarks/ablations.py --cpu_seconds 300 --output_dir ablations

Every variant is trained by `training/train_unet.py` on the 1,437 training digits at 8x8 until its process has used
`--cpu_seconds` of processor time (start-up included, which is the same for all), stopped by SIGTERM as a user would, and
finished from its checkpoint. Its averaged weights then draw `--num_samples` digits, which are compared with the training
digits by the Frechet distance in the space of an independent judge's margins. The paper compares its own variants by FID
at equal iterations; beside ours stand its changes at 700K. The baseline is trained for `--num_seeds` seeds: what lies
within their spread is noise.

A run that was stopped goes on with the variants that are missing (`results.json`); `table.md` holds what is there.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from digits_judge import RESOLUTION, DigitsJudge, real_digits
from pydantic import PositiveFloat, PositiveInt

from diffusers_cg import ClassifierGuidedDDIMPipeline
from diffusers_cg.data.images import resize_and_crop
from diffusers_cg.errors import InputError
from diffusers_cg.evaluation import feature_statistics, frechet_distance
from diffusers_cg_cli.command import run_script
from diffusers_cg_cli.settings import Settings


TRAINING = Path(__file__).parents[1] / "training"
COMMON = (
    "--resolution 8 --channels 1 --center_crop --channel_multipliers 1 2 2 --norm_num_groups 8 "
    "--ddpm_beta_schedule squaredcos_cap_v2 --train_batch_size 64 --learning_rate 5e-4 "
    "--save_images_epochs 0 --checkpointing_steps 0 --logger none"
)
WIDE, DEEP = "--base_channels 32 --layers_per_block 1", "--base_channels 24 --layers_per_block 2"
ONE_LEVEL, ALL_LEVELS = "--attention_resolutions 4", "--attention_resolutions 8 4 2"
ONE_HEAD, FOUR_HEADS = "--num_attention_heads 1", "--num_attention_heads 4"
PLAIN, BIGGAN = "--resample_type conv", "--resample_type resnet"
BASELINE = (WIDE, ONE_HEAD, ONE_LEVEL, PLAIN)
ADM = (DEEP, FOUR_HEADS, ALL_LEVELS, BIGGAN)

# variant: (flags, the paper's FID or its change from the first row of the table)
TABLES = {
    "Table 1: changes to the baseline (paper: 15.33)": {
        "baseline": (BASELINE, ""),
        "depth (twice the blocks, 3/4 of the width)": ((DEEP, *BASELINE[1:]), "-0.21"),
        "4 heads": ((WIDE, FOUR_HEADS, ONE_LEVEL, PLAIN), "-0.54"),
        "attention at 8, 4, 2 (paper: 32, 16, 8)": ((WIDE, ONE_HEAD, ALL_LEVELS, PLAIN), "-0.72"),
        "BigGAN up- and downsampling": ((WIDE, ONE_HEAD, ONE_LEVEL, BIGGAN), "-1.20"),
        "rescaled residuals": ((*BASELINE, "--rescale_residual"), "+0.16"),
        "all but rescaled residuals": (ADM, "-3.14"),
    },
    "Table 2: heads (paper: one head 14.08)": {
        "1 head": ((DEEP, ONE_HEAD, *ADM[2:]), ""),
        "2 heads": ((DEEP, "--num_attention_heads 2", *ADM[2:]), "-0.50"),
        "4 heads": (ADM, "-0.97"),
        "8 heads": ((DEEP, "--num_attention_heads 8", *ADM[2:]), "-1.17"),
        "6 channels per head (paper: 32)": ((DEEP, "--attention_head_dim 6", *ADM[2:]), "-1.36"),
        "12 channels per head (paper: 64)": ((DEEP, "--attention_head_dim 12", *ADM[2:]), "-1.03"),
        "24 channels per head (paper: 128)": ((DEEP, "--attention_head_dim 24", *ADM[2:]), "-1.08"),
    },
    "Table 3: embeddings (paper: AdaGN 13.06)": {
        "AdaGN": (ADM, ""),
        "addition and GroupNorm": ((*ADM, "--resnet_time_scale_shift default"), "+2.02"),
    },
}


class AblationSettings(Settings):
    cpu_seconds: PositiveFloat = 300
    """Processor time of every training."""
    num_samples: PositiveInt = 1000
    """Images per variant."""
    num_inference_steps: PositiveInt = 25
    """DDIM steps."""
    num_seeds: PositiveInt = 2
    """Trainings of the baseline."""
    output_dir: Path


def run_name(flags: tuple[str, ...], seed: int) -> str:
    """A folder's name, the same for the same network in two tables."""
    return re.sub(r"-*(\w*_)?", "", " ".join(flags)).replace(" ", "-") + f"-seed{seed}"


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def train(args: AblationSettings, flags: tuple[str, ...], seed: int, folder: Path) -> int:
    """Trains for the time given into a pipeline at `folder`, and returns the number of steps."""
    words = f"{COMMON} {' '.join(flags)}".split()
    data = ["--train_data_dir", args.output_dir / "digits" / "train", "--seed", seed, "--output_dir", folder]
    command = [sys.executable, *map(str, (TRAINING / "train_unet.py", *words, *data))]
    with open(args.output_dir / f"{folder.name}.log", "w") as log:
        process = subprocess.Popen([*command, "--num_epochs", "1000000"], stdout=log, stderr=log)
        while process.poll() is None and cpu_seconds(process.pid) < args.cpu_seconds:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        if process.wait() != 0:
            raise SystemExit(f"error: the training of {folder.name} failed: see {log.name}.")
        (checkpoint,) = folder.glob("checkpoint-*")
        steps = int(checkpoint.name.rpartition("-")[2])
        # nothing is left to train: the averaged weights are saved as the result
        finish = ["--max_train_steps", str(steps), "--resume_from_checkpoint", "latest"]
        subprocess.run([*command, *finish], stdout=log, stderr=log, check=True)
    return steps


@torch.no_grad()
def draw(args: AblationSettings, folder: Path) -> np.ndarray:
    """Digits (N, 16, 16, 1) in [0, 1], enlarged as the real ones are for the judge."""
    pipe = ClassifierGuidedDDIMPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    images = pipe(
        class_labels=[number % 10 for number in range(args.num_samples)],
        num_inference_steps=args.num_inference_steps,
        generator=torch.Generator().manual_seed(0),
    ).images
    return (
        np.stack([np.asarray(resize_and_crop(image, RESOLUTION, center_crop=True)) for image in images])[..., None]
        / 255
    )


def format_tables(args: AblationSettings, results: dict[str, dict]) -> str:
    lines = []
    for title, variants in TABLES.items():
        lines += [
            f"**{title}**",
            "",
            "| variant | steps | Frechet distance | change | paper |",
            "| --- | --- | --- | --- | --- |",
        ]
        reference = None
        for number, (variant, (flags, paper)) in enumerate(variants.items()):
            is_baseline = flags == BASELINE
            for seed in range(args.num_seeds if is_baseline else 1):
                found = results.get(run_name(flags, seed))
                if found is None:
                    continue
                distance = found["frechet_distance"]
                if number == 0 and seed == 0:
                    reference = distance
                change = "" if number == seed == 0 or reference is None else f"{distance - reference:+.2f}"
                name = f"{variant}, seed {seed}" if is_baseline else variant
                lines.append(f"| {name} | {found['steps']:,} | {distance:.2f} | {change} | {paper} |")
        lines.append("")
    return "\n".join(lines)


def main(args: AblationSettings) -> None:
    args.output_dir.mkdir(parents=True, exist_ok=True)
    path = args.output_dir / "results.json"
    settings = {name: getattr(args, name) for name in ("cpu_seconds", "num_samples", "num_inference_steps")}
    stored = json.loads(path.read_text()) if path.exists() else {"settings": settings, "results": {}}
    if stored["settings"] != settings:
        raise InputError(f"{args.output_dir} holds results of other settings ({path}).")
    digits = args.output_dir / "digits"
    subprocess.run([sys.executable, str(TRAINING / "export_digits.py"), "--output_dir", str(digits)], check=True)

    judge = DigitsJudge()
    reference = feature_statistics(judge.features(real_digits()["train"][0]))
    runs = [
        (flags, seed)
        for variants in TABLES.values()
        for flags, _ in variants.values()
        for seed in range(args.num_seeds if flags == BASELINE else 1)
    ]
    for flags, seed in runs:
        name = run_name(flags, seed)
        if name in stored["results"]:
            continue
        folder = args.output_dir / name
        shutil.rmtree(folder, ignore_errors=True)  # of a training that was stopped halfway
        steps = train(args, flags, seed, folder)
        statistics = feature_statistics(judge.features(draw(args, folder)))
        stored["results"][name] = {"steps": steps, "frechet_distance": frechet_distance(*reference, *statistics)}
        path.write_text(json.dumps(stored, indent=2) + "\n")
        (args.output_dir / "table.md").write_text(format_tables(args, stored["results"]))
        print(name, stored["results"][name], flush=True)
    print(format_tables(args, stored["results"]))


if __name__ == "__main__":
    os.environ["ACCELERATE_USE_CPU"] = "true"  # processor time is what variants have equally
    run_script(main, AblationSettings, __doc__)
