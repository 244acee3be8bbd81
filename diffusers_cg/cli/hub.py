"""`diffusers-cg push` and `demo`: a model on the Hub, and a page to try it on."""

from pathlib import Path
from typing import Annotated

import typer

from diffusers_cg_cli.app import ManyValues, app
from diffusers_cg_cli.command import command
from diffusers_cg_cli.options import DEVICE, MODEL


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
    from diffusers_cg.hub.publishing import push_folder

    known = {"license": license, "datasets": datasets or None, "base_model": base_model}
    commit = push_folder(folder, name, private, token, with_code, grid, report, **known)
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
    from diffusers_cg.demo.page import DemoModel, build_page

    title = title or Path(model).name
    if space is not None:
        from diffusers_cg.demo.space import write_space

        write_space(model, space, title)
        print(f"Saved {space}.")
        return
    page = build_page(DemoModel.load(model, device), title)
    page.launch(server_name=host, server_port=port, footer_links=[])
