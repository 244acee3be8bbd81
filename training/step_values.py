"""What one optimizer step saw: values per image, gathered from all processes, and their means."""

import torch
from accelerate import Accelerator


StepValues = dict[str, torch.Tensor]
"""Values per image, (N,), by name; among them `draws`, `timesteps` and `weights`."""


def gather_step(accelerator: Accelerator, batches: list[StepValues]) -> StepValues:
    """The values of a step's batches over all processes, on the CPU, in the order of the images' draws.

    So they are the same in every process, and however the step was split into processes and batches.
    """
    joined = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    gathered = {name: values.cpu() for name, values in accelerator.gather(joined).items()}
    order = gathered["draws"].argsort()
    return {name: values[order] for name, values in gathered.items()}


def step_means(step: StepValues, num_train_timesteps: int) -> dict[str, float]:
    """Means of the values, `NAME`, and over the timesteps of each quarter of the diffusion, `NAME_q0` to `NAME_q3`.

    Weights of timesteps that are not drawn uniformly make them the means that uniform ones would have. Quarters without
    an image, and means that are not finite, are left out.
    """
    weights = step["weights"]
    quartiles = 4 * step["timesteps"] // num_train_timesteps
    parts = {"": torch.ones_like(quartiles, dtype=torch.bool)}
    parts |= {f"_q{quartile}": quartiles == quartile for quartile in quartiles.unique().tolist()}
    means = {}
    for name, values in step.items():
        if name not in ("draws", "timesteps", "weights"):
            for suffix, part in parts.items():
                mean = (weights[part] * values[part]).sum() / weights[part].sum()
                if mean.isfinite():
                    means[name + suffix] = mean.item()
    return means
