"""The training loop that the scripts share: Accelerate, EMA, checkpoints, resume, progress."""

import argparse
import itertools
import json
import math
import reprlib
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, ProjectConfiguration, set_seed
from diffusers import ModelMixin
from diffusers.optimization import get_scheduler
from tqdm.auto import tqdm

from diffusers_cg.errors import UserError, user_errors
from diffusers_cg.files import atomic_directory, atomic_update, partial_path
from diffusers_cg.training.arguments import accumulation_steps
from diffusers_cg.training.averages import WeightAverages
from diffusers_cg.training.data import TrainingImages, training_loader


STATE_FILE = "training_state.json"

LossFunction = Callable[[torch.nn.Module, dict[str, torch.Tensor]], tuple[torch.Tensor, dict[str, torch.Tensor]]]
"""(model, batch) -> loss per image (B,), and further values per image (B,) to log."""


def make_accelerator(args: argparse.Namespace) -> Accelerator:
    """Accelerate, set up as the flags say, with the output folder made and the seed set."""
    log_with = None if args.logger == "none" else args.logger
    with user_errors():
        accelerator = Accelerator(
            mixed_precision=args.mixed_precision,
            log_with=log_with,
            # every process reads a stream, and decodes its own share
            dataloader_config=DataLoaderConfiguration(dispatch_batches=False),
            project_config=ProjectConfiguration(
                project_dir=str(args.output_dir), logging_dir=str(args.output_dir / args.logging_dir)
            ),
        )
    # not the constructor's argument, which a setting of `accelerate launch` overrides
    accelerator.gradient_accumulation_steps = accumulation_steps(args, accelerator.num_processes)
    if log_with is not None and not accelerator.log_with:
        raise UserError(f"--logger {args.logger} is not installed: install it, or pass --logger none.")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    set_seed(args.seed)
    return accelerator


class TrainingLoop:
    """Trains one model to the end of its steps, saving and resuming so that nothing is lost or repeated.

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
            Averages beyond the first are saved beside it, as `NAME_ema_DECAY`.
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
            raise UserError("The length of a stream is not known: pass --max_train_steps, or --images_per_epoch.")
        self.max_train_steps = args.max_train_steps or args.num_epochs * self.steps_per_epoch
        self.num_bad_images = 0
        self.global_step = 0
        self.stop_requested = False
        self.model_config = json.loads(model.to_json_string())

        if args.gradient_checkpointing:
            model.enable_gradient_checkpointing()
        model.to(accelerator.device)
        self.averages = WeightAverages(model.parameters(), args)
        for average in self.averages.by_decay.values():
            accelerator.register_for_checkpointing(average)
        optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=args.learning_rate,
            betas=(args.adam_beta1, args.adam_beta2),
            weight_decay=args.adam_weight_decay,
            eps=args.adam_epsilon,
        )
        with user_errors():
            # Accelerate steps the schedule once per process
            lr_scheduler = get_scheduler(
                args.lr_scheduler,
                optimizer=optimizer,
                num_warmup_steps=args.lr_warmup_steps * accelerator.num_processes,
                num_training_steps=self.max_train_steps * accelerator.num_processes,
            )
        self.model, self.optimizer, self.lr_scheduler = accelerator.prepare(model, optimizer, lr_scheduler)

    # ------------------------------------------------------------------------------------------------- checkpoints

    def checkpoints(self) -> list[Path]:
        """The complete checkpoints in the output folder, oldest first."""
        numbered = {}
        for path in self.args.output_dir.glob("checkpoint-*"):
            number = path.name.removeprefix("checkpoint-")
            if number.isdecimal() and (path / STATE_FILE).is_file():
                numbered[int(number)] = path
        return [numbered[number] for number in sorted(numbered)]

    def _last_good_checkpoint(self) -> str:
        good = self.checkpoints()
        return f"the last good checkpoint is {good[-1]}" if good else "there is no earlier checkpoint"

    def save_checkpoint(self) -> None:
        """Writes `checkpoint-STEP` whole, then removes checkpoints beyond `--checkpoints_total_limit`."""
        directory = self.args.output_dir / f"checkpoint-{self.global_step}"
        is_main = self.accelerator.is_main_process
        try:
            with atomic_directory(directory) if is_main else nullcontext(partial_path(directory)) as partial:
                self.accelerator.wait_for_everyone()
                self._save_state(partial)
                self.accelerator.wait_for_everyone()
        except Exception as error:  # of whatever library met the full disk
            raise UserError(
                f"Checkpoint {directory} could not be written ({error}); {self._last_good_checkpoint()}."
            ) from error
        limit = self.args.checkpoints_total_limit
        if is_main and limit:
            for old in self.checkpoints()[:-limit]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def _save_state(self, directory: Path) -> None:
        self.accelerator.save_state(str(directory))
        state = {
            "global_step": self.global_step,
            "images_per_step": self.images_per_step,
            "class_names": self.images.class_names,
            "num_images": self.images.num_images,
            "shuffle_buffer_size": self.images.shuffle_buffer_size,
            "seed": self.args.seed,
            "use_ema": self.args.use_ema,
            "ema_max_decay": self.args.ema_max_decay,
            "low_res_size": self.images.low_res_size,
            "model_config": self.model_config,
        }
        if self.accelerator.is_main_process:
            (directory / STATE_FILE).write_text(json.dumps(state, indent=2) + "\n")

    def resume(self) -> None:
        """Loads the checkpoint that `--resume_from_checkpoint` names.

        Raises:
            UserError: if there is none, or it belongs to another model or another training.
        """
        wanted = self.args.resume_from_checkpoint
        if wanted == "latest":
            found = self.checkpoints()
            if not found:
                raise UserError(
                    f"{self.args.output_dir} holds no checkpoint to resume from: leave the flag out to start anew."
                )
            directory = found[-1]
        else:
            directory = Path(wanted)
            if not (directory / STATE_FILE).is_file():
                raise UserError(f"{directory} is not a checkpoint of this script (it has no {STATE_FILE}).")

        state = json.loads((directory / STATE_FILE).read_text())
        differing = sorted(
            name
            for name in self.model_config.keys() | state["model_config"].keys()
            if not name.startswith("_")
            and name != "class_names"
            and self.model_config.get(name) != state["model_config"].get(name)
        )
        if differing:
            stated = ", ".join(
                f"{n}={state['model_config'].get(n)} (now {self.model_config.get(n)})" for n in differing
            )
            raise UserError(f"{directory} is a checkpoint of another architecture: {stated}.")
        for name, now in (
            ("images_per_step", self.images_per_step),
            ("class_names", self.images.class_names),
            ("num_images", self.images.num_images),
            ("shuffle_buffer_size", self.images.shuffle_buffer_size),
            ("seed", self.args.seed),
            ("use_ema", self.args.use_ema),
            ("ema_max_decay", self.args.ema_max_decay),
            ("low_res_size", self.images.low_res_size),
        ):
            if state.get(name, now) != now:
                raise UserError(
                    f"{directory} was trained with {name}={reprlib.repr(state[name])}, now it is {reprlib.repr(now)}: "
                    "the two cannot be joined."
                )
        self.accelerator.load_state(str(directory))
        self.global_step = state["global_step"]
        self.accelerator.print(f"Resumed from {directory} at step {self.global_step}.")

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
        loader = accelerator.prepare(
            training_loader(
                self.images,
                args.train_batch_size,
                first_draw=self.global_step * self.images_per_step,
                num_workers=args.dataloader_num_workers,
            )
        )
        batches = iter(loader)
        if self.global_step > 0:
            # a loader draws a seed when it starts; the checkpoint's random numbers already count that draw
            with torch.random.fork_rng():
                batches = itertools.chain([next(batches)], batches)

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
                progress_bar.update()
                progress_bar.set_postfix(
                    loss=f"{logs['loss']:.4f}",
                    lr=f"{logs['learning_rate']:.1e}",
                    img_s=f"{logs['images_per_second']:.0f}",
                )
                done = self.global_step == self.max_train_steps
                every = args.save_images_epochs * self.steps_per_epoch
                if self.evaluate is not None and every and (self.global_step % every == 0 or done):
                    logs.update(self._evaluate())
                accelerator.log(logs, step=self.global_step)
                if args.checkpointing_steps and (self.global_step % args.checkpointing_steps == 0 or done):
                    self.save_checkpoint()

        num_bad_images = accelerator.reduce(torch.tensor(self.num_bad_images, device=accelerator.device)).item()
        if num_bad_images:
            num_drawn = (self.global_step - first_step) * self.images_per_step
            accelerator.print(f"{num_bad_images} of {num_drawn} images could not be read; the next ones stood in.")
        if self.stop_requested and self.global_step < self.max_train_steps:
            self.save_checkpoint()
            accelerator.print(f"Stopped at step {self.global_step}; go on with --resume_from_checkpoint latest.")
        elif accelerator.is_main_process:
            try:
                with atomic_update(args.output_dir) as directory:
                    (_, result), *others = self._results()
                    self.save(result, directory)
                    for name, model in others:
                        model.save_pretrained(directory / name)
            except Exception as error:  # of whatever library met the full disk
                raise UserError(
                    f"The result could not be written to {args.output_dir} ({error}); {self._last_good_checkpoint()}."
                ) from error
            accelerator.print(f"Saved {args.output_dir}.")
        accelerator.end_training()

    def _train_step(self, batches) -> dict[str, float]:
        """One optimizer step."""
        sums: dict[str, float] = {}
        num_batches = self.accelerator.gradient_accumulation_steps
        for _ in range(num_batches):
            batch = next(batches)
            with self.accelerator.accumulate(self.model):
                losses, values = self.loss_function(self.model, batch)
                if "bad_images" in batch:
                    values = {**values, "bad_images": batch["bad_images"]}
                    self.num_bad_images += int(batch["bad_images"].sum())
                loss = losses.mean()
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    # a norm of infinity leaves the gradients as they are
                    self.accelerator.clip_grad_norm_(self.model.parameters(), self.args.max_grad_norm or math.inf)
                self.optimizer.step()
                self.lr_scheduler.step()
                self.optimizer.zero_grad()
            for name, value in {"loss": losses, **values}.items():
                mean = value.detach().float().mean().item()
                sums[name] = sums.get(name, 0.0) + mean / num_batches
        self.averages.step(self.model.parameters())
        return sums

    def _results(self) -> list[tuple[str, ModelMixin]]:
        """The trained model, by the name that it is saved under beside the result (the first one's is the result)."""
        model = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        return [(f"{self.name}_ema_{decay}", average) for decay, average in self.averages.models(model).items()]

    def _evaluate(self) -> dict[str, float]:
        values = {}
        if self.accelerator.is_main_process:
            with torch.random.fork_rng():  # so that looking at a model does not change its training
                values = self.evaluate(self._results()[0][1], self.global_step)
        self.accelerator.wait_for_everyone()
        return values

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
