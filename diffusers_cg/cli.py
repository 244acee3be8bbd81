"""The command `diffusers-cg`: thin; what it calls can be called from Python."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from diffusers_cg.errors import UserError, command, user_errors


if TYPE_CHECKING:
    import torch

    from diffusers_cg.evaluation import FeatureExtractor, FeatureStatistics, ImageSet
    from diffusers_cg.sweep import Sampler


app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


class ManyValues(TyperCommand):
    """A command whose repeatable flags also take their values in a row: `--classes 1 2` for `--classes 1 --classes 2`."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        repeatable = {flag for param in self.params if getattr(param, "multiple", False) for flag in param.opts}
        spelled, flag = [], None
        for arg in args:
            if arg.startswith("-"):
                flag = arg if arg in repeatable else None
            if flag is None:
                spelled.append(arg)
            elif arg != flag:
                spelled += [flag, arg]
        return super().parse_args(ctx, spelled)


@app.callback()
def diffusers_cg() -> None:
    """ADM and classifier guidance on diffusers."""


Dtype = Literal["fp32", "fp16", "bf16"]
# flags that several commands have
MODEL = typer.Option("--model", help="Pipeline that draws from noise: its folder, or Hub name.")
CLASSES = typer.Option("--classes", help="Class labels; all of the model's by default, if it needs any.")
RANDOM_CLASSES = typer.Option("--random_classes", help="Draw each image's class, instead of as many of each.")
SEED = typer.Option("--seed", help="What the images follow from.")
BATCH_SIZE = typer.Option("--batch_size", help="Images at once; changes none of them.")
DTYPE = typer.Option("--dtype", help="Precision of the networks.")
DEVICE = typer.Option("--device", help="cuda, cpu, ...; a GPU if there is one by default.")
REFERENCE = typer.Option(
    "--reference",
    help="Real images: an .npz (arr_0 uint8; or mu, sigma, mu_s, sigma_s), a folder, or a dataset: its folder or Hub "
    "name.",
)
RESOLUTION = typer.Option(
    "--resolution", help="Resize images of folders and datasets to this side and crop them, as for training."
)
SPLIT = typer.Option("--split", help="Of a dataset: train, validation, ...; the only one by default.")
CONFIG_NAME = typer.Option("--config_name", help="Configuration of a dataset that has several.")
IMAGE_COLUMN = typer.Option("--image_column", help="Of a dataset; its only column of images by default.")
EXTRACTOR = typer.Option("--extractor", help="inception, or module:function of your own.")
INCEPTION_WEIGHTS = typer.Option("--inception_weights", help="torch-fidelity's file; downloaded by default.")
CACHE_DIR = typer.Option(
    "--cache_dir", help="Keeps features of references; reference_features beside --output by default."
)


def given(**options: Any) -> dict[str, Any]:
    """Those options that are not None."""
    return {name: value for name, value in options.items() if value is not None}


DIFFUSERS_SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
FACTS = "Facts that only a checkpoint other than OpenAI's 15 released ones needs"


@app.command()
@command
def convert(
    unet: Annotated[Path, typer.Argument(metavar="UNET.pt", help="OpenAI's file, or one of its layout.")],
    output: Annotated[Path, typer.Option("--output", help="Folder to write; a pipeline that is there is replaced.")],
    classifier: Annotated[Path | None, typer.Option("--classifier", help="The classifier's file.")] = None,
    dtype: Annotated[Dtype, typer.Option("--dtype", help="Precision of the stored weights.")] = "fp32",
    max_shard_size: Annotated[
        str, typer.Option("--max_shard_size", help="Larger files of weights are split.")
    ] = "10GB",
    sample_size: Annotated[
        int | None, typer.Option("--sample_size", help="Side of the image in pixels.", rich_help_panel=FACTS)
    ] = None,
    attention_head_dim: Annotated[
        int | None, typer.Option("--attention_head_dim", help="num_head_channels.", rich_help_panel=FACTS)
    ] = None,
    num_attention_heads: Annotated[
        int | None, typer.Option("--num_attention_heads", help="num_heads.", rich_help_panel=FACTS)
    ] = None,
    new_attention_order: Annotated[
        bool | None,
        typer.Option(
            "--new_attention_order/--legacy_attention_order", help="use_new_attention_order.", rich_help_panel=FACTS
        ),
    ] = None,
    beta_schedule: Annotated[
        Literal["linear", "cosine"] | None,
        typer.Option("--beta_schedule", help="noise_schedule; linear by default.", rich_help_panel=FACTS),
    ] = None,
    low_res_size: Annotated[
        int | None,
        typer.Option("--low_res_size", help="Side of an upsampler's low-resolution images.", rich_help_panel=FACTS),
    ] = None,
    classifier_attention_head_dim: Annotated[
        int | None, typer.Option("--classifier_attention_head_dim", help="64 in OpenAI's.", rich_help_panel=FACTS)
    ] = None,
) -> None:
    """Turns guided-diffusion checkpoints into a pipeline folder.

    ClassifierGuidedDDPMPipeline and ClassifierGuidedDDIMPipeline both load the folder, and that of an upsampler
    ClassifierGuidedSuperResolutionPipeline; schedule, steps and scale of the paper are saved in it. The files are read
    without executing anything in them.
    """
    from diffusers_cg.hub.conversion import convert_checkpoints

    classifier_facts = {}
    if classifier_attention_head_dim is not None:
        classifier_facts = {"attention_head_dim": classifier_attention_head_dim, "new_attention_order": False}
    with user_errors():
        released = convert_checkpoints(
            unet,
            classifier,
            output,
            dtype=dtype,
            max_shard_size=max_shard_size,
            beta_schedule=None if beta_schedule is None else DIFFUSERS_SCHEDULES[beta_schedule],
            unet_facts={
                "sample_size": sample_size,
                "attention_head_dim": attention_head_dim,
                "num_attention_heads": num_attention_heads,
                "new_attention_order": new_attention_order,
            },
            classifier_facts=classifier_facts,
            low_res_size=low_res_size,
        )
    if released is not None:
        print("OpenAI released these weights for research, not for deployment: see README.md in the folder.")
    print(f"Saved {output}.")


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
    from diffusers_cg.hub.conversion import DTYPES
    from diffusers_cg.sampling import Stage, sample_to_folder, start_processes

    of_upsampler = {
        "num_inference_steps": upsampler_num_inference_steps,
        "classifier_scale": upsampler_classifier_scale,
    }
    low_res = given(low_res_noise=low_res_noise, low_res_blur=low_res_blur)
    with user_errors():
        upsampling = None
        if upsampler is not None:
            upsampling = Stage(
                upsampler, sampler, **of_upsampler, dtype=DTYPES[dtype], options=given(eta=eta) | low_res
            )
        elif low_res or given(**of_upsampler):
            raise UserError("Flags of the upsampler need one: pass --upsampler, or leave them out.")
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


@app.command()
@command
def evaluate(
    samples: Annotated[
        str, typer.Argument(metavar="SAMPLES", help="Images or statistics to measure, given as the reference is.")
    ],
    reference: Annotated[str, REFERENCE],
    output: Annotated[Path, typer.Option("--output", help="Folder to write; a report that is there is replaced.")],
    resolution: Annotated[int | None, RESOLUTION] = None,
    split: Annotated[str | None, SPLIT] = None,
    config_name: Annotated[str | None, CONFIG_NAME] = None,
    image_column: Annotated[str | None, IMAGE_COLUMN] = None,
    extractor: Annotated[str, EXTRACTOR] = "inception",
    inception_weights: Annotated[Path | None, INCEPTION_WEIGHTS] = None,
    cache_dir: Annotated[Path | None, CACHE_DIR] = None,
    batch_size: Annotated[int, typer.Option("--batch_size", help="Images at once; changes no number.")] = 64,
    device: Annotated[
        str | None, typer.Option("--device", help="Of Inception: cuda, cpu, ...; a GPU if there is one by default.")
    ] = None,
) -> None:
    """Measures FID, sFID, Inception Score, precision and recall of samples into report.json and report.md.

    The features of the reference's images are kept for the next samples. Between statistics (mu, sigma) no extractor is
    needed, and there are Frechet distances alone.
    """
    from diffusers_cg.evaluation import ImageSet
    from diffusers_cg.evaluation import evaluate as measure
    from diffusers_cg.evaluation.inception import INCEPTION
    from diffusers_cg.evaluation.report import REPORT_FILE
    from diffusers_cg.files import atomic_directory
    from diffusers_cg.sampling import resolve_device

    with user_errors(), atomic_directory(output, replaces=REPORT_FILE) as directory:
        sets = open_sets([samples, reference], resolution, split, config_name, image_column)
        loaded = None
        if extractor != INCEPTION or inception_weights or any(isinstance(each, ImageSet) for each in sets):
            loaded = open_extractor(extractor, inception_weights, resolve_device(device))
        evaluation = measure(
            *sets,
            loaded,
            batch_size=batch_size,
            cache_dir=cache_dir or output.parent / "reference_features",
            progress_bar=True,
        )
        evaluation.save(directory)
    print(evaluation.to_markdown())
    print(f"Saved {output}.")


def open_sets(
    sources: list[str], resolution: int | None, split: str | None, config_name: str | None, image_column: str | None
) -> list["ImageSet | FeatureStatistics"]:
    """Opens what the flags of `evaluate` and `sweep` name."""
    from diffusers_cg.evaluation import open_set
    from diffusers_cg.evaluation.dataset_files import is_dataset

    of_dataset = given(split=split, config_name=config_name, image_column=image_column)
    if of_dataset and not any(map(is_dataset, sources)):
        raise UserError(
            f"--split, --config_name and --image_column are for datasets, and {' and '.join(sources)} is none: leave "
            "them out."
        )
    return [open_set(source, resolution, **of_dataset, progress_bar=True) for source in sources]


def open_extractor(
    extractor: str,
    inception_weights: Path | None,
    device: "torch.device",
) -> "FeatureExtractor":
    """The extractor that the flags name."""
    from diffusers_cg.evaluation import InceptionFeatures, load_extractor
    from diffusers_cg.evaluation.inception import INCEPTION

    if extractor != INCEPTION:
        if inception_weights is not None:
            raise UserError(f"--inception_weights is for the extractor {INCEPTION}, not for {extractor}.")
        return load_extractor(extractor)
    return InceptionFeatures(inception_weights, device)


@app.command(cls=ManyValues)
@command
def sweep(
    model: Annotated[str, MODEL],
    reference: Annotated[str, REFERENCE],
    scales: Annotated[list[float], typer.Option("--scales", help="Scales of guidance, 0 for none.")],
    samplers: Annotated[
        list[str], typer.Option("--samplers", help="ddpm or ddim and its steps, as in ddpm:250 ddim:25.")
    ],
    num_samples: Annotated[int, typer.Option("--num_samples", help="Images for every sampler and scale.")],
    output: Annotated[Path, typer.Option("--output", help="Folder of the sweep; an earlier one's goes on.")],
    classes: Annotated[list[int] | None, CLASSES] = None,
    random_classes: Annotated[bool, RANDOM_CLASSES] = False,
    seed: Annotated[int, SEED] = 0,
    batch_size: Annotated[int, BATCH_SIZE] = 8,
    resolution: Annotated[int | None, RESOLUTION] = None,
    split: Annotated[str | None, SPLIT] = None,
    config_name: Annotated[str | None, CONFIG_NAME] = None,
    image_column: Annotated[str | None, IMAGE_COLUMN] = None,
    extractor: Annotated[str, EXTRACTOR] = "inception",
    inception_weights: Annotated[Path | None, INCEPTION_WEIGHTS] = None,
    evaluation_batch_size: Annotated[
        int, typer.Option("--evaluation_batch_size", help="Images that are measured at once; changes no number.")
    ] = 64,
    cache_dir: Annotated[Path | None, CACHE_DIR] = None,
    dtype: Annotated[Dtype, DTYPE] = "fp32",
    device: Annotated[str | None, DEVICE] = None,
) -> None:
    """Measures samples of every sampler at every scale, and plots fidelity against diversity.

    Leaves table.md, sweep.json, by_scale.png, trade_off.png and pictures of the same images at every scale. Stopped and
    started again it goes on, also with more scales, samplers or samples; `accelerate launch -m diffusers_cg sweep ...`
    shares the sampling among several processes.
    """
    from diffusers_cg.hub.conversion import DTYPES
    from diffusers_cg.sampling import resolve_device, start_processes
    from diffusers_cg.sweep import TABLE_FILE, sweep_to_folder

    with user_errors():
        parsed = [parse_sampler(text) for text in samplers]
        (opened,) = open_sets([reference], resolution, split, config_name, image_column)
        processes = start_processes()
        with processes.local_main_process_first():  # it downloads weights for the others
            loaded = open_extractor(
                extractor, inception_weights, processes.device if device is None else resolve_device(device)
            )
        sweep_to_folder(
            output,
            model,
            opened,
            loaded,
            scales,
            parsed,
            num_samples,
            classes=classes or None,
            random_classes=random_classes,
            seed=seed,
            batch_size=batch_size,
            evaluation_batch_size=evaluation_batch_size,
            cache_dir=cache_dir or output.parent / "reference_features",
            dtype=DTYPES[dtype],
            device=device,
        )
    if processes.is_main_process:
        print((output / TABLE_FILE).read_text())
        print(f"Saved {output}.")


def parse_sampler(text: str) -> "Sampler":
    """`ddpm:250` as a [`Sampler`]."""
    from diffusers_cg.sweep import Sampler

    name, _, steps = text.partition(":")
    if name not in ("ddpm", "ddim") or not steps.isdecimal():
        raise UserError(f"In --samplers, a sampler is ddpm or ddim and its steps, as in ddpm:250, not {text}.")
    return Sampler(name, int(steps))


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
    from diffusers_cg.likelihood import likelihood_to_folder

    with user_errors():
        likelihood = likelihood_to_folder(output, model, data, num_inference_steps, seed, batch_size, device)
    print(
        f"{likelihood.bits_per_dimension:.4f} bits per dimension (standard error {likelihood.standard_error:.4f}), "
        f"{likelihood.num_images} images, {likelihood.num_timesteps} timesteps."
    )
    print(f"Saved {output}.")


@app.command(cls=ManyValues)
@command
def push(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A saved pipeline, or the result of a training script.")
    ],
    name: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="On the Hub; made where there is none.")],
    private: Annotated[
        bool | None,
        typer.Option("--private/--public", help="Of a repository that is made; the Hub's default is public."),
    ] = None,
    with_code: Annotated[
        bool, typer.Option("--with_code", help="Publish code, too, for those who have diffusers alone.")
    ] = False,
    grid: Annotated[
        Path | None, typer.Option("--grid", help="Picture for the card; drawn by default, unless that takes long.")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option("--report", help="Folder that evaluate wrote; FOLDER by default, if it has a report."),
    ] = None,
    license: Annotated[str | None, typer.Option("--license", help="Identifier of the weights' licence.")] = None,
    datasets: Annotated[
        list[str] | None, typer.Option("--datasets", help="Names, on the Hub, of what the model was trained on.")
    ] = None,
    base_model: Annotated[
        str | None, typer.Option("--base_model", help="Name, on the Hub, of the model that training began from.")
    ] = None,
    token: Annotated[
        str | None, typer.Option("--token", help="Of the Hub; hf auth login or HF_TOKEN by default.")
    ] = None,
) -> None:
    """Publishes a model with its card and samples on the Hub, all at once or not at all.

    A card that is there is kept, and brought up to date where nobody edited it.
    """
    from diffusers_cg.hub.publishing import Extras, push_folder

    known = given(license=license, datasets=datasets or None, base_model=base_model)
    with user_errors():
        commit = push_folder(folder, name, private, token, Extras(with_code, grid, report, known))
    print(f"Published {commit.commit_url}.")


@app.command()
@command
def demo(
    model: Annotated[str, MODEL],
    space: Annotated[
        Path | None, typer.Option("--space", help="Folder to write the page into as a Space of the Hub, to open none.")
    ] = None,
    title: Annotated[str | None, typer.Option("--title", help="Of the page; the model's name by default.")] = None,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; 0.0.0.0 for other machines.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option("--port", help="Port to listen on; the first free one from 7860 by default.")
    ] = None,
    device: Annotated[str | None, DEVICE] = None,
) -> None:
    """Opens a page to try a model on, in the browser."""
    from diffusers_cg.hub.demo import Studio, build_page

    title = title or Path(model).name
    with user_errors():
        if space is not None:
            from diffusers_cg.hub.space import write_space

            write_space(model, space, title)
            print(f"Saved {space}.")
            return
        page = build_page(Studio.load(model, device), title)
    page.launch(server_name=host, server_port=port, footer_links=[])


def main() -> None:
    app()


if __name__ == "__main__":
    main()
