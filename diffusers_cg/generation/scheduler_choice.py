"""A scheduler by its name: what the commands' `--scheduler NAME OPTION=VALUE ...` means."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_type_hints

import diffusers
from diffusers import DDPMScheduler, SchedulerMixin

from diffusers_cg.diffusion.schedulers import SOLVERS
from diffusers_cg.diffusion.sigma_space import IN_SIGMA
from diffusers_cg.errors import InputError
from diffusers_cg.generation.typed_words import nearest, read, stated, typed


SCHEDULERS = {each.__name__: each for each in (DDPMScheduler, *SOLVERS, *IN_SIGMA)}
"""What can be guided, by name."""

OF_THE_PROCESS = {
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type"),
    *("rescale_betas_zero_snr", "use_flow_sigmas", "flow_shift", "use_dynamic_shifting", "time_shift_type"),
    *("shift_terminal", "timestep_type", "interpolation_type", "solver_p", "return"),
    *("thresholding", "dynamic_thresholding_ratio", "sample_max_value"),
}
"""Arguments of schedulers that are no option of guided sampling: what the network was trained with, other processes, and dynamic
thresholding, which guided noise does without."""


@dataclass(frozen=True)
class SchedulerChoice:
    """A scheduler that can be guided, and what it is given beside the noise schedule of the network.

    Args:
        name (`str`): One of [`SCHEDULERS`].
        options (`dict`): Arguments of its class.
    """

    name: str
    options: dict[str, Any]

    @classmethod
    def parse(cls, words: Sequence[str]) -> "SchedulerChoice":
        """That of a name and of words `OPTION=VALUE`.

        Raises:
            InputError: if the scheduler cannot be guided, or does not take an option or its value.
        """
        name, *options = words
        if name not in SCHEDULERS:
            known = isinstance(getattr(diffusers, name, None), type)
            why = f"{name} cannot be guided" if known else f"There is no scheduler {name!r}{nearest(name, SCHEDULERS)}"
            raise InputError(f"{why}: those that can be guided are {', '.join(SCHEDULERS)}.")
        hints = get_type_hints(SCHEDULERS[name].__init__)
        fields = {word: (kind | None, None) for word, kind in hints.items() if word not in OF_THE_PROCESS}
        values = read(typed(name, fields), stated(name, options), name).model_dump(exclude_unset=True)
        order = values.get("solver_order")
        if order is not None and order < 1:
            raise InputError(f"{name}: solver_order: must be at least 1, got {order}.")
        return cls(name, values)

    @property
    def sampler(self) -> Literal["ddpm", "ddim"]:
        """The sampler whose steps it takes."""
        return "ddpm" if self.name == DDPMScheduler.__name__ else "ddim"

    @property
    def settings(self) -> dict[str, Any]:
        """For `sampling.json`."""
        return {"name": self.name, **self.options}

    def of(self, scheduler: SchedulerMixin) -> SchedulerMixin:
        """This scheduler for the noise schedule of another.

        Raises:
            InputError: if its options do not go together.
        """
        try:
            return SCHEDULERS[self.name].from_config(scheduler.config, **self.options)
        except (ValueError, NotImplementedError) as error:  # diffusers' own
            raise InputError(f"{self.name} cannot be made with {self.options}: {error}") from error
