"""From a folder to the Hub: checked first, then everything in one commit."""

import json
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.pipelines.pipeline_loading_utils import CUSTOM_PIPELINE_FILE_NAME
from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
)
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.utils import HFValidationError, validate_repo_id
from PIL import Image

from diffusers_cg.data.files import list_files
from diffusers_cg.data.grids import image_grid
from diffusers_cg.diffusion.seeds import seeded_generator
from diffusers_cg.errors import InputError
from diffusers_cg.evaluation.report import REPORT_FILE, Evaluation
from diffusers_cg.hub.hub_errors import HubError, hub_sentence
from diffusers_cg.hub.model_card import CARD_FILE, SAMPLES_FILE, describe, read_json, update_card
from diffusers_cg.hub.standalone_code import CODE_MODULE, HOST, PACKAGE, standalone_files
from diffusers_cg.models import NoisyClassifierModel
from diffusers_cg.pipelines import (
    ClassifierGuidedDDIMPipeline,
    ClassifierGuidedDDPMPipeline,
    ClassifierGuidedSuperResolutionPipeline,
)
from diffusers_cg.pipelines.classifier_guided import ClassifierGuidedPipeline


logger = logging.getLogger(__name__)

INDEX_FILE, TRAINING_FILE = "model_index.json", "training.json"
PIPELINES = {
    cls.__name__: cls
    for cls in (ClassifierGuidedDDIMPipeline, ClassifierGuidedDDPMPipeline, ClassifierGuidedSuperResolutionPipeline)
}
WEIGHTS = ".safetensors"
UNPICKLED = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")  # what loading would execute code of
NOT_PUBLISHED = ("checkpoint-*", "logs")  # of a training run
GRID_CLASSES, GRID_ROWS = 10, 3
MAX_CPU_PARAMETERS = 20_000_000  # of a pipeline whose samples are drawn unasked on a CPU: a minute at most


@dataclass(frozen=True)
class Extras:
    """What is published beside the model.

    Args:
        with_code (`bool`): Code for those who have not installed this package.
        grid (`str` or `Path`, *optional*): Picture for the card; drawn where there is none and it does not take long.
        report (`str` or `Path`, *optional*): Folder that `diffusers-cg evaluate` wrote; the model's own by default.
        known (`dict`): `license`, `datasets` and `base_model`, for the card's metadata.
    """

    with_code: bool = False
    grid: str | Path | None = None
    report: str | Path | None = None
    known: dict[str, Any] = field(default_factory=dict)


def push_folder(
    folder: str | Path,
    repo_id: str,
    private: bool | None = None,
    token: str | None = None,
    extras: Extras | None = None,
) -> CommitInfo:
    """Publishes a saved pipeline, or the result of a training script, in one commit.

    The folder is loaded first. Until the commit, the last request of all, nothing new can be seen on the Hub.

    Args:
        folder (`str` or `Path`): Of a pipeline, or of a classifier alone.
        repo_id (`str`): `OWNER/NAME`; made where there is none.
        private (`bool`, *optional*): Of a repository that is made.
        token (`str`, *optional*): That of `hf auth login` or `HF_TOKEN` by default.
        extras ([`Extras`]): Code, picture and metrics.

    Raises:
        ValueError: if the folder, the name or an extra cannot be published.
        HubError: if the Hub refuses or fails; its sentence says why.
    """
    check_repo_id(repo_id)
    folder = Path(folder)
    extras = extras or Extras()
    check_files(folder)
    model = load_published(folder)
    api = HfApi(token=token)
    with one_sentence(repo_id):
        api.create_repo(repo_id, private=private, exist_ok=True)
        return _commit(api, model, folder, repo_id, extras)


def upload_pipeline(
    pipe: ClassifierGuidedPipeline,
    folder: str | Path,
    repo_id: str,
    token: str | None,
    commit_message: str | None,
    create_pr: bool,
    subfolder: str | None,
) -> CommitInfo:
    """What diffusers' `push_to_hub` ends with, for a pipeline that it has saved in `folder`."""
    folder = Path(folder)
    (folder / CARD_FILE).unlink(missing_ok=True)  # diffusers' own, or what the Hub has
    check_files(folder)
    return _commit(HfApi(token=token), pipe, folder, repo_id, Extras(), commit_message, create_pr, subfolder)


def _commit(
    api: HfApi,
    model: ClassifierGuidedPipeline | ModelMixin,
    folder: Path,
    repo_id: str,
    extras: Extras,
    commit_message: str | None = None,
    create_pr: bool = False,
    subfolder: str | None = None,
) -> CommitInfo:
    with tempfile.TemporaryDirectory() as staging:
        files = {path: folder / path for path in published_files(folder)}
        if subfolder is None:
            written = write_extras(model, folder, Path(staging), repo_id, _card_of(api, repo_id), extras)
            files |= {path: Path(staging) / path for path in written}
        operations = [
            CommitOperationAdd(f"{subfolder}/{path}" if subfolder else path, file)
            for path, file in sorted(files.items())
        ]
        if subfolder is None:
            components = set(model.components) if isinstance(model, ClassifierGuidedPipeline) else set()
            operations += [CommitOperationDelete(path) for path in _outdated(api, repo_id, set(files), components)]
        return api.create_commit(
            repo_id,
            operations,
            commit_message=commit_message or f"Upload {type(model).__name__}",
            create_pr=create_pr,
        )


def write_extras(
    model: ClassifierGuidedPipeline | ModelMixin,
    folder: Path,
    staging: Path,
    repo_id: str,
    card: ModelCard | None,
    extras: Extras,
) -> list[str]:
    """Writes the card and what else is not in the folder yet into another, and returns the names of the files."""
    if extras.with_code:
        for name, source in standalone_code(model, folder).items():
            (staging / name).write_text(source)
    grid = read_grid(extras.grid) if extras.grid is not None else draw_samples(model)
    if grid is not None:
        grid.save(staging / SAMPLES_FILE)
    if (folder / CARD_FILE).is_file():
        ours = ModelCard.load(folder / CARD_FILE)
        if card is not None and card.text.strip() != ours.text.strip():
            logger.warning(
                f"The card of {repo_id} goes before {folder / CARD_FILE}, which stays here: edit it on the Hub."
            )
        card = card or ours
    evaluation = None
    if extras.report is not None or (folder / REPORT_FILE).is_file():
        evaluation = Evaluation.load(extras.report or folder)
    data, sections = describe(
        model,
        repo_id,
        with_code=extras.with_code,
        samples=grid is not None or (folder / SAMPLES_FILE).is_file(),
        training=read_json(folder / TRAINING_FILE),
        evaluation=evaluation,
        **extras.known,
    )
    update_card(card, data, sections).save(staging / CARD_FILE)
    return [file.name for file in staging.iterdir()]


def standalone_code(model: ClassifierGuidedPipeline | ModelMixin, folder: Path) -> dict[str, str]:
    """Source files by name, and `model_index.json` for loading by them.

    diffusers refuses a repository whose components are of a library that it does not know, before any code in the
    repository runs. So they are recorded as diffusers' own, where both that code and this package put them.

    Raises:
        ValueError: if there is no pipeline to load.
    """
    if not isinstance(model, ClassifierGuidedPipeline):
        raise InputError("Code is published with a pipeline: assemble one, or push this classifier without code.")
    index = json.loads((folder / INDEX_FILE).read_text())
    for name, value in index.items():
        if isinstance(value, list) and value[0] == PACKAGE:
            index[name] = [HOST, value[1]]
    ours = [type(part) for part in model.components.values() if type(part).__module__.split(".")[0] == PACKAGE]
    return {**standalone_files(type(model), ours), INDEX_FILE: json.dumps(index, indent=2) + "\n"}


# --------------------------------------------------------------------------------------------------------------- checks


def check_repo_id(repo_id: str) -> None:
    """Raises `ValueError` unless this is `OWNER/NAME` as the Hub allows it."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        repo_id = repo_id.replace("/", "//")
    if repo_id.count("/") != 1:
        name = repo_id.replace("//", "/")
        raise InputError(
            f"{name} is no name on the Hub: pass OWNER/NAME of letters, digits, dots, dashes and underscores."
        )


def published_files(folder: Path) -> list[str]:
    """Paths, below the folder of a model, of the files to publish: all but hidden ones and those of a run's checkpoints."""
    paths = [file.relative_to(folder) for file in list_files(folder)]
    return [path.as_posix() for path in paths if not any(Path(path.parts[0]).match(name) for name in NOT_PUBLISHED)]


def check_files(folder: Path) -> None:
    """Raises `ValueError` where a folder holds no model, or files that would have to be unpickled."""
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}: pass that of a saved pipeline or a training result.")
    pickles = [path for path in published_files(folder) if path.endswith(UNPICKLED)]
    if pickles:
        raise InputError(
            f"{folder / pickles[0]} is not a safetensors file, and loading it could run code: save the model with "
            "safetensors, or move the file away."
        )


def load_published(folder: Path) -> ClassifierGuidedPipeline | ModelMixin:
    """The model of a folder, on a GPU if there is one.

    Raises:
        ValueError: if it is none of ours, or does not load.
    """
    try:
        if (folder / INDEX_FILE).is_file():
            name = json.loads((folder / INDEX_FILE).read_text()).get("_class_name")
            if name not in PIPELINES:
                raise InputError(f"it is a {name}, not one of {', '.join(sorted(PIPELINES))}")
            model = PIPELINES[name].from_pretrained(folder, use_safetensors=True)
            model.set_progress_bar_config(disable=True)
        elif NoisyClassifierModel.load_config(folder).get("_class_name") == NoisyClassifierModel.__name__:
            model = NoisyClassifierModel.from_pretrained(folder)
        else:
            raise InputError(f"it has no {INDEX_FILE}, and is no {NoisyClassifierModel.__name__}")
    except (ValueError, TypeError, AttributeError, OSError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise InputError(f"{folder} is not published, because it does not load: {reason}.") from error
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def one_sentence(repo_id: str) -> Iterator[None]:
    """Turns what the Hub, or the way to it, has against a push into one sentence."""
    try:
        yield
    except Exception as error:  # each library's own
        sentence = hub_sentence(error)
        if sentence is None:
            raise
        raise HubError(f"{sentence}; nothing was published to {repo_id}.") from error


# -------------------------------------------------------------------------------------------------- what goes along


def read_grid(path: str | Path) -> Image.Image:
    """A picture that a person gave.

    Raises:
        ValueError: if it is none.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        raise InputError(f"{path} cannot be read as a picture: pass a grid of samples, or leave it out.") from error


def draw_samples(model: ClassifierGuidedPipeline | ModelMixin) -> Image.Image | None:
    """A grid of samples, guided where there is a classifier: a class per column, a noise per row.

    None for an upsampler, which has nothing to start from, and where it would take long.
    """
    if not isinstance(model, ClassifierGuidedPipeline) or isinstance(model, ClassifierGuidedSuperResolutionPipeline):
        return None
    parameters = sum(p.numel() for p in model.unet.parameters())
    if model.device.type == "cpu" and parameters > MAX_CPU_PARAMETERS:
        logger.warning("The card has no samples: drawing them would take long here. Give a picture, or use a GPU.")
        return None
    if model.sample_shape[0] not in (1, 3, 4):
        return None
    pipe = ClassifierGuidedDDIMPipeline(**{**model.components, **model.parameters})
    pipe.set_progress_bar_config(disable=True)
    needs_labels = pipe.unet.config.num_class_embeds is not None or pipe.classifier is not None
    columns = min(pipe.num_classes, GRID_CLASSES) if needs_labels else GRID_CLASSES
    rows = []
    for row in range(GRID_ROWS):
        generators = [seeded_generator(row, 0 if needs_labels else column) for column in range(columns)]
        inputs = {"class_labels": range(columns)} if needs_labels else {"batch_size": columns}
        rows.append(pipe(**inputs, generator=generators).images)
    labels = (pipe.class_names or list(map(str, range(columns))))[:columns] if needs_labels else ()
    return image_grid(rows, column_labels=labels, tile_size=min(128, max(64, *rows[0][0].size)))


def _card_of(api: HfApi, repo_id: str) -> ModelCard | None:
    """The card that the Hub has; None if it has none."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            return ModelCard.load(api.hf_hub_download(repo_id, CARD_FILE, local_dir=folder))
    except EntryNotFoundError:
        return None


def _outdated(api: HfApi, repo_id: str, files: set[str], components: set[str]) -> list[str]:
    """Files of an earlier push that have no place now: beside the new ones, of a component left out, and our code."""
    there = set(api.list_repo_files(repo_id))
    folders = components | {path.partition("/")[0] for path in files if "/" in path}
    outdated = {path for path in there if "/" in path and path.partition("/")[0] in folders}
    if f"{CODE_MODULE}.py" in there:
        outdated |= {f"{CODE_MODULE}.py", CUSTOM_PIPELINE_FILE_NAME}
    return sorted(outdated - files)
