"""Bits per dimension of a set of images under a model, as a report, its terms and a plot: what `diffusers-cg nll` leaves."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tqdm.auto import tqdm

from diffusers_cg.data.batches import in_batches
from diffusers_cg.data.files import atomic_directory
from diffusers_cg.diffusion import BitsPerDimension, GaussianDiffusion, bits_per_dimension, seeded_generator
from diffusers_cg.errors import InputError, import_extra


MEANS_FILE, TERMS_FILE, PLOT_FILE = "nll.json", "terms.npz", "nll.png"


@dataclass(frozen=True)
class MeanBitsPerDimension:
    """Means over images, in bits per dimension.

    Args:
        bits_per_dimension (`float`): The bound: the sum of all terms and the prior.
        standard_error (`float`): Of that mean, over the images; 0 for one image.
        prior (`float`): The part that no model can change.
        num_images, num_timesteps, seed (`int`): What it was measured with.
        model, data (`str`): What was measured.
        image_range (`list[float]`, *optional*): The values of black and white that were stated.
    """

    bits_per_dimension: float
    standard_error: float
    prior: float
    num_images: int
    num_timesteps: int
    seed: int
    model: str
    data: str
    image_range: list[float] | None = None


def bits_per_dimension_to_folder(
    output_dir: str | Path,
    diffusion: GaussianDiffusion,
    model: Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor],
    load: Callable[[Sequence[int]], tuple[torch.Tensor, torch.Tensor | None]],
    image_names: Sequence[str],
    clip_range: float | None = 1.0,
    seed: int = 0,
    model_name: str = "",
    data_name: str = "",
    image_range: list[float] | None = None,
    batch_size: int | Literal["auto"] = 8,
    device: str | torch.device = "cpu",
) -> MeanBitsPerDimension:
    """Measures the variational bound of images, all timesteps of each, into `nll.json`, `terms.npz` and `nll.png`.

    The noise of an image follows from the seed and its place in the set alone. The terms are those of
    [`BitsPerDimension`], with the `timesteps` (T,) and `files` (N,) that they belong to.

    Args:
        output_dir (`str` or `Path`): Written whole or not at all; a folder that this function wrote before is replaced.
        diffusion (`GaussianDiffusion`): The process, over all timesteps or a subset of them.
        model (callable): What the network says of x_t (B, C, H, W) at timesteps (B,) int64 with class labels (B,) or
            None; see [`bits_per_dimension`].
        load (callable): The images of these numbers: 8-bit ones in [-1, 1], (B, C, H, W) float32, on the model's device,
            and their class labels (B,) int64, or None.
        image_names (sequence of `str`): What the images are called, (N,).
        clip_range (`float`, *optional*): Bound on the absolute value of predicted clean images; None for no clipping.
        seed (`int`): At least 0.
        model_name, data_name (`str`), image_range (`list[float]`): What `nll.json` says of the model and the images.
        batch_size (`int` or `"auto"`): Images at once, at least 1; see [`in_batches`].
        device (`str` or `torch.device`): The model's.

    Raises:
        InputError: if the seed is negative or there are no images; nothing has been computed by then.
        OSError: if the folder cannot be written, or is one of something else; as above.
        MissingExtraError: if matplotlib is not installed; as above.
    """
    if seed < 0:
        raise InputError(f"`seed` must be at least 0, got {seed}.")
    if not image_names:
        raise InputError("There are no images to measure.")
    import_extra("matplotlib.figure", "eval")  # before hours of work, not after
    with atomic_directory(output_dir, replaces=MEANS_FILE) as directory:
        parts, timesteps = [], diffusion.timesteps
        with tqdm(total=len(image_names) * len(timesteps), desc="Bits per dimension", unit="term") as bar:

            def measure(numbers: Sequence[int]) -> BitsPerDimension:
                clean_images, class_labels = load(numbers)

                def labelled(sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
                    output = model(sample, timestep, class_labels)
                    bar.update(len(sample))
                    return output

                generators = [seeded_generator(seed, number) for number in numbers]
                return bits_per_dimension(diffusion, labelled, clean_images, generators, clip_range)

            for _, part in in_batches(range(len(image_names)), measure, batch_size, device, bar):
                parts.append({name: tensor.cpu() for name, tensor in vars(part).items()})
        terms = BitsPerDimension(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})
        total = terms.total.double()
        means = MeanBitsPerDimension(
            bits_per_dimension=total.mean().item(),
            standard_error=total.std().item() / len(total) ** 0.5 if len(total) > 1 else 0.0,
            prior=terms.prior.double().mean().item(),
            num_images=len(total),
            num_timesteps=len(timesteps),
            seed=seed,
            model=model_name,
            data=data_name,
            image_range=image_range,
        )
        (directory / MEANS_FILE).write_text(json.dumps(asdict(means), indent=2) + "\n")
        np.savez(
            directory / TERMS_FILE,
            timesteps=timesteps.numpy(),
            files=np.array(image_names),
            total=terms.total.numpy(),
            **{name: tensor.numpy() for name, tensor in vars(terms).items()},
        )
        plot_terms(timesteps.tolist(), terms, means.bits_per_dimension, directory / PLOT_FILE)
    return means


def plot_terms(timesteps: list[int], terms: BitsPerDimension, mean: float, path: Path) -> None:
    """Means over images of the terms, and of the errors behind them, by timestep."""
    figure = import_extra("matplotlib.figure", "eval").Figure(figsize=(9, 4), layout="constrained")
    bound, errors = figure.subplots(1, 2)
    bound.plot(timesteps, terms.vb.mean(dim=0).tolist(), marker=".", label="term")
    bound.set(title=f"{mean:.4f} bits per dimension", ylabel="bits per dimension")
    errors.plot(timesteps, terms.mse.mean(dim=0).tolist(), marker=".", label="noise")
    errors.plot(timesteps, terms.xstart_mse.mean(dim=0).tolist(), marker=".", label="clean image")
    errors.set(title="mean squared error of the prediction")
    errors.legend()
    for axes in (bound, errors):
        axes.set(xlabel="timestep (noise level)", yscale="log")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
