"""`diffusers-cg convert`: OpenAI's checkpoints as pipelines."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from diffusers_cg_cli.app import app
from diffusers_cg_cli.command import command
from diffusers_cg_cli.options import Dtype


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
    from diffusers_cg.data.files import atomic_directory
    from diffusers_cg.hub.model_card import write_openai_model_card
    from diffusers_cg.models import DTYPES
    from diffusers_cg.pipelines.conversion import convert_checkpoints

    classifier_facts = {}
    if classifier_attention_head_dim is not None:
        classifier_facts = {"attention_head_dim": classifier_attention_head_dim, "new_attention_order": False}
    pipe, preset = convert_checkpoints(
        unet,
        classifier,
        torch_dtype=DTYPES[dtype],
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
    with atomic_directory(output, replaces="model_index.json") as directory:
        pipe.save_pretrained(directory, max_shard_size=max_shard_size)
        if preset is not None:
            classifier_file = None if classifier is None else classifier.name
            write_openai_model_card(directory, pipe, unet.name, classifier_file, dtype=dtype, name=output.name)
    if preset is not None:
        print("OpenAI released these weights for research, not for deployment: see README.md in the folder.")
    print(f"Saved {output}.")
