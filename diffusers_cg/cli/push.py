"""`diffusers-cg push`: a model on the Hub."""

from pathlib import Path
from typing import Annotated

from pydantic import Field
from tyro.conf import Positional

from diffusers_cg_cli.settings import Settings
from diffusers_cg_cli.shared import exclusive


class PushSettings(Settings):
    """Publishes a model with its card and samples on the Hub, all at once or not at all.

    A card that is there is kept, and brought up to date where nobody edited it.
    """

    folder: Positional[Path]
    """A saved pipeline, or the result of a training script."""

    name: Positional[str]
    """OWNER/NAME on the Hub; made where there is none."""

    private: bool = False
    """Of a repository that is made."""

    public: bool = False
    """The opposite, and the Hub's default."""

    with_code: bool = False
    """Publish code, too, for those who have diffusers alone."""

    grid: Path | None = None
    """Picture for the card; drawn by default, unless that takes long."""

    report: Path | None = None
    """Folder that evaluate wrote; FOLDER by default, if it has a report."""

    license: str | None = None
    """Identifier of the weights' licence."""

    datasets: Annotated[list[str], Field(min_length=1)] | None = None
    """Names, on the Hub, of what the model was trained on."""

    base_model: str | None = None
    """Name, on the Hub, of the model that training began from."""

    token: str | None = None
    """Of the Hub; hf auth login or HF_TOKEN by default."""

    _check_opposites = exclusive("private", "public")


def run(settings: PushSettings) -> None:
    from diffusers_cg.hub.publishing import push_folder

    commit = push_folder(
        settings.folder,
        settings.name,
        private=settings.private or (False if settings.public else None),
        token=settings.token,
        with_code=settings.with_code,
        grid=settings.grid,
        report=settings.report,
        license=settings.license,
        datasets=settings.datasets,
        base_model=settings.base_model,
    )
    print(f"Published {commit.commit_url}.")
