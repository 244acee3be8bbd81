"""`diffusers-cg demo`: a page to try a model on."""

from pathlib import Path

from diffusers_cg_cli.shared import SteeredSettings, open_steering


class DemoSettings(SteeredSettings):
    """Opens a page to try a model on, in the browser.

    With --guidance the page's scale multiplies it: 1 is what the file says.
    """

    space: Path | None = None
    """Folder to write the page into as a Space of the Hub, to open none."""

    title: str | None = None
    """Of the page; the model's name by default."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for other machines."""

    port: int | None = None
    """Port to listen on; the first free one from 7860 by default."""


def run(settings: DemoSettings) -> None:
    from diffusers_cg.demo.page import DemoModel, build_page
    from diffusers_cg.demo.space import write_space

    title = settings.title or Path(settings.model).name
    scheduler, guidance = open_steering(settings)
    if settings.space is not None:
        write_space(settings.model, settings.space, title, settings.scheduler, settings.guidance)
        print(f"Saved {settings.space}.")
        return
    page = build_page(DemoModel.load(settings.model, settings.device, scheduler, guidance), title)
    page.launch(server_name=settings.host, server_port=settings.port, footer_links=[])
