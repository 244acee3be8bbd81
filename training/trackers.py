"""What a training shows while it runs: numbers and pictures, in TensorBoard, W&B or another tracker of Accelerate."""

import numpy as np
from accelerate import Accelerator
from PIL import Image

from diffusers_cg.training.config import RUN_NAMES, TrainingSettings


def start(accelerator: Accelerator, settings: TrainingSettings) -> None:
    """Opens the trackers of the settings, with the settings themselves as what the run was configured with."""
    if not accelerator.log_with:
        return
    project, options = settings.tracker_project_name, {}
    if settings.run_name is not None:
        if settings.logger == "tensorboard":
            project = f"{project}/{settings.run_name}"
        else:
            options = {settings.logger: {RUN_NAMES[settings.logger]: settings.run_name}}
    shown = {k: v if isinstance(v, int | float | str | bool) else str(v) for k, v in dict(settings).items()}
    accelerator.init_trackers(project, config=shown, init_kwargs=options)


def log(accelerator: Accelerator, values: dict[str, float | Image.Image], step: int) -> None:
    """Logs numbers, and pictures where the tracker takes any."""
    pictures = {name: value for name, value in values.items() if isinstance(value, Image.Image)}
    accelerator.log({name: value for name, value in values.items() if name not in pictures}, step=step)
    for tracker in accelerator.trackers:
        for name, picture in pictures.items():
            # Accelerate has no one type for them
            if tracker.name == "tensorboard":
                tracker.log_images({name: np.asarray(picture)[None]}, step=step, dataformats="NHWC")
            elif tracker.name in ("wandb", "swanlab"):
                tracker.log_images({name: [picture]}, step=step)
            elif tracker.name in ("aim", "clearml"):
                tracker.log_images({name: picture}, step=step)
