"""The training commands, as a user starts, stops and resumes them."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from conftest import TINY
from diffusers import DDPMScheduler, UniPCMultistepScheduler
from PIL import Image
from processes import Signal, run_command, run_function, run_script
from reference import DATA
from safetensors.torch import load_file

from diffusers_cg import (
    ADMUNet2DModel,
    ClassifierGuidedDDIMPipeline,
    ClassifierGuidedDDPMPipeline,
    NoisyClassifierModel,
)
from diffusers_cg.diffusion import LossSecondMomentSampler
from diffusers_cg.errors import InputError
from diffusers_cg.training import train_unet
from diffusers_cg.training.config import UNetSettings


NUM_IMAGES, BATCH_SIZE = 36, 8
COMMANDS = ("train_unet", "train_classifier")
EARLIER = DATA / "earlier_training"
WEIGHTS = "diffusion_pytorch_model.safetensors"


def at_draw(draw, signum=signal.SIGKILL):
    """When the training opens the image of this draw (all are opened twice before, for their check and their fingerprint)."""
    return Signal(signum, ".png", count=2 * NUM_IMAGES + draw + 1)


def contents(folder, without=("samples", "validation", "logs")):
    """Every file of an output folder by its path, but for the pictures."""
    files = {path.relative_to(folder): path for path in Path(folder).rglob("*") if path.is_file()}
    return {str(name): path.read_bytes() for name, path in files.items() if name.parts[0] not in without}


def weights(folder):
    """All weights of a result in one vector."""
    (file,) = [*Path(folder).glob(WEIGHTS), *Path(folder).glob(f"unet/{WEIGHTS}")]
    return torch.cat([tensor.flatten() for _, tensor in sorted(load_file(file).items())])


def events_of(folder, run="training"):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder / "logs" / run), size_guidance={"images": 0}).Reload()


def logged(folder, name, run="training"):
    return torch.tensor([event.value for event in events_of(folder, run).Scalars(name)])


def pictures_logged(folder, name):
    """The steps of them."""
    return [event.step for event in events_of(folder).Images(name)]


# ------------------------------------------------------------------------------------------------ what a training leaves


@pytest.fixture(scope="module")
def trained_unet(train, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("unet")
    train(
        "train_unet",
        output_dir=output_dir,
        max_train_steps=20,
        learning_rate=2e-3,
        save_images_epochs=2,
        ddpm_num_inference_steps=2,
        checkpointing_steps=5,
        checkpoints_total_limit=2,
        logger="tensorboard",
    )
    return output_dir


@pytest.fixture(scope="module")
def trained_classifier(train, tmp_path_factory, few_digits):
    output_dir = tmp_path_factory.mktemp("classifier")
    train(
        "train_classifier",
        output_dir=output_dir,
        validation_data_dir=few_digits,
        train_batch_size=16,
        max_train_steps=90,
        learning_rate=5e-4,
        ddpm_beta_schedule="squaredcos_cap_v2",
        center_crop=True,
        save_images_epochs=15,
        logger="tensorboard",
    )
    return output_dir


def test_loss_of_the_unet_falls(trained_unet):
    loss = logged(trained_unet, "loss")
    assert len(loss) == 20
    assert loss[:3].mean() > 0.8
    assert loss[-5:].mean() < 0.6 * loss[:3].mean()


def test_losses_are_logged_by_quarter_of_the_diffusion(trained_unet):
    mse = [logged(trained_unet, f"mse_q{quarter}") for quarter in range(4)]
    assert mse[0].mean() > mse[3].mean()  # noise is hard to tell where there is little
    assert logged(trained_unet, "vb_q0").mean() > logged(trained_unet, "vb_q3").mean()


def test_accuracy_of_the_classifier_rises_most_where_there_is_little_noise(trained_classifier):
    assert logged(trained_classifier, "loss")[0] == pytest.approx(torch.tensor(3.0).log().item(), abs=0.3)
    reports = sorted((trained_classifier / "validation").glob("*.json"))
    assert [path.stem for path in reports] == ["step_0000045", "step_0000090"]
    accuracy = json.loads(reports[-1].read_text())
    assert list(accuracy) == ["0", "111", "222", "333", "444", "555", "666", "777", "888", "999"]
    assert accuracy["0"] > 0.9
    assert accuracy["999"] < 0.7
    assert Image.open(reports[-1].with_suffix(".png")).width > 300
    assert logged(trained_classifier, "validation_accuracy/t0")[-1] == pytest.approx(accuracy["0"])


def test_sample_grids_have_a_row_per_class(trained_unet):
    grids = sorted((trained_unet / "samples").iterdir())
    assert [path.name for path in grids] == ["step_0000010.png", "step_0000020.png"]
    with Image.open(grids[-1]) as grid:
        assert grid.height == pytest.approx(3 * 70, abs=40)
        assert grid.width > 8 * 70


def test_grids_and_what_they_look_like_are_logged(trained_unet):
    assert pictures_logged(trained_unet, "samples") == [10, 20]
    for name in ("mean_brightness", "spread_brightness", "noise"):
        samples, images = logged(trained_unet, f"samples/{name}"), logged(trained_unet, f"images/{name}")
        assert len(samples) == 2 and images[0] == images[1] and images[0] not in samples
    assert logged(trained_unet, "average/decay").tolist() == pytest.approx([1 - 10**-0.75, 1 - 20**-0.75])
    assert logged(trained_unet, "average/start")[-1] < 0.01


def test_only_the_latest_checkpoints_are_kept(trained_unet):
    assert sorted(path.name for path in trained_unet.glob("*checkpoint*")) == ["checkpoint-15", "checkpoint-20"]


def test_learning_rate_speed_and_gradients_are_logged(trained_unet):
    assert (logged(trained_unet, "learning_rate") == 2e-3).all()
    assert (logged(trained_unet, "gradient_norm") > 0).all()
    assert (logged(trained_unet, "skipped_steps") == 0).all()
    assert (logged(trained_unet, "images_per_second") > 0).all()


def test_result_of_the_unet_loads_as_a_pipeline_without_classifier(trained_unet):
    pipe = ClassifierGuidedDDIMPipeline.from_pretrained(trained_unet)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.unet.config.num_class_embeds == 3
    assert pipe.class_names == ["0", "1", "2"]
    assert pipe.unet.config.out_channels == 2
    assert pipe.scheduler.config.variance_type == "learned_range"
    image = pipe(class_labels=2, num_inference_steps=2, classifier_scale=0.0).images[0]
    assert image.size == (16, 16)


def test_result_is_the_average_of_the_weights(trained_unet):
    last = load_file(trained_unet / "checkpoint-20" / "model.safetensors")
    raw = torch.cat([tensor.flatten() for _, tensor in sorted(last.items())])
    average = torch.load(trained_unet / "checkpoint-20" / "custom_checkpoint_0.pkl", weights_only=True)
    names = list(ADMUNet2DModel.from_pretrained(trained_unet, subfolder="unet").state_dict())
    average = dict(zip(names, average["shadow_params"]))
    average = torch.cat([tensor.flatten() for _, tensor in sorted(average.items())])
    assert torch.equal(weights(trained_unet), average)
    assert not torch.allclose(weights(trained_unet), raw)


def test_result_of_the_classifier_loads(trained_classifier):
    classifier = NoisyClassifierModel.from_pretrained(trained_classifier)
    assert classifier.config.num_classes == 3
    assert classifier.config.class_names == ["0", "1", "2"]
    assert classifier(torch.zeros(2, 1, 16, 16), torch.tensor([0, 999])).logits.shape == (2, 3)


@pytest.mark.parametrize(
    ("class_conditional", "learn_variance", "channels"), [(False, True, 3), (True, False, 4), (False, False, 1)]
)
def test_unconditional_and_fixed_variance_unets(train, tmp_path, class_conditional, learn_variance, channels):
    train(
        "train_unet",
        output_dir=tmp_path,
        class_conditional=class_conditional,
        learn_variance=learn_variance,
        channels=channels,
        save_images_epochs=1,
        ddpm_num_inference_steps=2,
    )
    pipe = ClassifierGuidedDDIMPipeline.from_pretrained(tmp_path)
    assert pipe.unet.config.num_class_embeds == (3 if class_conditional else None)
    assert pipe.class_names == (["0", "1", "2"] if class_conditional else None)
    assert pipe.unet.config.out_channels == channels * (2 if learn_variance else 1)
    assert pipe.scheduler.config.variance_type == ("learned_range" if learn_variance else "fixed_large")
    with Image.open(tmp_path / "samples" / "step_0000002.png") as grid:
        assert grid.mode == "RGB"


# ------------------------------------------------------------------------------------------- as typed, from end to end


def test_from_digits_to_guided_samples_as_typed(few_digits, tiny_flags, train, trained_unet, tmp_path):
    flags, v_prediction = {"checkpointing_steps": 500, "save_images_epochs": 1}, {"prediction_type": "v_prediction"}
    unet, classifier, unconditional = tmp_path / "unet", tmp_path / "classifier", tmp_path / "unconditional"
    argv = tiny_flags(output_dir=classifier, validation_fraction=0.2, use_ema=True, **flags)
    ended = run_script("diffusers_cg.training.train_classifier", *argv, log=tmp_path / "log")
    assert ended.status == 0, ended.output
    assert list((classifier / "validation").glob("*.png"))
    argv = tiny_flags(output_dir=unet, classifier=classifier, ddpm_num_inference_steps=2, **v_prediction, **flags)
    # as `accelerate launch` does
    ended = run_script("accelerate.commands.launch", "training/train_unet.py", *argv, log=tmp_path / "log")
    assert ended.status == 0, ended.output
    assert list((unet / "samples").glob("*.png"))
    train("train_unet", output_dir=unconditional, class_conditional=False, **v_prediction)

    parts = ["--unet", unet, "--classifier", classifier, "--unconditional_unet", unconditional]
    defaults = ["--solver_num_inference_steps", 2, "--ddim_classifier_scale", 3, "--ddpm_num_inference_steps", 3]
    for dtype in ("fp32", "fp16"):
        output = ["--dtype", dtype, "--output_dir", tmp_path / dtype]
        ended = run_command("assemble_pipeline", *parts, *defaults, *output, log=tmp_path / "log")
        assert ended.status == 0, ended.output

    by_solver = ["--solver", "UniPCMultistepScheduler", "solver_order=1", "--output_dir", tmp_path / "unipc"]
    ended = run_command("assemble_pipeline", *parts, *by_solver, log=tmp_path / "log")
    assert ended.status == 0, ended.output
    pipe = ClassifierGuidedDDIMPipeline.from_pretrained(tmp_path / "unipc")
    assert isinstance(pipe.scheduler, UniPCMultistepScheduler) and pipe.scheduler.config.solver_order == 1
    ended = run_command(
        "assemble_pipeline",
        *parts,
        "--solver",
        "LCMScheduler",
        "--output_dir",
        tmp_path / "none",
        log=tmp_path / "log",
    )
    assert ended.status == 2 and "LCMScheduler cannot be guided" in ended.output and not (tmp_path / "none").exists()

    # of which the one scheduler of a pipeline says another thing
    output = ["--output_dir", tmp_path / "mixed"]
    ended = run_command(
        "assemble_pipeline", "--unet", unet, "--unconditional_unet", trained_unet, *output, log=tmp_path / "log"
    )
    assert ended.status == 2 and "prediction_type='epsilon'" in ended.output and not (tmp_path / "mixed").exists()

    images = {}
    for dtype in ("fp32", "fp16"):
        pipe = ClassifierGuidedDDIMPipeline.from_pretrained(tmp_path / dtype)
        pipe.set_progress_bar_config(disable=True)
        assert {pipe.unet.dtype, pipe.classifier.dtype} == {torch.float32}
        assert pipe.class_names == ["0", "1", "2"]
        assert pipe.scheduler.config.prediction_type == "v_prediction"
        assert pipe.scheduler.config.algorithm_type == "sde-dpmsolver++"
        generator = torch.Generator().manual_seed(0)
        images[dtype] = pipe(class_labels=[0, 2], generator=generator, output_type="np").images
        assert images[dtype].shape == (2, 16, 16, 1)
    assert abs(images["fp32"] - images["fp16"]).max() < 0.02
    stored = load_file(tmp_path / "fp16" / "unet" / WEIGHTS).values()
    assert {tensor.dtype for tensor in stored} == {torch.float16}

    pipe = ClassifierGuidedDDPMPipeline.from_pretrained(
        tmp_path / "fp32", unet=ADMUNet2DModel.from_pretrained(tmp_path / "fp32", subfolder="unet_unconditional")
    )
    assert isinstance(pipe.scheduler, DDPMScheduler)
    assert len(pipe(class_labels=[0, 2, 1]).images) == 3


def test_a_unet_alone_is_assembled_in_another_precision(trained_unet, tmp_path):
    output = tmp_path / "pipeline"
    argv = ["--unet", trained_unet, "--dtype", "bf16", "--output_dir", output]
    assert run_command("assemble_pipeline", *argv, log=tmp_path / "log").status == 0
    pipe = ClassifierGuidedDDPMPipeline.from_pretrained(output)
    assert pipe.classifier is None
    assert {tensor.dtype for tensor in load_file(output / "unet" / WEIGHTS).values()} == {torch.bfloat16}


def test_gradient_checkpointing_and_processes_that_load_images_change_nothing(undisturbed, train, tmp_path):
    flags = {**RESUMABLE, "gradient_checkpointing": True, "dataloader_num_workers": 1}
    train("train_unet", output_dir=tmp_path, **flags)
    expected = undisturbed("train_unet")
    assert torch.allclose(weights(tmp_path), weights(expected), atol=1e-6)


# ---------------------------------------------------------------------------------------------------- stop and resume

RESUMABLE = {
    "dropout": 0.1,
    "max_train_steps": 6,
    "checkpointing_steps": 2,
    "random_flip": True,
    "center_crop": False,
    "use_ema": True,
    "ema_max_decay": (0.99, 0.5),
    # few timesteps, so that all soon have the history that the sampler waits for
    "ddpm_num_steps": 2,
    "timestep_sampler": "loss_second_moment",
}
EXTRA = {"train_unet": {}, "train_classifier": {"validation_fraction": 0}}


@pytest.fixture(scope="module")
def undisturbed(train, tmp_path_factory):
    """Output folder of a training that nothing happened to."""
    folders = {}

    def undisturbed(name):
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name)
            train(name, output_dir=folders[name], **RESUMABLE, **EXTRA[name])
        return folders[name]

    return undisturbed


def test_timesteps_of_those_trainings_are_not_uniform_in_the_end(undisturbed):
    sampler = LossSecondMomentSampler(2)
    for name in COMMANDS:
        state = undisturbed(name) / "checkpoint-4" / "custom_checkpoint_2.pkl"
        sampler.load_state_dict(torch.load(state, weights_only=True))
        assert sampler.probabilities[0] != 0.5


@pytest.mark.parametrize(("name", "folder"), [("train_unet", "unet"), ("train_classifier", "classifier")])
def test_further_averages_lie_beside_the_result(undisturbed, name, folder):
    model_class = ADMUNet2DModel if name == "train_unet" else NoisyClassifierModel
    slow = model_class.from_pretrained(undisturbed(name), **({"subfolder": "unet"} if name == "train_unet" else {}))
    fast = model_class.from_pretrained(undisturbed(name) / f"{folder}_ema_0.5")
    last = load_file(undisturbed(name) / "checkpoint-6" / "model.safetensors")
    distances = [
        sum((last[key] - tensor).norm() for key, tensor in model.state_dict().items()) for model in (fast, slow)
    ]
    assert 0 < distances[0] < distances[1]


KILLS = {
    "between checkpoints": (at_draw(5 * BATCH_SIZE + 3), ["checkpoint-2", "checkpoint-4"]),
    "while writing a checkpoint": (
        Signal(signal.SIGKILL, ".checkpoint-4.partial/training_state.json"),
        ["checkpoint-2"],
    ),
    "while writing the result": (
        Signal(signal.SIGKILL, ".staging.partial", event="os.rename"),
        ["checkpoint-2", "checkpoint-4", "checkpoint-6"],
    ),
}


@pytest.mark.parametrize(
    ("name", "moment"),
    [*(("train_unet", moment) for moment in KILLS), ("train_classifier", "while writing a checkpoint")],
)
def test_killed_and_resumed_is_as_if_nothing_had_happened(undisturbed, train, tmp_path, name, moment):
    kill, left = KILLS[moment]
    flags = {"output_dir": tmp_path, **RESUMABLE, **EXTRA[name]}
    train(name, status=-signal.SIGKILL, signal=kill, **flags)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == left
    train(name, resume_from_checkpoint="latest", **flags)
    assert_same(contents(tmp_path), contents(undisturbed(name)))


@pytest.mark.parametrize("name", COMMANDS)
def test_sigterm_saves_a_checkpoint_to_go_on_from(undisturbed, train, tmp_path, name):
    flags = {"output_dir": tmp_path, **RESUMABLE, **EXTRA[name]}
    stopped = train(name, signal=at_draw(3 * BATCH_SIZE, signal.SIGTERM), **flags)
    assert "Stopped at step 3; go on with --resume_from_checkpoint latest." in stopped.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-3"]
    train(name, resume_from_checkpoint="latest", **flags)
    shutil.rmtree(tmp_path / "checkpoint-3")
    assert_same(contents(tmp_path), contents(undisturbed(name)))


def test_a_signal_to_the_group_spares_the_processes_that_load_images(undisturbed, train, tmp_path):
    flags = {"output_dir": tmp_path, **RESUMABLE, "dataloader_num_workers": 2}
    # sent by a loader, images ahead of the training
    sent = Signal(signal.SIGTERM, ".png", count=2 * BATCH_SIZE + 1, to_group=True)
    stopped = train("train_unet", signal=sent, verify_images=False, **flags)
    assert "go on with --resume_from_checkpoint latest." in stopped.output
    steps = [int(path.name.removeprefix("checkpoint-")) for path in tmp_path.glob("checkpoint-*")]
    assert f"Stopped at step {max(steps)};" in stopped.output and max(steps) < 6
    assert not (tmp_path / "unet").exists()


def test_going_back_to_an_earlier_checkpoint_asks_before_it_removes_the_later_ones(undisturbed, train, tmp_path):
    shutil.copytree(undisturbed("train_unet"), tmp_path, dirs_exist_ok=True)
    flags = {"output_dir": tmp_path, **RESUMABLE, "resume_from_checkpoint": tmp_path / "checkpoint-2"}
    flags |= {"max_train_steps": 3, "checkpointing_steps": 1, "checkpoints_total_limit": 2}
    said = train("train_unet", status=2, **flags).output
    assert "holds checkpoints that this training does not come from, the latest is checkpoint-6" in said
    assert_same(contents(tmp_path), contents(undisturbed("train_unet")))
    train("train_unet", **flags, overwrite_output_dir=True)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]


def test_resumed_beyond_its_steps_it_tells_those_that_were_taken(undisturbed, train, tmp_path):
    shutil.copytree(undisturbed("train_unet"), tmp_path, dirs_exist_ok=True)
    flags = {"output_dir": tmp_path, **RESUMABLE, "resume_from_checkpoint": "latest", "max_train_steps": 3}
    assert "at step 6.\nThis is beyond the 3 steps asked for" in train("train_unet", **flags).output
    told = json.loads((tmp_path / "training.json").read_text())["unet"]
    assert told["steps"] == 6
    again = train_unet.parse_args([*told["arguments"][3:], "--output_dir", "again"])
    assert again.max_train_steps == 6
    same = {"without": ("training.json",)}
    assert_same(contents(tmp_path, **same), contents(undisturbed("train_unet"), **same))


def test_a_named_checkpoint_can_be_resumed(undisturbed, train, tmp_path):
    flags = {**RESUMABLE, **EXTRA["train_unet"]}
    train(
        "train_unet", output_dir=tmp_path, resume_from_checkpoint=undisturbed("train_unet") / "checkpoint-2", **flags
    )
    expected = contents(undisturbed("train_unet"), without=["checkpoint-2"])
    assert_same(contents(tmp_path), expected)


@pytest.mark.parametrize("name", COMMANDS)
def test_evaluation_does_not_change_the_training(undisturbed, train, few_digits, tmp_path, name):
    how = {
        "train_unet": {"ddpm_num_inference_steps": 2},
        "train_classifier": {"validation_data_dir": few_digits, "validation_fraction": 0.05},
    }[name]
    train(name, output_dir=tmp_path, **{**RESUMABLE, **EXTRA[name], "save_images_epochs": 1, **how})
    assert len(list(tmp_path.glob("*/step_*.png"))) == 2
    # training.json tells the flags, and the result of a classifier is that of the best evaluation
    others = {"without": ("samples", "validation", "logs", "training.json", "checkpoint-best", WEIGHTS)}
    assert_same(contents(tmp_path, **others), contents(undisturbed(name), **others))


EARLIER_FLAGS = {
    **{"resolution": 8, "base_channels": 4, "norm_num_groups": 2, "channel_multipliers": (1,)},
    **{"attention_resolutions": (), "attention_head_dim": 4, "dropout": 0.1, "random_flip": True},
    **{"center_crop": False, "timestep_sampler": "loss_second_moment", "ddpm_num_steps": 2},
    **{"ema_max_decay": 0.99, "learning_rate": 1e-3, "lr_scheduler": "linear", "lr_warmup_steps": 1},
    **{"max_train_steps": 4, "checkpointing_steps": 2},
}


@pytest.mark.parametrize("num_processes", [1, 2])
def test_a_checkpoint_of_an_earlier_version_is_resumed(train, tmp_path, num_processes):
    """`tests/data/earlier_training` was left by the scripts of before settings were declared in `training/config.py`.

    Had two processes left it, its learning rate would count steps of each. What they came to in the end was the same, but for
    dropout in layers after attention, which goes by the order of images in memory.
    """
    checkpoint = Path(shutil.copytree(EARLIER / "checkpoint-2", tmp_path / "earlier"))
    schedule = torch.load(checkpoint / "scheduler.bin")
    torch.save({**schedule, "last_epoch": num_processes * schedule["last_epoch"]}, checkpoint / "scheduler.bin")
    ended = train("train_unet", output_dir=tmp_path, resume_from_checkpoint=checkpoint, **EARLIER_FLAGS)
    assert "learning rate" not in ended.output
    pipe = ClassifierGuidedDDIMPipeline.from_pretrained(tmp_path)
    assert pipe.unet.config.scale_betas is False and pipe.scheduler.config.beta_end == 0.02  # for any T, there
    assert "--no-scale_betas" in json.loads((tmp_path / "training.json").read_text())["unet"]["arguments"]
    result, expected = load_file(tmp_path / "unet" / WEIGHTS), load_file(EARLIER / "result.safetensors")
    assert result.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.allclose(result[name], tensor, atol=1e-6), name  # equal on the machine that made them
    state, earlier = (
        json.loads((folder / "training_state.json").read_text())
        for folder in (tmp_path / "checkpoint-4", EARLIER / "checkpoint-2")
    )
    for part in ("settings", "model_config"):  # there may be new words
        assert earlier[part].items() <= state.pop(part).items()
        del earlier[part]
    assert state == {**earlier, "global_step": 4, "max_train_steps": 4, "changes": []}


def test_other_steps_change_a_learning_rate_that_decays_and_that_is_said(train, tmp_path):
    flags = {**EARLIER_FLAGS, "max_train_steps": 3, "resume_from_checkpoint": EARLIER / "checkpoint-2"}
    said = train("train_unet", output_dir=tmp_path, **flags).output
    assert "The learning rate goes from 0.000667 to 0.0005 here: the number of steps has changed" in said
    assert "--lr_scheduler linear is now one over 3 steps" in said


def test_the_schedule_is_another_also_where_its_value_is_not(train, tmp_path):
    flags = {**EARLIER_FLAGS, "lr_warmup_steps": 4, "max_train_steps": 8}
    train("train_unet", output_dir=tmp_path, **{**flags, "max_train_steps": 2})
    said = train("train_unet", output_dir=tmp_path, resume_from_checkpoint="latest", **flags).output
    assert "The learning rate goes from 0.0005 to 0.0005 here: the number of steps has changed" in said


def test_another_learning_rate_is_refused_unless_it_is_meant(train, tmp_path):
    flags = {**EARLIER_FLAGS, "logger": "tensorboard", "tracker_project_name": "mine", "run_name": "second"}
    shutil.copytree(EARLIER / "checkpoint-2", tmp_path / "checkpoint-2")
    flags |= {"learning_rate": 1e-5, "lr_scheduler": "constant", "lr_warmup_steps": 0}
    flags |= {"resume_from_checkpoint": "checkpoint-2"}
    said = train("train_unet", status=2, output_dir=tmp_path, **flags).output
    assert "learning_rate=0.001, now it is 1e-05" in said and "--overwrite_learning_rate" in said
    refused = {**flags, "overwrite_learning_rate": True, "seed": 1}
    assert "seed=0, now it is 1: the two" in train("train_unet", status=2, output_dir=tmp_path, **refused).output
    said = train("train_unet", output_dir=tmp_path, **{**flags, "overwrite_learning_rate": True}).output
    assert "The learning rate goes from 0.000667 to 1e-05 here, as it is meant to." in said
    assert logged(tmp_path, "learning_rate", "mine/second").tolist() == pytest.approx([1e-5, 1e-5])
    told = json.loads((tmp_path / "training.json").read_text())["unet"]["changes"]
    assert told == "from step 2 learning_rate 1e-05, lr_scheduler constant, lr_warmup_steps 0"
    # from now on it is the training's own
    flags |= {"resume_from_checkpoint": "latest", "max_train_steps": 5, "run_name": "third"}
    assert "learning rate" not in train("train_unet", output_dir=tmp_path, **flags).output
    assert logged(tmp_path, "learning_rate", "mine/third").tolist() == pytest.approx([1e-5])
    assert json.loads((tmp_path / "training.json").read_text())["unet"]["changes"] == told


def test_a_name_that_two_checkpoints_have_is_not_guessed(stopped_at, train, tmp_path, monkeypatch):
    monkeypatch.chdir(stopped_at)
    shutil.copytree(stopped_at / "checkpoint-2", tmp_path / "checkpoint-2")
    flags = {**EARLIER_FLAGS, "output_dir": tmp_path, "max_train_steps": 2, "resume_from_checkpoint": "checkpoint-2"}
    said = train("train_unet", status=2, **flags).output
    assert f"{tmp_path}/checkpoint-2 or {stopped_at}/checkpoint-2: pass the whole path" in said
    for there in (tmp_path.parent, stopped_at):
        monkeypatch.chdir(there)
        assert "Resumed from" in train("train_unet", **{**flags, "output_dir": stopped_at}).output


@pytest.fixture
def stopped_at(train, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped")
    train("train_unet", output_dir=folder, **{**EARLIER_FLAGS, "max_train_steps": 2})
    return folder


# ----------------------------------------------------------------------------------------------- the best, and the last

VALIDATED = {
    **EARLIER_FLAGS,
    **{"train_batch_size": 36, "max_train_steps": 8, "save_images_epochs": 1, "checkpointing_steps": 3},
    **{"lr_scheduler": "constant", "lr_warmup_steps": 0, "ddpm_num_steps": 1000, "timestep_sampler": "uniform"},
}


def mean_accuracies(folder):
    reports = sorted((folder / "validation").glob("*.json"))
    return [sum(json.loads(path.read_text()).values()) / 10 for path in reports]


def test_the_classifier_with_the_best_accuracy_is_the_result(train, few_digits, tmp_path):
    flags = {**VALIDATED, "learning_rate": 3e-2, "logger": "tensorboard", "validation_data_dir": few_digits}
    train("train_classifier", output_dir=tmp_path, **flags)
    accuracies = mean_accuracies(tmp_path)
    best = max(range(8), key=lambda step: accuracies[step]) + 1
    assert best < 8  # or the last would do
    stated = json.loads((tmp_path / "checkpoint-best" / "best.json").read_text())
    assert stated == {"step": best, "value": pytest.approx(accuracies[best - 1])}
    assert torch.equal(weights(tmp_path), weights(tmp_path / "checkpoint-best"))
    told = json.loads((tmp_path / "training.json").read_text())["classifier"]
    assert told["result"] == f"of step {best}, the best: validation_accuracy {accuracies[best - 1]:.4f}"
    assert logged(tmp_path, "validation_accuracy/mean").tolist() == pytest.approx(accuracies)
    assert pictures_logged(tmp_path, "validation") == list(range(1, 9))


def test_without_a_better_one_the_training_ends_and_stays_ended(train, few_digits, tmp_path):
    flags = {**VALIDATED, "learning_rate": 1e-12, "validation_data_dir": few_digits, "early_stopping_patience": 2}
    flags |= {"max_train_steps": None, "num_epochs": 12}
    said = train("train_classifier", output_dir=tmp_path, **flags).output
    assert "The training ends at step 3: none of 2 evaluations was better than that of step 1." in said
    assert len(mean_accuracies(tmp_path)) == 3
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-best"]
    told = json.loads((tmp_path / "training.json").read_text())["classifier"]
    assert told["steps"] == 3 and told["arguments"][-2:] == ["--max_train_steps", "3"]
    assert "--num_epochs" not in told["arguments"]  # which says another length
    before = contents(tmp_path)
    train("train_classifier", output_dir=tmp_path, resume_from_checkpoint="latest", **flags)
    assert_same(contents(tmp_path), before)
    train(
        "train_classifier",
        output_dir=tmp_path,
        resume_from_checkpoint="latest",
        **{**flags, "early_stopping_patience": 4},
    )
    assert len(mean_accuracies(tmp_path)) == 5


def test_a_best_one_of_another_training_is_not_taken_over(train, few_digits, tmp_path):
    flags = {**VALIDATED, "validation_data_dir": few_digits, "max_train_steps": 3, "save_images_epochs": 3}
    flags |= {"output_dir": tmp_path}
    train("train_classifier", **flags)
    stated = tmp_path / "checkpoint-best" / "best.json"
    stated.write_text('{"step": 1, "value": 2.0}')
    stop = at_draw(2 * NUM_IMAGES, signal.SIGTERM)  # before anything is measured
    train("train_classifier", **flags, overwrite_output_dir=True, signal=stop)
    assert (tmp_path / "checkpoint-2").is_dir() and not stated.exists()
    train("train_classifier", **flags, resume_from_checkpoint="latest")
    measured = json.loads(stated.read_text())
    assert measured["step"] == 3 and measured["value"] <= 1.0


# --------------------------------------------------------------------------------------------------------- from Python


def test_a_training_started_in_python_is_that_of_its_command_line(undisturbed, few_digits, tmp_path):
    settings = {**TINY, **RESUMABLE, "train_data_dir": few_digits, "output_dir": tmp_path / "output"}
    settings = {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
    ended = run_function(train_unet.train, UNetSettings(**settings), log=tmp_path / "log")
    assert ended.status == 0, ended.output
    others = {"without": ("training.json",)}  # which orders the flags as they are declared
    assert_same(contents(tmp_path / "output", **others), contents(undisturbed("train_unet"), **others))
    typed, made = (
        json.loads((folder / "training.json").read_text())["unet"]
        for folder in (undisturbed("train_unet"), tmp_path / "output")
    )
    again = [record.pop("arguments")[3:] for record in (typed, made)]
    assert typed == made
    typed, made = (train_unet.parse_args([*words, "--output_dir", "output"]).model_dump() for words in again)
    assert typed == made


def test_what_a_training_started_in_python_refuses_it_raises(few_digits, tmp_path):
    with pytest.raises(InputError, match="--seed: must be greater than or equal to 0, got -1"):
        UNetSettings(output_dir=tmp_path, seed=-1)
    with pytest.raises(InputError, match="Pass one of --train_data_dir"):
        train_unet.train(UNetSettings(output_dir=tmp_path))
    with pytest.raises(InputError, match="no customary architecture for --resolution 20"):
        train_unet.train(UNetSettings(output_dir=tmp_path / "output", train_data_dir=few_digits, resolution=20))
    assert not (tmp_path / "output").exists()


# ------------------------------------------------------------------------------------------------------------ full disk


def assert_same(actual, expected):
    assert sorted(actual) == sorted(expected)
    assert [name for name in expected if actual[name] != expected[name]] == []


def test_full_disk_leaves_the_last_good_checkpoint_and_says_so(undisturbed, train, tmp_path):
    for name in ("checkpoint-2", "checkpoint-4"):
        shutil.copytree(undisturbed("train_unet") / name, tmp_path / name)
    before = contents(tmp_path)
    flags = {"output_dir": tmp_path, **RESUMABLE, "resume_from_checkpoint": "latest"}
    weights_fit = (tmp_path / "checkpoint-4" / "model.safetensors").stat().st_size + 100_000
    failed = train("train_unet", status=2, file_size_limit=weights_fit, **flags)
    assert f"error: Checkpoint {tmp_path}/checkpoint-6 could not be written" in failed.output
    assert f"the last good checkpoint is {tmp_path}/checkpoint-4." in failed.output
    assert "Traceback" not in failed.output
    assert_same(contents(tmp_path), before)
    train("train_unet", **flags)
    assert_same(contents(tmp_path), contents(undisturbed("train_unet")))


def test_full_disk_leaves_the_last_good_result_and_says_so(undisturbed, train, tmp_path):
    shutil.copytree(undisturbed("train_unet"), tmp_path, dirs_exist_ok=True)
    before = contents(tmp_path)
    flags = {"output_dir": tmp_path, **RESUMABLE, "resume_from_checkpoint": "latest"}
    failed = train("train_unet", status=2, file_size_limit=100_000, **flags)
    assert f"error: The result could not be written to {tmp_path}" in failed.output
    assert f"the last good checkpoint is {tmp_path}/checkpoint-6." in failed.output
    assert "Traceback" not in failed.output
    assert_same(contents(tmp_path), before)
    assert [name for name in os.listdir(tmp_path) if name.startswith(".")] == []
