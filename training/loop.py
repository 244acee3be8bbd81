"""The training loop that the scripts share. `TrainingLoop.train_step` is one optimizer step, from top to bottom."""

import itertools
import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import DataLoaderConfiguration, InitProcessGroupKwargs, ProjectConfiguration, set_seed
from diffusers import ModelMixin
from diffusers.models.attention_processor import Attention
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from PIL import Image
from tqdm.auto import tqdm

from diffusers_cg.data.files import atomic_update
from diffusers_cg.diffusion import GaussianDiffusion, TimestepSampler, seeded_generator
from diffusers_cg.errors import InputError
from diffusers_cg.generation import LONGEST_WAIT, is_on_cpu
from diffusers_cg.hub.publishing import check_push, push_folder
from diffusers_cg.models import warn_of_emulation
from diffusers_cg.models.fine_tuning import load_weights
from diffusers_cg.training import trackers
from diffusers_cg.training.best import Best
from diffusers_cg.training.checkpoints import LEARNING_RATE, Checkpoints, on_main_process
from diffusers_cg.training.config import RESUMED, TIMESTEP_SAMPLERS, TrainingSettings
from diffusers_cg.training.data import STOP_SIGNALS, TrainingImages, raise_errors, training_loader
from diffusers_cg.training.record import training_record, write_record


MAX_SKIPPED_IN_A_ROW = 20

Batch = dict[str, torch.Tensor]
"""Of a loader: `clean_images` (B, C, H, W) float32 in [-1, 1], `class_labels` (B,), `draws` (B,) and what the loss needs."""

LossFunction = Callable[[torch.nn.Module, Batch, torch.Tensor, torch.Tensor, torch.Tensor], dict[str, torch.Tensor]]
"""(model, batch, sample x_t (B, C, H, W), timesteps (B,), noise (B, C, H, W)) -> values per image (B,): `loss`, to
minimize, and others to log."""


class TrainingLoop:
    """Trains one model to the end of its steps, saving and resuming so that nothing is lost or repeated.

    Args:
        settings (`TrainingSettings`): Resolved, see `training/config.py`.
        accelerator (`Accelerator`): From [`make_accelerator`].
        name (`str`): What the model is called, `"unet"` or `"classifier"`.
        model (`ModelMixin`): What is trained; its config identifies checkpoints.
        images (`TrainingImages`): What it is trained on.
        diffusion (`GaussianDiffusion`): Makes the noisy images.
        loss_function (`LossFunction`): Loss per image.
        evaluate (callable, *optional*): `(model, step) -> dict` of numbers and pictures to log, called every
            `save_images_epochs` and at the end on the main process, with a model of the averaged weights.
        save (callable): `(model, folder)` writes the result into a folder, from where it is moved to `output_dir`.
            Averages beyond the first are saved beside it, as `NAME_ema_DECAY`, and the record of it as `training.json`.
        best_by (`str`, *optional*): Of what `evaluate` returns, the number by which the best model is the result, instead
            of the last.
        patience (`int`, *optional*): Evaluations after which the training ends if none was better.

    Raises:
        InputError: if the length of the training is not known.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        accelerator: Accelerator,
        name: str,
        model: ModelMixin,
        images: TrainingImages,
        diffusion: GaussianDiffusion,
        loss_function: LossFunction,
        evaluate: Callable[[ModelMixin, int], dict[str, float | Image.Image]] | None,
        save: Callable[[ModelMixin, Path], None],
        best_by: str | None = None,
        patience: int | None = None,
    ):
        self.settings = settings
        self.accelerator = accelerator
        self.name = name
        self.images = images
        self.diffusion = diffusion
        self.loss_function = loss_function
        self.evaluate = evaluate
        self.save = save
        self.best_by = best_by
        self.patience = patience

        self.images_per_step = (
            settings.train_batch_size * accelerator.num_processes * accelerator.gradient_accumulation_steps
        )
        if images.num_images is not None:
            self.steps_per_epoch = math.ceil(images.num_images / self.images_per_step)
        elif settings.max_train_steps is not None:
            self.steps_per_epoch = settings.max_train_steps
        else:
            raise InputError("The length of a stream is not known: pass --max_train_steps, or --images_per_epoch.")
        self.steps_per_evaluation = settings.save_images_epochs * self.steps_per_epoch
        self.max_train_steps = settings.max_train_steps or settings.num_epochs * self.steps_per_epoch
        self.num_bad_images = 0
        self.global_step = 0
        self.skipped_steps = 0
        self.skipped_in_a_row = 0
        self.changes: list[str] = []  # of the learning rate, when it was resumed
        self.stop_requested = False

        model.to(accelerator.device)
        if accelerator.device.type == "cpu":
            # where AdamW's one pass copies weights of another layout, and convolutions images of another than the weights'
            torch.nn.Module.to(model, memory_format=torch.contiguous_format)
            for module in model.modules():
                if isinstance(module, Attention):  # it gives images in channels-last
                    module.register_forward_hook(lambda module, inputs, output: output.contiguous())
        self.model_class, self.model_config = type(model), json.loads(model.to_json_string())
        self.parameter_names = [name for name, _ in model.named_parameters()]
        self.averages = {
            decay: EMAModel(
                model.parameters(),
                decay=decay,
                min_decay=0.0 if settings.ema_warmup else decay,
                use_ema_warmup=settings.ema_warmup,
                inv_gamma=settings.ema_inv_gamma,
                power=settings.ema_power,
                foreach=accelerator.device.type != "cpu",  # there its memory, of all differences at once, costs more
            )
            for decay in (settings.ema_max_decay if settings.use_ema else ())
        }
        self.timestep_sampler = TIMESTEP_SAMPLERS[settings.timestep_sampler](settings.ddpm_num_steps)
        self.checkpoints = Checkpoints(accelerator, settings.output_dir, settings.checkpoints_total_limit)
        self.best = Best(accelerator, settings.output_dir)
        accelerator.register_for_checkpointing(*self.averages.values())
        if hasattr(self.timestep_sampler, "state_dict"):
            accelerator.register_for_checkpointing(self.timestep_sampler)

        if settings.gradient_checkpointing:
            model.enable_gradient_checkpointing()
        if settings.torch_compile is not None:
            model.compile(backend=settings.torch_compile)
        optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=settings.learning_rate,
            betas=(settings.adam_beta1, settings.adam_beta2),
            weight_decay=settings.adam_weight_decay,
            eps=settings.adam_epsilon,
            fused=accelerator.device.type in ("cpu", "cuda"),
        )
        # Accelerate steps the schedule once per process
        lr_scheduler = get_scheduler(
            settings.lr_scheduler,
            optimizer=optimizer,
            num_warmup_steps=settings.lr_warmup_steps * accelerator.num_processes,
            num_training_steps=self.max_train_steps * accelerator.num_processes,
        )
        self.model, self.optimizer, self.lr_scheduler = accelerator.prepare(model, optimizer, lr_scheduler)

    # ----------------------------------------------------------------------------------------------------- training

    def train_step(self, batches: Iterator[Batch]) -> dict[str, float]:
        """One optimizer step; returns what to log.

        A step whose loss or gradient is not finite, in any process, is skipped: weights, optimizer, averages, learning
        rate and timestep sampler stay as they were, and the next step takes the next images.
        """
        accelerator, parts = self.accelerator, []
        for _ in range(accelerator.gradient_accumulation_steps):
            batch = next(batches)
            timesteps, weights, noise = draw_timesteps_and_noise(
                batch["draws"], batch["clean_images"], self.timestep_sampler, self.settings.seed
            )
            sample = self.diffusion.q_sample(batch["clean_images"], noise, timesteps)
            with accelerator.accumulate(self.model):
                values = self.loss_function(self.model, batch, sample, timesteps, noise)
                accelerator.backward((weights * values["loss"]).mean())
            if "bad_images" in batch:
                values["bad_images"] = batch["bad_images"]
            values = {name: value.detach().float() for name, value in values.items()}
            parts.append({"draws": batch["draws"], "timesteps": timesteps, "weights": weights, **values})

        step = gather_values(accelerator, parts)
        # a norm of infinity leaves the gradients as they are
        norm = accelerator.clip_grad_norm_(self.model.parameters(), self.settings.max_grad_norm or math.inf)
        finite = step["loss"].isfinite().all().item() and (norm is None or math.isfinite(norm))  # None from DeepSpeed
        if finite:
            self.optimizer.step()
            self.lr_scheduler.step()
            parameters = list(self.model.parameters())
            for average in self.averages.values():
                average.step(parameters)
            if hasattr(self.timestep_sampler, "update"):
                self.timestep_sampler.update(step["timesteps"], step["loss"])
        elif accelerator.scaler is not None:
            accelerator.scaler.update()  # of fp16: a lower scale, for it has seen the gradients when they were clipped
        # memory that a CPU's gradients give back comes anew page by page, which takes longer than to fill it with zeros
        self.optimizer.zero_grad(set_to_none=accelerator.device.type != "cpu")

        self.skipped_steps += not finite
        self.skipped_in_a_row = 0 if finite else self.skipped_in_a_row + 1
        self.num_bad_images += int(step["bad_images"].sum()) if "bad_images" in step else 0
        logs = mean_values(step, self.settings.ddpm_num_steps)
        return logs | ({"gradient_norm": float(norm)} if norm is not None and math.isfinite(norm) else {})

    def run(self) -> None:
        """Trains; on SIGTERM, SIGUSR1 or Ctrl-C, in any process, saves a checkpoint after the running step and returns.

        Raises:
            InputError: if the checkpoint to resume from is none or another training's, too many steps in a row are
                skipped, or something cannot be written.
        """
        settings = self.settings
        checkpoint = self.checkpoints.find(settings.resume_from_checkpoint)
        if checkpoint is not None:
            self.resume(checkpoint)
        elif settings.resume_from_checkpoint is not None:
            self.accelerator.print(f"{settings.output_dir} holds no checkpoint yet: the training starts anew.")
        if settings.overwrite_output_dir:
            self.checkpoints.remove_others(checkpoint)
        if self.best_by is not None:
            last_own = self.global_step if settings.overwrite_output_dir else math.inf
            self.best.resume(last_own if self.checkpoints.holds(checkpoint) else 0)
        with self._stop_on_signals():
            self._train()

    def _train(self) -> None:
        settings, accelerator = self.settings, self.accelerator
        trackers.start(accelerator, settings)
        batches = self._batches()
        self.model.train()
        started, first_step, stopped = time.monotonic(), self.global_step, False
        with tqdm(
            total=self.max_train_steps,
            initial=self.global_step,
            unit="step",
            disable=not accelerator.is_local_main_process,
        ) as progress_bar:
            while self.global_step < self.max_train_steps and not stopped and not self._patience_is_over():
                logs = self.train_step(batches)
                self.global_step += 1
                elapsed = time.monotonic() - started
                logs["images_per_second"] = (self.global_step - first_step) * self.images_per_step / elapsed
                logs["learning_rate"] = self.lr_scheduler.get_last_lr()[0]
                logs["skipped_steps"] = self.skipped_steps
                progress_bar.update()
                progress_bar.set_postfix(
                    loss=f"{logs.get('loss', math.nan):.4f}",
                    lr=f"{logs['learning_rate']:.1e}",
                    img_s=f"{logs['images_per_second']:.0f}",
                    **({"skipped": self.skipped_steps} if self.skipped_steps else {}),
                )
                if self.skipped_in_a_row == MAX_SKIPPED_IN_A_ROW:
                    raise InputError(
                        f"Stopped at step {self.global_step}: the loss or the gradient of {MAX_SKIPPED_IN_A_ROW} steps in "
                        f"a row was not finite, so try a lower --learning_rate or --mixed_precision no; "
                        f"{self.checkpoints.last_good()}."
                    )
                done = self.global_step == self.max_train_steps
                every = self.steps_per_evaluation
                if self.evaluate is not None and every and (self.global_step % every == 0 or done):
                    logs.update(self._evaluate())
                    done = done or self._patience_is_over()
                trackers.log(accelerator, logs, self.global_step)
                stopped = self._any_process_is_to_stop() and not done
                due = settings.checkpointing_steps and (self.global_step % settings.checkpointing_steps == 0 or done)
                # one that may be worth nothing is not to replace a good one
                if stopped or due and not self.skipped_in_a_row:
                    self.save_checkpoint()

        if self._patience_is_over():
            accelerator.print(
                f"The training ends at step {self.global_step}: none of {self.patience} evaluations was better than that of "
                f"step {self.best.step}."
            )
        if self.num_bad_images:
            num_drawn = (self.global_step - first_step) * self.images_per_step
            accelerator.print(
                f"{self.num_bad_images} of {num_drawn} images could not be read; the next ones stood in."
            )
        if stopped:
            accelerator.print(f"Stopped at step {self.global_step}; go on with --resume_from_checkpoint latest.")
        else:
            self._save_result()
            if settings.push_to_hub and accelerator.is_main_process:
                commit = push_folder(settings.output_dir, settings.hub_model_id, settings.hub_private_repo or None)
                accelerator.print(f"Published {commit.commit_url}.")
        accelerator.end_training()

    def _batches(self) -> Iterator[Batch]:
        """Batches without end, from the one that the next step takes."""
        loader = self.accelerator.prepare(
            training_loader(
                self.images,
                self.settings.train_batch_size,
                first_draw=self.global_step * self.images_per_step,
                num_workers=self.settings.dataloader_num_workers,
            )
        )
        batches = raise_errors(loader)
        if self.global_step > 0:
            # a loader draws a seed when it starts; the checkpoint's random numbers already count that draw
            with self._kept_random_numbers():
                batches = itertools.chain([next(batches)], batches)
        return batches

    def _kept_random_numbers(self) -> AbstractContextManager:
        """A context after which PyTorch draws as if there had been none."""
        device = self.accelerator.device
        return torch.random.fork_rng([device] if device.type == "cuda" else [])

    @contextmanager
    def _stop_on_signals(self) -> Iterator[None]:
        def stop(signum, frame):
            self.stop_requested = True

        previous = {signum: signal.signal(signum, stop) for signum in STOP_SIGNALS}
        try:
            yield
        finally:
            for signum, handler in previous.items():
                signal.signal(signum, handler)

    def _any_process_is_to_stop(self) -> bool:
        """The same in all processes, whichever the signal reached, so that they leave the loop together."""
        requested = torch.tensor(float(self.stop_requested), device=self.accelerator.device)
        return self.accelerator.reduce(requested).item() > 0

    def _patience_is_over(self) -> bool:
        return self.patience is not None and self.best.is_old(
            self.global_step, self.patience * self.steps_per_evaluation
        )

    # ------------------------------------------------------------------------------------------------- checkpoints

    def save_checkpoint(self) -> None:
        """Writes `checkpoint-STEP`."""
        state = {
            "global_step": self.global_step,
            "skipped_steps": self.skipped_steps,
            "skipped_in_a_row": self.skipped_in_a_row,
            "max_train_steps": self.max_train_steps,
            "changes": self.changes,
            "settings": self._resumed_settings(),
            "model_config": self.model_config,
        }
        self.checkpoints.save(self.global_step, state)

    def resume(self, checkpoint: Path) -> None:
        """Loads a checkpoint, and says what does not go on as if the training had not stopped.

        Raises:
            InputError: if it belongs to another model or another training.
        """
        may_differ = (
            *(LEARNING_RATE if self.settings.overwrite_learning_rate else ()),
            *(("num_images", "images") if self.settings.allow_other_images else ()),
        )
        state = self.checkpoints.load(checkpoint, self.model_config, self._resumed_settings(), may_differ)
        for average in self.averages.values():
            average.to(self.accelerator.device)  # Accelerate loads what is registered with it onto the CPU
        self.global_step = state["global_step"]
        self.skipped_steps, self.skipped_in_a_row = state["skipped_steps"], state["skipped_in_a_row"]
        self.changes = state.get("changes", [])  # which earlier versions did not know
        if self.global_step > self.max_train_steps:
            self.accelerator.print(
                f"This is beyond the {self.max_train_steps} steps asked for: no more are taken, and its result is saved."
            )
            return
        then, now = self._resume_learning_rate()
        changed = [name for name in LEARNING_RATE if state["settings"][name] != getattr(self.settings, name)]
        if changed:
            stated = ", ".join(f"{name} {getattr(self.settings, name)}" for name in changed)
            self.changes.append(f"from step {self.global_step} {stated}")
            self.accelerator.print(f"The learning rate goes from {then:.3g} to {now:.3g} here, as it is meant to.")
        elif (
            self.settings.lr_scheduler not in ("constant", "constant_with_warmup")
            and state.get("max_train_steps", self.max_train_steps) != self.max_train_steps
        ) or not math.isclose(then, now, rel_tol=1e-9):
            self.accelerator.print(
                f"The learning rate goes from {then:.3g} to {now:.3g} here: the number of steps has changed, and "
                f"--lr_scheduler {self.settings.lr_scheduler} is now one over {self.max_train_steps} steps, so the result "
                "is not that of a training that did not stop."
            )

    def _resume_learning_rate(self) -> tuple[float, float]:
        """Puts the schedule of the settings where the loaded one was; returns the checkpoint's learning rate, and its own."""
        schedule = self.lr_scheduler.scheduler
        if self.accelerator.distributed_type != DistributedType.DEEPSPEED:  # which steps it once
            # Accelerate does once per process, of which there may have been another number
            schedule.last_epoch = (self.global_step - self.skipped_steps) * self.accelerator.num_processes
        (then, *_), (factor, *_) = schedule.get_last_lr(), schedule.lr_lambdas
        now = self.settings.learning_rate * factor(schedule.last_epoch)
        if self.settings.overwrite_learning_rate:
            schedule.base_lrs = [self.settings.learning_rate] * len(schedule.base_lrs)
            schedule._last_lr = [now] * len(schedule.base_lrs)
            for group in self.optimizer.param_groups:
                group["initial_lr"], group["lr"] = self.settings.learning_rate, now
        return then, now

    def _resumed_settings(self) -> dict[str, Any]:
        return {
            "images_per_step": self.images_per_step,
            # labels that the model is not told say nothing
            **({} if self.model_config.get("class_names") is None else {"class_names": self.images.class_names}),
            "num_images": self.images.num_images,
            "images": self.images.fingerprint,
            "stratified": self.images.stratified,
            "shuffle_buffer_size": self.images.shuffle_buffer_size,
            **self.settings.marked(RESUMED),
        }

    # ------------------------------------------------------------------------------------------------------ results

    def _results(self) -> dict[float | None, ModelMixin]:
        """On the main process the trained model with each average as its weights, or just as it is, by decay.

        They share the memory of the averages (or the weights), so they are to look at and to save, not to train. All
        processes call this.
        """
        state_dict = self.accelerator.get_state_dict(self.model)  # whole, of sharded models too
        if not self.accelerator.is_main_process:
            return {}
        state_dict = {name.removeprefix("_orig_mod."): tensor.detach() for name, tensor in state_dict.items()}
        averaged = {
            decay: dict(zip(self.parameter_names, average.shadow_params)) for decay, average in self.averages.items()
        }
        results = {}
        for decay, weights in (averaged or {None: {}}).items():
            with torch.device("meta"):
                model = self.model_class.from_config(self.model_config)
            model.load_state_dict({**state_dict, **weights}, assign=True)
            results[decay] = model.to(self.accelerator.device).eval().requires_grad_(False)
        return results

    def _evaluate(self) -> dict[str, float | Image.Image]:
        values = {}
        results = self._results()
        if self.accelerator.is_main_process:
            with self._kept_random_numbers():  # so that looking at a model does not change its training
                values = self.evaluate(next(iter(results.values())), self.global_step)
        if self.best_by is not None:
            self.best.offer(next(iter(results.values()), None), self.global_step, values.get(self.best_by))
        self.accelerator.wait_for_everyone()
        return values

    def _save_result(self) -> None:
        settings, results = self.settings, self._results()
        if not self.accelerator.is_main_process:
            return
        record = training_record(
            settings,
            self.accelerator,
            self.name,
            self.global_step,
            self.images_per_step,
            ended_early_or_late=self.global_step != self.max_train_steps,
        )
        if self.best.step is not None:
            record["result"] = (
                f"of step {self.best.step}, the best: {self.best_by.partition('/')[0]} {self.best.value:.4f}"
            )
        if self.changes:
            record["changes"] = "; ".join(self.changes)
        with (
            self.checkpoints.writing(f"The result could not be written to {settings.output_dir}"),
            atomic_update(settings.output_dir) as directory,
        ):
            (_, result), *others = results.items()
            if self.best.step is not None:
                best = self.model_class.from_pretrained(self.best.directory)
                result.load_state_dict(best.state_dict(), assign=True)
            self.save(result, directory)
            for decay, model in others:
                model.save_pretrained(directory / f"{self.name}_ema_{decay}")
            write_record(directory, {self.name: record})
        self.accelerator.print(f"Saved {settings.output_dir}.")


# ---------------------------------------------------------------------------------------------------- random numbers


def draw_generators(draws: Sequence[int] | torch.Tensor, seed: int, *stream: int) -> list[torch.Generator]:
    """A generator for each image, from the seed and its draw, the image's number in the training.

    So an image's random numbers are the same in whatever batch and process it is. Another `stream` is independent.
    """
    draws = draws.tolist() if isinstance(draws, torch.Tensor) else draws
    return [seeded_generator(seed, draw, *stream) for draw in draws]


def draw_timesteps_and_noise(
    draws: Sequence[int] | torch.Tensor, like: torch.Tensor, timestep_sampler: TimestepSampler, seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Timesteps (B,) int64, their losses' weights (B,), and standard normal noise of the shape of `like`."""
    generators = draw_generators(draws, seed)
    timesteps, weights = timestep_sampler.sample(len(generators), generators)
    noise = torch.stack([torch.randn(like.shape[1:], generator=generator) for generator in generators])
    return timesteps.to(like.device), weights.to(like.device), noise.to(like.device)


# --------------------------------------------------------------------------------------------------- values per image


def gather_values(accelerator: Accelerator, parts: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The values per image of a step's batches over all processes, (N,), on the CPU, in the order of their draws.

    So they are the same in every process, and however the step was split into processes and batches.
    """
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    gathered = {name: values.cpu() for name, values in accelerator.gather(joined).items()}
    order = gathered["draws"].argsort()
    return {name: values[order] for name, values in gathered.items()}


def mean_values(step: dict[str, torch.Tensor], num_train_timesteps: int) -> dict[str, float]:
    """Means of the values, `NAME`, and over the timesteps of each quarter of the diffusion, `NAME_q0` to `NAME_q3`.

    Weights of timesteps that are not drawn uniformly make them the means that uniform ones would have. Quarters without
    an image, and means that are not finite, are left out.
    """
    weights = step["weights"]
    quarters = 4 * step["timesteps"] // num_train_timesteps
    parts = {"": torch.ones_like(quarters, dtype=torch.bool)}
    parts |= {f"_q{quarter}": quarters == quarter for quarter in quarters.unique().tolist()}
    means = {}
    for name, values in step.items():
        if name not in ("draws", "timesteps", "weights"):
            for suffix, part in parts.items():
                mean = (weights[part] * values[part]).sum() / weights[part].sum()
                if mean.isfinite():
                    means[name + suffix] = mean.item()
    return means


# ------------------------------------------------------------------------------------------------- before it begins


def make_accelerator(settings: TrainingSettings) -> Accelerator:
    """Accelerate, set up as resolved settings say, with the output folder made and the seed set.

    Raises:
        InputError: if this machine, or the way processes were started, does not allow what the settings say, or if the
            output folder holds the checkpoints of another run.
    """
    log_with = None if settings.logger == "none" else settings.logger
    accelerator = Accelerator(
        cpu=is_on_cpu(),
        mixed_precision=settings.mixed_precision,
        log_with=log_with,
        # every process reads a stream, and decodes its own share
        dataloader_config=DataLoaderConfiguration(dispatch_batches=False),
        project_config=ProjectConfiguration(
            project_dir=str(settings.output_dir), logging_dir=str(settings.output_dir / settings.logging_dir)
        ),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=LONGEST_WAIT)],  # while the main process evaluates
    )
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":  # Accelerate would ignore it
        raise InputError("--mixed_precision fp16 needs a GPU: on a CPU pass bf16, or no.")
    if accelerator.mixed_precision == "bf16":
        warn_of_emulation(accelerator.device.type, torch.bfloat16)
    if settings.use_ema and accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise InputError(
            f"--use_ema averages whole weights, which {accelerator.distributed_type.value} may split: pass --no-use_ema."
        )
    # not the constructor's argument, which a setting of `accelerate launch` overrides
    accelerator.gradient_accumulation_steps = accumulation_steps(settings, accelerator.num_processes)
    if log_with is not None and not accelerator.log_with:
        raise InputError(f"--logger {settings.logger} is not installed: install it, or pass --logger none.")
    if not settings.overwrite_output_dir:
        checkpoints = Checkpoints(accelerator, settings.output_dir)
        checkpoints.refuse_others(checkpoints.find(settings.resume_from_checkpoint))
    if settings.push_to_hub:
        on_main_process(accelerator, lambda: check_push(settings.hub_model_id))
    settings.output_dir.mkdir(parents=True, exist_ok=True)
    set_seed(settings.seed)
    return accelerator


def accumulation_steps(settings: TrainingSettings, num_processes: int) -> int:
    """Batches of each process per optimizer step.

    Raises:
        InputError: if `total_batch_size` is no multiple of what the processes take at once, or contradicts
            `gradient_accumulation_steps`.
    """
    total, stated = settings.total_batch_size, settings.gradient_accumulation_steps
    if total is None:
        return stated or 1
    at_once = settings.train_batch_size * num_processes
    processes = f"{num_processes} {'process' if num_processes == 1 else 'processes'}"
    where = f"--train_batch_size {settings.train_batch_size} on {processes}"
    if total % at_once:
        raise InputError(
            f"--total_batch_size {total} is no multiple of {at_once}, the images of {where}: choose a batch size that divides it."
        )
    if stated is not None and stated * at_once != total:
        raise InputError(
            f"--total_batch_size {total} takes {total // at_once} batches of {where}, not --gradient_accumulation_steps "
            f"{stated}: leave one of the two out."
        )
    return total // at_once


def start_from(accelerator: Accelerator, model: ModelMixin, pretrained: ModelMixin, where: str) -> None:
    """Copies the weights of a pretrained model that fit, and says which do not.

    Raises:
        InputError: if the two differ in more than classes, channels and image size.
    """
    replaced = load_weights(model, pretrained)
    taken = model.state_dict().keys() - {parameter.name for parameter in replaced}
    accelerator.print(f"Started from {where}: {len(taken)} parameters taken over, {len(replaced)} replaced.")
    for parameter in replaced:
        accelerator.print(f"  {parameter}")
