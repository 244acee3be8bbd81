"""`diffusers-cg nll`: bits per dimension of images."""

from pathlib import Path
from typing import Annotated

import typer

from diffusers_cg_cli.app import app
from diffusers_cg_cli.command import command
from diffusers_cg_cli.options import DEVICE, MODEL


@app.command()
@command
def nll(
    model: Annotated[str, MODEL],
    data: Annotated[
        Path, typer.Option("--data", help="Folder of images; of a subfolder per class if the unet is conditional.")
    ],
    output: Annotated[Path, typer.Option("--output", help="Folder to write; a report that is there is replaced.")],
    num_inference_steps: Annotated[
        int | None, typer.Option("--num_inference_steps", help="Timesteps of the process; all by default.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="What the noise follows from.")] = 0,
    batch_size: Annotated[int, typer.Option("--batch_size", help="Images at once; changes no number.")] = 8,
    device: Annotated[str | None, DEVICE] = None,
) -> None:
    """Measures bits per dimension of images by the variational bound: nll.json, terms.npz and nll.png.

    Images are resized and cropped in the middle as for training.
    """
    from diffusers_cg.evaluation.bits_per_dimension import likelihood_to_folder

    likelihood = likelihood_to_folder(output, model, data, num_inference_steps, seed, batch_size, device)
    print(
        f"{likelihood.bits_per_dimension:.4f} bits per dimension (standard error {likelihood.standard_error:.4f}), "
        f"{likelihood.num_images} images, {likelihood.num_timesteps} timesteps."
    )
    print(f"Saved {output}.")
