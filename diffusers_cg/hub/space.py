"""The page of a model as a Space of the Hub."""

import shutil
from pathlib import Path

from huggingface_hub import SpaceCard, SpaceCardData

from diffusers_cg import __version__
from diffusers_cg.extras import import_extra
from diffusers_cg.files import atomic_directory
from diffusers_cg.hub.model_card import CARD_FILE
from diffusers_cg.hub.publishing import check_files, published_files
from diffusers_cg.sampling.stages import check_path


APP_FILE, MODEL_FOLDER = "app.py", "model"

APP = '''"""The page of {title}."""

from pathlib import Path

from diffusers_cg.hub.demo import Studio, build_page


page = build_page(Studio.load({path}), {title!r})

if __name__ == "__main__":
    page.launch()
'''

README = """
# {title}

A page to try a model on: choose a class and see it drawn, step by step, by classifier guidance (*Diffusion Models Beat GANs
on Image Synthesis*). Written by `diffusers-cg demo --space`; `python {app}` runs it anywhere.
"""


def write_space(model: str, directory: str | Path, title: str) -> None:
    """Writes `app.py`, `requirements.txt` and `README.md`; a model that is a folder is copied along.

    Args:
        model (`str`): Folder, or name on the Hub.
        directory (`str` or `Path`): Written whole or not at all; a Space that is there is replaced.
        title (`str`): Of the page.

    Raises:
        ValueError, FileExistsError: if the model's folder, or the one to write, is something else.
    """
    gradio = import_extra("gradio", "demo")
    check_path(model)
    folder = Path(model)
    with atomic_directory(directory, replaces=APP_FILE) as space:
        path = repr(model)
        if folder.exists():
            check_files(folder)
            for name in published_files(folder):
                copy = space / MODEL_FOLDER / name
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(folder / name, copy)
            path = f'str(Path(__file__).parent / "{MODEL_FOLDER}")'
        app = APP.format(title=title, path=path)
        if not folder.exists():
            app = app.replace("from pathlib import Path\n\n", "")
        (space / APP_FILE).write_text(app)
        (space / "requirements.txt").write_text(f"diffusers-cg[demo]>={__version__}\n")
        data = SpaceCardData(
            title=title,
            sdk="gradio",
            sdk_version=gradio.__version__,
            app_file=APP_FILE,
            license="apache-2.0",
            models=[] if folder.exists() else [model],
            tags=["diffusers-cg"],
        )
        card = f"---\n{data.to_yaml()}\n---\n{README.format(title=title, app=APP_FILE)}"
        SpaceCard(card).save(space / CARD_FILE)
