"""From a folder to the Hub: checked first, then everything in one commit."""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import ModelMixin
from diffusers.pipelines.pipeline_loading_utils import CUSTOM_PIPELINE_FILE_NAME
from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
)
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils import HFValidationError, validate_repo_id
from PIL import Image

from diffusers_cg.data.files import list_files, read_json
from diffusers_cg.data.grids import image_grid
from diffusers_cg.diffusion import seeded_generator
from diffusers_cg.errors import InputError
from diffusers_cg.evaluation.report import REPORT_FILE, Evaluation
from diffusers_cg.generation import draw_images
from diffusers_cg.generation.saved_pipeline import check_configs
from diffusers_cg.hub.hub_errors import HubError, hub_sentence
from diffusers_cg.hub.model_card import CARD_FILE, SAMPLES_FILE, describe, update_card
from diffusers_cg.hub.standalone_code import CODE_MODULE, INDEX_FILE, standalone_files
from diffusers_cg.models import NoisyClassifierModel
from diffusers_cg.pipelines import (
    ClassifierGuidedDDIMPipeline,
    ClassifierGuidedDDPMPipeline,
    ClassifierGuidedInpaintPipeline,
    ClassifierGuidedPipeline,
    ClassifierGuidedSuperResolutionPipeline,
)


logger = logging.getLogger(__name__)

TRAINING_FILE = "training.json"  # of the training scripts and of assemble_pipeline.py
PIPELINES = {
    cls.__name__: cls
    for cls in (
        ClassifierGuidedDDIMPipeline,
        ClassifierGuidedDDPMPipeline,
        ClassifierGuidedInpaintPipeline,
        ClassifierGuidedSuperResolutionPipeline,
    )
}
UNPICKLED = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")  # what loading would execute code of
NOT_PUBLISHED = ("checkpoint-*", "logs")  # of a training run
GRID_COLUMNS, GRID_ROWS = 10, 3
MAX_CPU_PARAMETERS = 20_000_000  # of a pipeline whose samples are drawn unasked on a CPU: a minute at most


def push_folder(
    folder: str | Path,
    repo_id: str,
    private: bool | None = None,
    token: str | None = None,
    with_code: bool = False,
    grid: str | Path | None = None,
    report: str | Path | None = None,
    **known: str | list[str] | None,
) -> CommitInfo:
    """Publishes a saved pipeline, or the result of a training script, in one commit.

    The folder is loaded first. Until the commit, the last request of all, nothing new can be seen on the Hub.

    Args:
        folder (`str` or `Path`): Of a pipeline, or of a classifier alone.
        repo_id (`str`): `OWNER/NAME`; made where there is none.
        private (`bool`, *optional*): Of a repository that is made.
        token (`str`, *optional*): That of `hf auth login` or `HF_TOKEN` by default.
        with_code (`bool`): Publish code for those who have not installed this package.
        grid (`str` or `Path`, *optional*): Picture for the card; drawn where there is none and it does not take long.
        report (`str` or `Path`, *optional*): Folder that `diffusers-cg evaluate` wrote; the model's own by default.
        known (`dict`): `license`, `datasets` and `base_model` for the card's metadata, as far as they are known.

    Raises:
        InputError: if the folder, the name or what is to go along cannot be published.
        HubError: if the Hub refuses or fails; its sentence says why.
    """
    check_repo_id(repo_id)
    folder = Path(folder)
    check_files(folder)
    model = load_published(folder)
    api = HfApi(token=token)
    with one_sentence(repo_id), tempfile.TemporaryDirectory() as staging:
        beside = {"with_code": with_code, "grid": grid, "report": report}
        write_beside(Path(staging), model, folder, repo_id, _card_of(api, repo_id), **beside, **known)
        api.create_repo(repo_id, private=private, exist_ok=True)
        return commit(api, model, folder, Path(staging), repo_id)


def upload_pipeline(
    pipe: ClassifierGuidedPipeline,
    working_dir: str | Path,
    repo_id: str,
    token: str | None = None,
    commit_message: str | None = None,
    create_pr: bool = False,
    subfolder: str | None = None,
) -> CommitInfo:
    """What diffusers' `push_to_hub` ends with, for a pipeline that it has saved in `working_dir`."""
    folder, api = Path(working_dir), HfApi(token=token)
    (folder / CARD_FILE).unlink(missing_ok=True)  # diffusers' own, or what the Hub has
    check_files(folder)
    if subfolder is None:
        with tempfile.TemporaryDirectory() as staging:
            write_beside(Path(staging), pipe, folder, repo_id, _card_of(api, repo_id))
            return commit(api, pipe, folder, Path(staging), repo_id, commit_message, create_pr)
    additions = [CommitOperationAdd(f"{subfolder}/{path}", file) for path, file in published_files(folder).items()]
    return api.create_commit(
        repo_id, additions, commit_message=commit_message or f"Upload {type(pipe).__name__}", create_pr=create_pr
    )


def commit(
    api: HfApi,
    model: ClassifierGuidedPipeline | ModelMixin,
    folder: Path,
    beside: Path,
    repo_id: str,
    commit_message: str | None = None,
    create_pr: bool = False,
) -> CommitInfo:
    """Publishes a folder and what [`write_beside`] left, and deletes what an earlier push left and this one has not.

    In one commit, which `HfApi.upload_folder` does not promise: where `hf_xet` is installed it commits in parts.
    """
    files = published_files(folder) | published_files(beside)
    components = set(model.components) if isinstance(model, ClassifierGuidedPipeline) else set()
    operations = [
        *(CommitOperationAdd(path, file) for path, file in sorted(files.items())),
        *(CommitOperationDelete(path) for path in _outdated(api, repo_id, set(files), components)),
    ]
    message = commit_message or f"Upload {type(model).__name__}"
    return api.create_commit(repo_id, operations, commit_message=message, create_pr=create_pr)


def write_beside(
    directory: Path,
    model: ClassifierGuidedPipeline | ModelMixin,
    folder: Path,
    repo_id: str,
    card: ModelCard | None,
    with_code: bool = False,
    grid: str | Path | None = None,
    report: str | Path | None = None,
    **known: str | list[str] | None,
) -> None:
    """Writes the card, and what else goes beside the files of the folder or in their place.

    Args:
        directory (`Path`): Where to.
        card (`ModelCard`, *optional*): The one that the Hub has.
        model, folder, repo_id, with_code, grid, report, known: As for [`push_folder`].
    """
    if (folder / CARD_FILE).is_file():
        ours = read_card(folder / CARD_FILE, str(folder / CARD_FILE))
        if card is not None and card.text.strip() != ours.text.strip():
            logger.warning(
                f"The card of {repo_id} goes before {folder / CARD_FILE}, which stays here: edit it on the Hub."
            )
        card = card or ours
    evaluation = None
    if report is not None or (folder / REPORT_FILE).is_file():
        evaluation = Evaluation.load(report or folder)
    training = read_training(folder / TRAINING_FILE)
    if with_code:
        for name, source in standalone_files(model, folder).items():
            (directory / name).write_text(source)
    picture = read_grid(grid) if grid is not None else draw_samples(model)
    if picture is not None:
        picture.save(directory / SAMPLES_FILE)
    data, sections = describe(
        model,
        repo_id,
        with_code=with_code,
        samples=picture is not None or (folder / SAMPLES_FILE).is_file(),
        training=training,
        evaluation=evaluation,
        **{name: value for name, value in known.items() if value is not None},
    )
    update_card(card, data, sections).save(directory / CARD_FILE)


# --------------------------------------------------------------------------------------------------------------- checks


def check_repo_id(repo_id: str) -> None:
    """Raises `InputError` unless this is `OWNER/NAME` as the Hub allows it."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        repo_id = repo_id.replace("/", "//")
    if repo_id.count("/") != 1:
        name = repo_id.replace("//", "/")
        raise InputError(
            f"{name} is no name on the Hub: pass OWNER/NAME of letters, digits, dots, dashes and underscores."
        )


def check_push(repo_id: str, token: str | None = None) -> None:
    """Raises where a later [`push_folder`] could not but fail: before a training of days, say.

    Raises:
        InputError: if the name is none, or the token may only read or belongs to another owner.
        HubError: if the Hub does not know the token, or is not reached.
    """
    check_repo_id(repo_id)
    with one_sentence(repo_id):
        who = HfApi(token=token).whoami()
    owner, owners = repo_id.split("/")[0], [who["name"], *(organization["name"] for organization in who["orgs"])]
    if owner not in owners:
        raise InputError(
            f"{who['name']} cannot push to {repo_id}: choose a name that begins with {' or '.join(owners)}."
        )
    if who.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise InputError(
            f"The token of {who['name']} may only read, and {repo_id} is to be written: use one that may write."
        )


def published_files(folder: Path) -> dict[str, Path]:
    """The files of a model's folder to publish, by their paths in it: all but hidden ones and those of a run's checkpoints."""
    files = {file.relative_to(folder): file for file in list_files(folder)}
    return {
        path.as_posix(): file
        for path, file in files.items()
        if not any(Path(path.parts[0]).match(name) for name in NOT_PUBLISHED)
    }


def check_files(folder: Path) -> None:
    """Raises `InputError` where a folder holds no model, or files that would have to be unpickled."""
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
        InputError: if it is none of ours, or does not load.
    """
    try:
        check_configs(folder)
        if (folder / INDEX_FILE).is_file():
            name = read_json(folder / INDEX_FILE)["_class_name"]
            if name not in PIPELINES:
                raise InputError(f"it is a {name}, not one of {', '.join(sorted(PIPELINES))}")
            model = PIPELINES[name].from_pretrained(folder, use_safetensors=True)
            model.set_progress_bar_config(disable=True)
        elif NoisyClassifierModel.load_config(folder).get("_class_name") == NoisyClassifierModel.__name__:
            model = NoisyClassifierModel.from_pretrained(folder)
        else:
            raise InputError(f"it has no {INDEX_FILE}, and is no {NoisyClassifierModel.__name__}")
    # diffusers' own on what a folder lacks, and safetensors'
    except (ValueError, NotImplementedError, OSError) as error:
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
        InputError: if it is none.
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
    if pipe.num_classes is None:
        columns, names = GRID_COLUMNS, ()
        labels = [None] * columns
        seeds = [(row, column) for row in range(GRID_ROWS) for column in range(columns)]
    else:
        columns = min(pipe.num_classes, GRID_COLUMNS)
        labels = range(columns)
        names = (pipe.class_names or list(map(str, labels)))[:columns]
        seeds = [(row, 0) for row in range(GRID_ROWS) for _ in labels]
    generators = [seeded_generator(*seed) for seed in seeds]
    rows = list(draw_images(pipe, [*labels] * GRID_ROWS, generators, batch_size=columns))
    return image_grid(rows, column_labels=names, tile_size=min(128, max(64, *rows[0][0].size)))


def read_training(path: Path) -> dict[str, dict[str, Any]]:
    """Facts of a run by the network's name; nothing if there is no such file.

    Raises:
        InputError: if it holds something else.
    """
    training = read_json(path) if path.is_file() else {}
    for network, run in training.items():
        arguments = run.get("arguments") or [] if isinstance(run, dict) else None
        if not (isinstance(arguments, list) and all(isinstance(word, str) for word in arguments)):
            raise InputError(
                f'{path} must hold facts by network, as {{"unet": {{"steps": 600, "arguments": ["--seed", "7"]}}}}, but '
                f"{network} is {run!r:.80}: mend it, or move it away."
            )
    return training


def read_card(path: str | Path, name: str) -> ModelCard:
    """The card in a file.

    Raises:
        InputError: if its metadata cannot be read; `name` is what the sentence calls it.
    """
    try:
        return ModelCard.load(path)
    except (ValueError, TypeError, yaml.YAMLError) as error:  # the first also where bytes are no UTF-8
        raise InputError(
            f"{name} cannot be read as a card ({error}): mend what stands between its --- lines."
        ) from error


def _card_of(api: HfApi, repo_id: str) -> ModelCard | None:
    """The card that the Hub has; None if it has none, or not even the repository."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            return read_card(
                api.hf_hub_download(repo_id, CARD_FILE, local_dir=folder), f"The card of {repo_id} on the Hub"
            )
    except (EntryNotFoundError, RepositoryNotFoundError):
        return None


def _outdated(api: HfApi, repo_id: str, files: set[str], components: set[str]) -> list[str]:
    """Files of an earlier push that have no place now: beside the new ones, of a component left out, and our code."""
    there = set(api.list_repo_files(repo_id))
    folders = components | {path.partition("/")[0] for path in files if "/" in path}
    outdated = {path for path in there if "/" in path and path.partition("/")[0] in folders}
    if f"{CODE_MODULE}.py" in there:
        outdated |= {f"{CODE_MODULE}.py", CUSTOM_PIPELINE_FILE_NAME}
    return sorted(outdated - files)
