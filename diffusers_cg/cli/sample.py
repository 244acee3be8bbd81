"""`diffusers-cg sample`: many images from a saved pipeline."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from diffusers_cg.errors import InputError
from diffusers_cg_cli.app import ManyValues, app
from diffusers_cg_cli.command import command
from diffusers_cg_cli.options import BATCH_SIZE, DEVICE, DTYPE, MODEL, SEED, Dtype, given


@app.command(cls=ManyValues)
@command
def sample(
    model: Annotated[str, MODEL],
    output: Annotated[Path, typer.Option("--output", help="Folder of the samples; an earlier run's goes on.")],
    num_samples: Annotated[int, typer.Option("--num_samples", help="Images in all.")] = 16,
    classes: Annotated[
        list[int] | None,
        typer.Option("--classes", help="Class labels; all of the model's by default, if it needs any."),
    ] = None,
    random_classes: Annotated[
        bool, typer.Option("--random_classes", help="Draw each image's class, instead of as many of each.")
    ] = False,
    sampler: Annotated[
        Literal["ddpm", "ddim"], typer.Option("--sampler", help="Algorithm 1 or 2 of the paper, in both stages.")
    ] = "ddpm",
    num_inference_steps: Annotated[
        int | None, typer.Option("--num_inference_steps", help="Steps of the first stage; saved with it by default.")
    ] = None,
    timesteps: Annotated[
        list[int] | None, typer.Option("--timesteps", help="Its timesteps, decreasing, in place of a number of steps.")
    ] = None,
    classifier_scale: Annotated[
        float | None, typer.Option("--classifier_scale", help="Its scale of guidance, 0 for none; saved by default.")
    ] = None,
    eta: Annotated[
        float | None, typer.Option("--eta", help="Noise of DDIM's steps, 0 (default) to 1, in both stages.")
    ] = None,
    upsampler: Annotated[
        str | None, typer.Option("--upsampler", help="Upsampling pipeline for the images of the first.")
    ] = None,
    upsampler_num_inference_steps: Annotated[
        int | None, typer.Option("--upsampler_num_inference_steps", help="Steps of the upsampler.")
    ] = None,
    upsampler_classifier_scale: Annotated[
        float | None, typer.Option("--upsampler_classifier_scale", help="Scale of guidance of the upsampler.")
    ] = None,
    low_res_noise: Annotated[
        float | None, typer.Option("--low_res_noise", help="Noise on what the upsampler gets; see its training.")
    ] = None,
    low_res_blur: Annotated[
        float | None, typer.Option("--low_res_blur", help="Blur of what the upsampler gets, in pixels.")
    ] = None,
    seed: Annotated[int, SEED] = 0,
    batch_size: Annotated[int, BATCH_SIZE] = 8,
    png: Annotated[bool, typer.Option("--png/--no_png", help="Leave a file per image, in a folder per class.")] = True,
    npz: Annotated[
        bool, typer.Option("--npz/--no_npz", help="Leave samples.npz, in the layout of the reference.")
    ] = False,
    dtype: Annotated[Dtype, DTYPE] = "fp32",
    device: Annotated[str | None, DEVICE] = None,
) -> None:
    """Draws images into a folder per class, or into samples.npz, and a grid of some of them into grid.png.

    Stopped and started again it goes on. With `accelerate launch -m diffusers_cg sample ...` several processes share the
    work. With --upsampler the first pipeline draws all images at its low resolution, and then the second one upsamples
    them: one of the two is in memory at a time.
    """
    from diffusers_cg.generation import Stage, sample_to_folder, start_processes
    from diffusers_cg.models import DTYPES

    of_upsampler = {
        "num_inference_steps": upsampler_num_inference_steps,
        "classifier_scale": upsampler_classifier_scale,
    }
    low_res = given(low_res_noise=low_res_noise, low_res_blur=low_res_blur)
    upsampling = None
    if upsampler is not None:
        upsampling = Stage(upsampler, sampler, **of_upsampler, dtype=DTYPES[dtype], options=given(eta=eta) | low_res)
    elif low_res or given(**of_upsampler):
        raise InputError("Flags of the upsampler need one: pass --upsampler, or leave them out.")
    options = given(eta=eta, timesteps=timesteps or None)
    sample_to_folder(
        output,
        Stage(model, sampler, num_inference_steps, classifier_scale, DTYPES[dtype], options),
        upsampling,
        num_samples=num_samples,
        classes=classes or None,
        random_classes=random_classes,
        seed=seed,
        batch_size=batch_size,
        png=png,
        npz=npz,
        device=device,
    )
    start_processes().print(f"Saved {output}.")
