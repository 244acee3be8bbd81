"""The page of a model as a Space of the Hub."""

import importlib
import shutil
from collections.abc import Sequence
from importlib.metadata import requires
from pathlib import Path

from huggingface_hub import SpaceCard, SpaceCardData
from packaging.requirements import Requirement

from diffusers_cg.data.files import atomic_directory
from diffusers_cg.data.text import in_markdown
from diffusers_cg.errors import InputError, import_extra
from diffusers_cg.generation import GuidanceFile, SchedulerChoice
from diffusers_cg.generation.saved_pipeline import check_path
from diffusers_cg.hub.model_card import CARD_FILE
from diffusers_cg.hub.publishing import check_files, published_files
from diffusers_cg.hub.standalone_code import PACKAGE


APP_FILE, MODEL_FOLDER, GUIDANCE_FILE = "app.py", "model", "guidance.yaml"
DISTRIBUTION, EXTRA = "diffusers-cg", "demo"
NOT_NEEDED = ("cli", "training")

APP = '''"""A page to try a model on."""

from pathlib import Path

from diffusers_cg.demo.page import DemoModel, build_page
{imports}

page = build_page(DemoModel.load({arguments}), {title!r})

if __name__ == "__main__":
    page.launch()
'''

README = """
# {title}

A page to try a model on: choose a class and see it drawn, step by step, by classifier guidance (*Diffusion Models Beat GANs
on Image Synthesis*). Written by `diffusers-cg demo --space`; `python {app}` runs it anywhere, once what `requirements.txt`
lists is installed. `{package}/` is a copy of the package that draws.
"""


def write_space(
    model: str,
    directory: str | Path,
    title: str,
    scheduler: Sequence[str] | None = None,
    guidance: str | Path | None = None,
) -> None:
    """Writes `app.py`, `requirements.txt`, `README.md` and a copy of this package; a model that is a folder comes along.

    Args:
        model (`str`): Folder, or name on the Hub.
        directory (`str` or `Path`): Written whole or not at all; a Space that is there is replaced.
        title (`str`): Of the page.
        scheduler (sequence of `str`, *optional*): As [`SchedulerChoice.parse`] takes it.
        guidance (`str` or `Path`, *optional*): A [`GuidanceFile`], which comes along.

    Raises:
        InputError, FileExistsError: if the model's folder, or the one to write, is something else, or the guidance is by a
            network that is not on the Hub.
    """
    gradio = import_extra("gradio", EXTRA)
    check_path(model)
    imports, more, extras = [], [], [EXTRA]
    if scheduler is not None:
        SchedulerChoice.parse(scheduler)
        imports.append("SchedulerChoice")
        more.append(f"scheduler=SchedulerChoice.parse({list(scheduler)!r})")
    if guidance is not None:
        for network in GuidanceFile(guidance).network_paths:
            if Path(network).expanduser().exists():
                raise InputError(
                    f"{guidance} names the folder {network}, which a Space has not: name a network on the Hub."
                )
        imports.append("GuidanceFile")
        more.append(f'guidance=GuidanceFile(Path(__file__).parent / "{GUIDANCE_FILE}")')
        extras.append("guidance")
    folder = Path(model)
    with atomic_directory(directory, replaces=APP_FILE) as space:
        path = repr(model)
        if folder.exists():
            check_files(folder)
            _copy({f"{MODEL_FOLDER}/{name}": file for name, file in published_files(folder).items()}, space)
            path = f'str(Path(__file__).parent / "{MODEL_FOLDER}")'
        if guidance is not None:
            shutil.copy(guidance, space / GUIDANCE_FILE)
        app = APP.format(
            title=title,
            arguments=", ".join([path, *more]),
            imports=f"from diffusers_cg.generation import {', '.join(sorted(imports))}\n" if imports else "",
        )
        if "Path(__file__)" not in app:
            app = app.replace("from pathlib import Path\n\n", "")
        (space / APP_FILE).write_text(app)
        _copy(package_files(), space)
        (space / "requirements.txt").write_text("".join(f"{line}\n" for line in requirements(extras)))
        data = SpaceCardData(
            title=title,
            sdk="gradio",
            sdk_version=gradio.__version__,
            app_file=APP_FILE,
            license="apache-2.0",
            models=[] if folder.exists() else [model],
            tags=["diffusers-cg"],
        )
        card = f"---\n{data.to_yaml()}\n---\n{README.format(title=in_markdown(title), app=APP_FILE, package=PACKAGE)}"
        SpaceCard(card).save(space / CARD_FILE)


def package_files() -> dict[str, Path]:
    """The Python files of this package, but for training and the command line, by their paths in it.

    A Space installs packages from an index, where this one is not.
    """
    files = {}
    for module in (PACKAGE, f"{PACKAGE}.pipelines"):  # which lie apart where the package is installed editable
        root = Path(importlib.import_module(module).__file__).parent
        paths = (path.relative_to(root) for path in root.rglob("*.py"))
        files |= {
            f"{module.replace('.', '/')}/{path}": root / path for path in paths if path.parts[0] not in NOT_NEEDED
        }
    return files


def requirements(extras: Sequence[str] = (EXTRA,)) -> list[str]:
    """What this package needs to show a page, and for other extras, as pip takes it."""
    listed = [Requirement(line) for line in requires(DISTRIBUTION)]
    needed = [
        each
        for each in listed
        if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in extras)
    ]
    return [f"{each.name}{each.specifier}" for each in needed]


def _copy(files: dict[str, Path], directory: Path) -> None:
    """Copies files to their paths below a folder."""
    for name, file in files.items():
        copy = directory / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
