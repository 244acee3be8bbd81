"""Checkpoints of a training: folders that are whole or absent, its own, found again, and refused by another training."""

import json
import reprlib
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from accelerate.utils.constants import SCALER_NAME
from safetensors import SafetensorError

from diffusers_cg.data.files import atomic_directory, partial_path
from diffusers_cg.diffusion import TRAINED_WITH
from diffusers_cg.errors import InputError


if TYPE_CHECKING:
    from diffusers_cg.training.config import TrainingSettings

STATE_FILE = "training_state.json"
LEARNING_RATE = ("learning_rate", "lr_scheduler", "lr_warmup_steps")  # settings that --overwrite_learning_rate is for
BEFORE = {"prediction_type": "epsilon", "rescale_timesteps": False, "scale_betas": False, "label_dropout": 0.0}
"""Of trainings that had no such settings yet."""
TORCH_WRITER = "inline_container.cc"  # whose RuntimeError says no more than that a file is not as long as it should be

T = TypeVar("T")


class Checkpoints:
    """The folders `checkpoint-STEP` of an output folder, which are of one run: those that it wrote, or goes on from.

    Args:
        accelerator (`Accelerator`): Writes and loads the state of all that it prepared or that was registered with it.
        output_dir (`Path`): Where they are.
        total_limit (`int`, *optional*): How many are kept, the latest ones.
    """

    def __init__(self, accelerator: Accelerator, output_dir: Path, total_limit: int | None = None):
        self.accelerator = accelerator
        self.output_dir = output_dir
        self.total_limit = total_limit

    def folders(self) -> list[Path]:
        """The complete checkpoints, oldest first."""
        numbered = {}
        for path in self.output_dir.glob("checkpoint-*"):
            number = path.name.removeprefix("checkpoint-")
            if number.isdecimal() and (path / STATE_FILE).is_file():
                numbered[int(number)] = path
        return [numbered[number] for number in sorted(numbered)]

    def holds(self, checkpoint: Path | None) -> bool:
        """Whether a checkpoint, if there is one, lies in this output folder."""
        return checkpoint is not None and checkpoint.resolve().parent == self.output_dir.resolve()

    def of_another_run(self, resumed: Path | None) -> list[Path]:
        """Those that a run does not come from: if it was resumed from here, the later ones, or else all."""
        folders = self.folders()
        if not self.holds(resumed):
            return folders
        return [path for path in folders if _step(path) > _step(resumed)]

    def refuse_others(self, resumed: Path | None) -> None:
        """Raises `InputError` if there are checkpoints [`of_another_run`]. All processes call it."""

        def refuse() -> None:
            others = self.of_another_run(resumed)
            if others:
                raise InputError(
                    f"{self.output_dir} holds checkpoints that this training does not come from, the latest is "
                    f"{others[-1].name}: go on from it with --resume_from_checkpoint latest, choose another --output_dir, "
                    "or pass --overwrite_output_dir to remove them."
                )

        on_main_process(self.accelerator, refuse)

    def remove_others(self, resumed: Path | None) -> None:
        """Removes the checkpoints [`of_another_run`]. All processes call it."""

        def remove() -> None:
            for path in self.of_another_run(resumed):
                _remove(path)

        on_main_process(self.accelerator, remove)

    def last_good(self) -> str:
        """The end of a sentence on what went wrong."""
        good = self.folders()
        return f"the last good checkpoint is {good[-1]}" if good else "there is no earlier checkpoint"

    @contextmanager
    def writing(self, failed: str) -> Iterator[None]:
        """Raises `InputError` that begins as `failed` and ends in the last good checkpoint, if a file cannot be written."""
        try:
            yield
        except (OSError, SafetensorError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and TORCH_WRITER not in str(error):
                raise
            raise InputError(f"{failed} ({error}); {self.last_good()}.") from error

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Writes `checkpoint-STEP` whole, then removes those beyond the limit. All processes call it.

        Raises:
            InputError: if it cannot be written; earlier checkpoints are as they were.
        """
        directory = self.output_dir / f"checkpoint-{step}"
        is_main = self.accelerator.is_main_process
        with (
            self.writing(f"Checkpoint {directory} could not be written"),
            atomic_directory(directory) if is_main else nullcontext(partial_path(directory)) as partial,
        ):
            self.accelerator.wait_for_everyone()
            self.accelerator.save_state(str(partial))
            if is_main:
                (partial / STATE_FILE).write_text(json.dumps(state, indent=2) + "\n")
            self.accelerator.wait_for_everyone()
        if is_main and self.total_limit:
            for old in self.folders()[: -self.total_limit]:
                _remove(old)
        self.accelerator.wait_for_everyone()

    def find(self, wanted: str | None) -> Path | None:
        """The checkpoint at a path, seen from here or from the output folder, or the `"latest"` there; None to start anew.
        All processes call it, and get the same.

        Raises:
            InputError: if there is none at the path, or one seen from either.
        """

        def find() -> Path | None:
            if wanted is None:
                return None
            if wanted == "latest":
                return next(reversed(self.folders()), None)
            seen = {path.resolve(): path for path in (self.output_dir / wanted, Path(wanted))}
            found = [path for path in seen.values() if (path / STATE_FILE).is_file()]
            if not found:
                raise InputError(f"{wanted} is not a checkpoint of this script (it has no {STATE_FILE}).")
            if len(found) > 1:
                raise InputError(f"{wanted} may be {found[0]} or {found[1].absolute()}: pass the whole path.")
            return found[0]

        return on_main_process(self.accelerator, find)

    def state(self, directory: Path) -> dict[str, Any]:
        """What was saved with a checkpoint. All processes call it, and get the same."""
        return on_main_process(self.accelerator, lambda: _read_state(directory))

    def load(
        self, directory: Path, model_config: dict[str, Any], settings: dict[str, Any], may_differ: Collection[str] = ()
    ) -> dict[str, Any]:
        """Loads a checkpoint, and returns the state that was saved with it.

        Raises:
            InputError: if it belongs to a model or a training of other settings, but for those that may differ.
        """
        state = on_main_process(
            self.accelerator, lambda: _matching_state(directory, model_config, settings, may_differ)
        )
        scaler, saved_scaler = self.accelerator.scaler, directory / f"{SCALER_NAME}.pt"
        if not saved_scaler.is_file():  # of a training in another precision: the scale is found anew
            self.accelerator.scaler = None
        self.accelerator.load_state(str(directory))
        self.accelerator.scaler = scaler
        lay_out_as_parameters(self.accelerator)
        # its count of batches, by which it tells where a step ends: steps may be of more or fewer batches now
        self.accelerator.step = state["global_step"] * self.accelerator.gradient_accumulation_steps
        self.accelerator.print(f"Resumed from {directory} at step {state['global_step']}.")
        return state


def lay_out_as_parameters(accelerator: Accelerator) -> None:
    """Gives what optimizers keep of each parameter the parameter's layout, which kernels for all at once rely on; a training
    on another kind of device saved another.
    """
    for optimizer in accelerator._optimizers:
        for parameter, state in optimizer.state.items():
            for name, kept in state.items():
                if kept.shape == parameter.shape:
                    state[name] = torch.empty_like(parameter, dtype=kept.dtype).copy_(kept)


def on_main_process(accelerator: Accelerator, decide: Callable[[], T]) -> T:
    """What the main process decides, or raises for the user, in all processes, which all call this.

    Each for itself might see another state of a folder that they share, or of the Hub.
    """
    decided = [None]
    if accelerator.is_main_process:
        try:
            decided = [decide()]
        except (InputError, OSError) as error:
            decided = [error]
    broadcast_object_list(decided)
    if isinstance(decided[0], Exception):
        raise decided[0]
    return decided[0]


def state_to_resume(accelerator: Accelerator, settings: "TrainingSettings") -> dict[str, Any]:
    """The settings of the checkpoint that these settings resume, empty for none. All processes call it."""
    checkpoints = Checkpoints(accelerator, settings.output_dir)
    checkpoint = checkpoints.find(settings.resume_from_checkpoint)
    return {} if checkpoint is None else {**BEFORE, **checkpoints.state(checkpoint)["settings"]}


def _matching_state(
    directory: Path, model_config: dict[str, Any], settings: dict[str, Any], may_differ: Collection[str]
) -> dict[str, Any]:
    state = _read_state(directory)
    differing = sorted(
        name
        for name in model_config.keys() | state["model_config"].keys()
        if not name.startswith("_")
        and name not in ("class_names", *TRAINED_WITH)  # the settings have them
        and model_config.get(name) != state["model_config"].get(name)
    )
    if differing:
        stated = ", ".join(f"{n}={state['model_config'].get(n)} (now {model_config.get(n)})" for n in differing)
        raise InputError(f"{directory} is a checkpoint of another architecture: {stated}.")
    then = {**settings, **BEFORE, **state["settings"]}
    changed = [
        f"{name}={reprlib.repr(then[name])}, now it is {reprlib.repr(now)}"
        for name, now in settings.items()
        if then[name] != now and name not in {"images", *may_differ}
    ]
    if changed:
        meant = any(change.startswith(LEARNING_RATE) for change in changed)
        remedy = " (pass --overwrite_learning_rate if its change is meant)" if meant else ""
        raise InputError(f"{directory} was trained with {'; '.join(changed)}: the two cannot be joined{remedy}.")
    if "images" in settings and "images" not in may_differ and then["images"] != settings["images"]:
        raise InputError(
            f"{directory} was trained on other images than these, though on as many: pass those, or --allow_other_images "
            "if it is meant to go on with these."
        )
    return state


def _read_state(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / STATE_FILE).read_text())


def _step(checkpoint: Path) -> int:
    return _read_state(checkpoint)["global_step"]


def _remove(checkpoint: Path) -> None:
    (checkpoint / STATE_FILE).unlink()  # first, so that what a kill leaves is not taken for a checkpoint
    shutil.rmtree(checkpoint)
