"""The best weights of a training by what it measures on held-out images, and when it measures nothing better any more."""

import json
import shutil
from pathlib import Path

from accelerate import Accelerator
from diffusers import ModelMixin

from diffusers_cg.data.files import atomic_directory
from diffusers_cg.training.checkpoints import on_main_process


BEST_FOLDER = "checkpoint-best"
BEST_FILE = "best.json"


class Best:
    """The folder `checkpoint-best` of an output folder: the model that has measured highest, and how and when it did.

    Args:
        accelerator (`Accelerator`): Of the training.
        output_dir (`Path`): Where the folder is.

    Attributes:
        step (`int`): When it was measured; None before anything was.
        value (`float`): What was measured.
    """

    def __init__(self, accelerator: Accelerator, output_dir: Path):
        self.accelerator = accelerator
        self.directory = output_dir / BEST_FOLDER
        self.step: int | None = None
        self.value: float | None = None

    def resume(self, last_step: float) -> None:
        """Goes on from the folder, if there is one; one that was measured after `last_step` is another run's, and removed.
        All processes call it.
        """

        def read() -> tuple[int | None, float | None]:
            if not (self.directory / BEST_FILE).is_file():
                return None, None
            stated = json.loads((self.directory / BEST_FILE).read_text())
            if stated["step"] <= last_step:
                return stated["step"], stated["value"]
            (self.directory / BEST_FILE).unlink()  # first, so that what a kill leaves is not taken for one
            shutil.rmtree(self.directory)
            return None, None

        self.step, self.value = on_main_process(self.accelerator, read)

    def offer(self, model: ModelMixin | None, step: int, value: float | None) -> None:
        """Keeps a model if it measures higher than all before. All processes call it; the main one has model and value."""

        def keep() -> tuple[int, float]:
            if self.value is not None and value <= self.value:
                return self.step, self.value
            with atomic_directory(self.directory, replaces=BEST_FILE) as directory:
                model.save_pretrained(directory)
                (directory / BEST_FILE).write_text(json.dumps({"step": step, "value": value}, indent=2) + "\n")
            return step, value

        self.step, self.value = on_main_process(self.accelerator, keep)

    def is_old(self, step: int, patience: int) -> bool:
        """Whether nothing better was measured in the last `patience` steps."""
        return self.step is not None and step - self.step >= patience
