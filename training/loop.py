"""The training loop that the scripts share: Accelerate, averages, checkpoints, resume, progress."""

import argparse
import itertools
import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import DataLoaderConfiguration, ProjectConfiguration, set_seed
from diffusers import ModelMixin
from diffusers.optimization import get_scheduler
from tqdm.auto import tqdm

from diffusers_cg.data.files import atomic_update
from diffusers_cg.errors import InputError
from diffusers_cg.hub.publishing import push_folder
from diffusers_cg.training.arguments import TIMESTEP_SAMPLERS, accumulation_steps, resumed_settings
from diffusers_cg.training.averages import WeightAverages
from diffusers_cg.training.checkpoints import Checkpoints
from diffusers_cg.training.data import TrainingImages, raise_errors, training_loader
from diffusers_cg.training.draws import draw_timesteps_and_noise
from diffusers_cg.training.run_facts import run_facts, write_facts
from diffusers_cg.training.step_values import StepValues, gather_step, step_means


MAX_SKIPPED_IN_A_ROW = 20

LossFunction = Callable[
    [torch.nn.Module, dict[str, torch.Tensor], torch.Tensor, torch.Tensor], dict[str, torch.Tensor]
]
"""(model, batch, timesteps (B,), noise (B, C, H, W)) -> values per image (B,): `loss`, to minimize, and others to log."""


def make_accelerator(args: argparse.Namespace) -> Accelerator:
    """Accelerate, set up as the flags say, with the output folder made and the seed set."""
    log_with = None if args.logger == "none" else args.logger
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        log_with=log_with,
        # every process reads a stream, and decodes its own share
        dataloader_config=DataLoaderConfiguration(dispatch_batches=False),
        project_config=ProjectConfiguration(
            project_dir=str(args.output_dir), logging_dir=str(args.output_dir / args.logging_dir)
        ),
    )
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise InputError(
            "--mixed_precision fp16 needs a GPU: on a CPU pass bf16, or no."
        )  # Accelerate would ignore it
    if args.use_ema and accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise InputError(
            f"--use_ema averages whole weights, which {accelerator.distributed_type.value} may split: pass --no-use_ema."
        )
    # not the constructor's argument, which a setting of `accelerate launch` overrides
    accelerator.gradient_accumulation_steps = accumulation_steps(args, accelerator.num_processes)
    if log_with is not None and not accelerator.log_with:
        raise InputError(f"--logger {args.logger} is not installed: install it, or pass --logger none.")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    set_seed(args.seed)
    return accelerator


class TrainingLoop:
    """Trains one model to the end of its steps, saving and resuming so that nothing is lost or repeated.

    A step whose loss or gradient is not finite, in any process, is skipped: weights, optimizer, averages, learning rate
    and timestep sampler stay as they were, and the next step takes the next images.

    Args:
        args (`argparse.Namespace`): The flags of `training/arguments.py`.
        accelerator (`Accelerator`): From [`make_accelerator`].
        name (`str`): What the model is called, `"unet"` or `"classifier"`.
        model (`ModelMixin`): What is trained; its config identifies checkpoints.
        images (`TrainingImages`): What it is trained on.
        loss_function (`LossFunction`): Loss per image.
        evaluate (callable, *optional*): `(model, step) -> dict of numbers`, called every `--save_images_epochs` and at
            the end on the main process, with a model of the averaged weights.
        save (callable): `(model, folder)` writes the result into a folder, from where it is moved to `--output_dir`.
            Averages beyond the first are saved beside it, as `NAME_ema_DECAY`, and facts of the run as `training.json`.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        accelerator: Accelerator,
        name: str,
        model: ModelMixin,
        images: TrainingImages,
        loss_function: LossFunction,
        evaluate: Callable[[ModelMixin, int], dict[str, float]] | None,
        save: Callable[[ModelMixin, Path], None],
    ):
        self.args = args
        self.accelerator = accelerator
        self.name = name
        self.images = images
        self.loss_function = loss_function
        self.evaluate = evaluate
        self.save = save

        self.images_per_step = (
            args.train_batch_size * accelerator.num_processes * accelerator.gradient_accumulation_steps
        )
        if images.num_images is not None:
            self.steps_per_epoch = math.ceil(images.num_images / self.images_per_step)
        elif args.max_train_steps is not None:
            self.steps_per_epoch = args.max_train_steps
        else:
            raise InputError("The length of a stream is not known: pass --max_train_steps, or --images_per_epoch.")
        self.max_train_steps = args.max_train_steps or args.num_epochs * self.steps_per_epoch
        self.num_bad_images = 0
        self.global_step = 0
        self.skipped_steps = 0
        self.skipped_in_a_row = 0
        self.stop_requested = False

        model.to(accelerator.device)
        self.model_class, self.model_config = type(model), json.loads(model.to_json_string())
        self.averages = WeightAverages(model, args)
        self.timestep_sampler = TIMESTEP_SAMPLERS[args.timestep_sampler](args.ddpm_num_steps)
        self.checkpoints = Checkpoints(accelerator, args.output_dir, args.checkpoints_total_limit)
        accelerator.register_for_checkpointing(*self.averages.by_decay.values())
        if hasattr(self.timestep_sampler, "state_dict"):
            accelerator.register_for_checkpointing(self.timestep_sampler)

        if args.gradient_checkpointing:
            model.enable_gradient_checkpointing()
        if args.torch_compile is not None:
            model.compile(backend=args.torch_compile)
        optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=args.learning_rate,
            betas=(args.adam_beta1, args.adam_beta2),
            weight_decay=args.adam_weight_decay,
            eps=args.adam_epsilon,
        )
        # Accelerate steps the schedule once per process
        lr_scheduler = get_scheduler(
            args.lr_scheduler,
            optimizer=optimizer,
            num_warmup_steps=args.lr_warmup_steps * accelerator.num_processes,
            num_training_steps=self.max_train_steps * accelerator.num_processes,
        )
        self.model, self.optimizer, self.lr_scheduler = accelerator.prepare(model, optimizer, lr_scheduler)

    # ------------------------------------------------------------------------------------------------- checkpoints

    def _settings(self) -> dict[str, Any]:
        return {
            "images_per_step": self.images_per_step,
            "class_names": self.images.class_names,
            "num_images": self.images.num_images,
            "shuffle_buffer_size": self.images.shuffle_buffer_size,
            **resumed_settings(self.args),
        }

    def save_checkpoint(self) -> None:
        """Writes `checkpoint-STEP`."""
        state = {
            "global_step": self.global_step,
            "skipped_steps": self.skipped_steps,
            "skipped_in_a_row": self.skipped_in_a_row,
            "settings": self._settings(),
            "model_config": self.model_config,
        }
        self.checkpoints.save(self.global_step, state)

    def resume(self) -> None:
        """Loads the checkpoint that `--resume_from_checkpoint` names.

        Raises:
            InputError: if there is none, or it belongs to another model or another training.
        """
        state = self.checkpoints.load(self.args.resume_from_checkpoint, self.model_config, self._settings())
        self.global_step = state["global_step"]
        self.skipped_steps, self.skipped_in_a_row = state["skipped_steps"], state["skipped_in_a_row"]

    # ----------------------------------------------------------------------------------------------------- training

    def run(self) -> None:
        """Trains; on SIGTERM or Ctrl-C saves a checkpoint after the running step and returns."""
        if self.args.resume_from_checkpoint:
            self.resume()
        with self._stop_on_signals():
            self._train()

    def _train(self) -> None:
        args, accelerator = self.args, self.accelerator
        if accelerator.log_with:
            settings = {k: v if isinstance(v, int | float | str | bool) else str(v) for k, v in vars(args).items()}
            accelerator.init_trackers("training", config=settings)
        batches = self._batches()
        self.model.train()
        started, first_step = time.monotonic(), self.global_step
        with tqdm(
            total=self.max_train_steps,
            initial=self.global_step,
            unit="step",
            disable=not accelerator.is_local_main_process,
        ) as progress_bar:
            while self.global_step < self.max_train_steps and not self.stop_requested:
                logs = self._train_step(batches)
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
                every = args.save_images_epochs * self.steps_per_epoch
                if self.evaluate is not None and every and (self.global_step % every == 0 or done):
                    logs.update(self._evaluate())
                accelerator.log(logs, step=self.global_step)
                # one that may be worth nothing is not to replace a good one
                due = args.checkpointing_steps and (self.global_step % args.checkpointing_steps == 0 or done)
                if due and not self.skipped_in_a_row:
                    self.save_checkpoint()

        if self.num_bad_images:
            num_drawn = (self.global_step - first_step) * self.images_per_step
            accelerator.print(
                f"{self.num_bad_images} of {num_drawn} images could not be read; the next ones stood in."
            )
        if self.stop_requested and self.global_step < self.max_train_steps:
            self.save_checkpoint()
            accelerator.print(f"Stopped at step {self.global_step}; go on with --resume_from_checkpoint latest.")
        else:
            self._save_result()
            if args.push_to_hub and accelerator.is_main_process:
                commit = push_folder(args.output_dir, args.hub_model_id, args.hub_private_repo or None)
                accelerator.print(f"Published {commit.commit_url}.")
        accelerator.end_training()

    def _batches(self) -> Iterator[dict[str, torch.Tensor]]:
        """Batches without end, from the one that the next step takes."""
        loader = self.accelerator.prepare(
            training_loader(
                self.images,
                self.args.train_batch_size,
                first_draw=self.global_step * self.images_per_step,
                num_workers=self.args.dataloader_num_workers,
            )
        )
        batches = raise_errors(loader)
        if self.global_step > 0:
            # a loader draws a seed when it starts; the checkpoint's random numbers already count that draw
            with torch.random.fork_rng():
                batches = itertools.chain([next(batches)], batches)
        return batches

    def _train_step(self, batches: Iterator[dict[str, torch.Tensor]]) -> dict[str, float]:
        """One optimizer step, unless it is skipped; returns what to log."""
        seen = []
        for _ in range(self.accelerator.gradient_accumulation_steps):
            batch = next(batches)
            timesteps, weights, noise = draw_timesteps_and_noise(
                batch["draws"], batch["clean_images"], self.timestep_sampler, self.args.seed
            )
            with self.accelerator.accumulate(self.model):
                values = self.loss_function(self.model, batch, timesteps, noise)
                self.accelerator.backward((weights * values["loss"]).mean())
            if "bad_images" in batch:
                values["bad_images"] = batch["bad_images"]
            values = {name: value.detach().float() for name, value in values.items()}
            seen.append({"draws": batch["draws"], "timesteps": timesteps, "weights": weights, **values})
        step = gather_step(self.accelerator, seen)
        # a norm of infinity leaves the gradients as they are
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.args.max_grad_norm or math.inf)
        logs = step_means(step, self.args.ddpm_num_steps)
        if "bad_images" in step:
            self.num_bad_images += int(step["bad_images"].sum())
        finite = step["loss"].isfinite().all().item()
        if norm is not None:  # DeepSpeed may keep it to itself
            finite = finite and math.isfinite(norm)
            logs |= {"gradient_norm": float(norm)} if math.isfinite(norm) else {}
        if finite:
            self._apply_gradients(step)
        elif self.accelerator.scaler is not None:
            self.accelerator.scaler.update()  # of fp16: a lower scale, for it has seen the gradients when they were clipped
        self.optimizer.zero_grad()
        self.skipped_steps += not finite
        self.skipped_in_a_row = 0 if finite else self.skipped_in_a_row + 1
        return logs

    def _apply_gradients(self, step: StepValues) -> None:
        self.optimizer.step()
        self.lr_scheduler.step()
        self.averages.step(self.model.parameters())
        if hasattr(self.timestep_sampler, "update"):
            self.timestep_sampler.update(step["timesteps"], step["loss"])

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
        return {
            decay: self._with_weights({**state_dict, **weights})
            for decay, weights in (self.averages.weights() or {None: {}}).items()
        }

    def _with_weights(self, state_dict: dict[str, torch.Tensor]) -> ModelMixin:
        with torch.device("meta"):
            model = self.model_class.from_config(self.model_config)
        model.load_state_dict(state_dict, assign=True)
        return model.to(self.accelerator.device).eval().requires_grad_(False)

    def _evaluate(self) -> dict[str, float]:
        values = {}
        results = self._results()
        if self.accelerator.is_main_process:
            with torch.random.fork_rng():  # so that looking at a model does not change its training
                values = self.evaluate(next(iter(results.values())), self.global_step)
        self.accelerator.wait_for_everyone()
        return values

    def _save_result(self) -> None:
        results = self._results()
        if not self.accelerator.is_main_process:
            return
        try:
            with atomic_update(self.args.output_dir) as directory:
                (_, result), *others = results.items()
                self.save(result, directory)
                for decay, model in others:
                    model.save_pretrained(directory / f"{self.name}_ema_{decay}")
                write_facts(directory, {self.name: self._facts()})
        except Exception as error:  # of whatever library met the full disk
            raise InputError(
                f"The result could not be written to {self.args.output_dir} ({error}); {self.checkpoints.last_good()}."
            ) from error
        self.accelerator.print(f"Saved {self.args.output_dir}.")

    def _facts(self) -> dict[str, Any]:
        return run_facts(self.args, self.accelerator, self.name, self.max_train_steps, self.images_per_step)

    @contextmanager
    def _stop_on_signals(self) -> Iterator[None]:
        def stop(signum, frame):
            self.stop_requested = True

        previous = {signum: signal.signal(signum, stop) for signum in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for signum, handler in previous.items():
                signal.signal(signum, handler)
