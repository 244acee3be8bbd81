"""train_unet.py --low_res_size: data, augmentation, what it leaves, and the pipeline assembled from it."""

import json
import signal

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image
from processes import Signal, run_command

from diffusers_cg import ADMUNet2DModel, ClassifierGuidedSuperResolutionPipeline
from diffusers_cg.data import open_folder
from diffusers_cg.data.images import downscale
from diffusers_cg.training.data import TrainingImages
from diffusers_cg.training.train_unet import draw_low_res_augmentation


WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
AUGMENTED = {"low_res_size": 8, "low_res_noise": 0.3, "low_res_blur": 0.6, "max_train_steps": 4}


# ------------------------------------------------------------------------------------------------------------- the data


def test_low_resolution_pixels_are_means_of_those_that_they_cover():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)
    low = np.asarray(downscale(Image.fromarray(pixels), 4), dtype=float)
    assert abs(low - pixels.reshape(4, 4, 4, 4).mean(axis=(1, 3))).max() <= 1.01  # rounding to 8 bits, twice


@pytest.mark.parametrize("side", [3, 5, 12])
def test_any_side_keeps_what_is_smooth(side):
    ramp = np.broadcast_to(np.linspace(0, 255, 16), (16, 16)).astype(np.uint8)
    low = np.asarray(downscale(Image.fromarray(ramp), side), dtype=float)
    assert low.shape == (side, side)
    expected = (np.arange(side) + 0.5) * 16 / side - 0.5
    assert abs(low - expected * 17)[:, 1:-1].max() < 12


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_items_hold_the_same_picture_twice(few_digits, channels):
    dataset = open_folder(few_digits, "required")
    images = TrainingImages(dataset, 16, channels, center_crop=False, random_flip=True, low_res_size=4)
    plain = TrainingImages(dataset, 16, channels, center_crop=False, random_flip=True)
    for item in ((3, 40), (7, 41), (8, 42)):
        high, low = images[item]["clean_images"], images[item]["low_res_images"]
        assert low.shape == (channels, 4, 4) and low.dtype == torch.float32
        assert torch.allclose(low, high.unflatten(2, (4, 4)).unflatten(1, (4, 4)).mean(dim=(2, 4)), atol=1 / 127)
        assert torch.equal(high, plain[item]["clean_images"])
    assert "low_res_images" not in plain[0]


def test_augmentation_of_a_draw_is_the_same_in_any_batch():
    low_res = torch.rand(1, 1, 8, 8).expand(6, -1, -1, -1) * 2 - 1
    whole = draw_low_res_augmentation(range(10, 16), low_res, 0.5, 1.0, seed=0)
    part = draw_low_res_augmentation(torch.tensor([13, 11]), low_res[:2], 0.5, 1.0, seed=0)
    assert torch.allclose(part, whole[[3, 1]], atol=1e-6)
    assert len(whole.flatten(1).unique(dim=0)) == 6
    assert not torch.allclose(whole, draw_low_res_augmentation(range(10, 16), low_res, 0.5, 1.0, seed=1), atol=0.01)


def test_levels_are_uniform_up_to_the_maximum():
    noisy = draw_low_res_augmentation(range(1000), torch.zeros(1000, 1, 16, 16), 0.8, 0.0, seed=0)
    levels = noisy.flatten(1).std(dim=1)
    assert levels.max() < 0.9 and abs(levels.mean() - 0.4) < 0.02
    assert all(abs((levels < 0.8 * share).float().mean() - share) < 0.05 for share in (0.25, 0.5, 0.75))


def test_augmentation_is_off_at_zero():
    low_res = torch.rand(2, 1, 4, 4)
    assert draw_low_res_augmentation([0, 1], low_res, 0.0, 0.0, seed=0) is low_res


# --------------------------------------------------------------------------------------------------------- the training


@pytest.fixture(scope="module")
def trained(train, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("upsampler")
    train(
        "train_unet",
        output_dir=output_dir,
        **AUGMENTED,
        checkpointing_steps=2,
        save_images_epochs=1,
        ddpm_num_inference_steps=2,
    )
    return output_dir


def test_result_is_an_upsampling_pipeline_without_classifier(trained):
    pipe = ClassifierGuidedSuperResolutionPipeline.from_pretrained(trained)
    pipe.set_progress_bar_config(disable=True)
    assert isinstance(pipe.scheduler, DDPMScheduler) and pipe.classifier is None
    assert pipe.low_res_shape == (1, 8, 8)
    high = pipe(image=Image.new("L", (8, 8)), class_labels=2, num_inference_steps=2).images[0]
    assert (high.mode, high.size) == ("L", (16, 16))


def test_the_network_learns_from_the_low_resolution_images(trained):
    unet = ADMUNet2DModel.from_pretrained(trained, subfolder="unet")
    sample, low_res = torch.zeros(1, 1, 16, 16), torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
    with torch.no_grad():
        one, other = (unet(sample, 500, torch.tensor([1]), low_res=low).sample for low in (low_res, -low_res))
    assert not torch.equal(one, other)


def test_grid_shows_low_resolution_upsampled_and_real_images(trained):
    with Image.open(trained / "samples" / "step_0000004.png") as grid:
        assert grid.width == pytest.approx(9 * 70, abs=40)
        assert grid.height == pytest.approx(3 * 70, abs=60)


def test_killed_and_resumed_is_as_if_nothing_had_happened(trained, train, tmp_path):
    flags = {"output_dir": tmp_path, **AUGMENTED, "checkpointing_steps": 2}
    kill = Signal(signal.SIGKILL, ".checkpoint-4.partial/training_state.json")
    train("train_unet", status=-signal.SIGKILL, signal=kill, **flags)
    train("train_unet", resume_from_checkpoint="latest", **flags)
    assert (tmp_path / WEIGHTS).read_bytes() == (trained / WEIGHTS).read_bytes()
    plain = {**flags, "output_dir": tmp_path / "plain", "low_res_noise": 0, "checkpointing_steps": 0}
    train("train_unet", **plain)
    assert (tmp_path / "plain" / WEIGHTS).read_bytes() != (trained / WEIGHTS).read_bytes()


def test_resume_with_another_low_resolution_is_refused(trained, train, tmp_path):
    flags = {**AUGMENTED, "low_res_size": 4, "resume_from_checkpoint": trained / "checkpoint-2"}
    refused = train("train_unet", status=2, output_dir=tmp_path, **flags)
    assert "was trained with low_res_size=8, now it is 4: the two cannot be joined." in refused.output


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"low_res_size": 0}, "--low_res_size: must be greater than 0, got 0."),
        ({"low_res_size": 17}, "--low_res_size must lie in 1..16 (--resolution), got 17."),
        ({"low_res_noise": 0.1}, "--low_res_noise is for upsamplers: pass --low_res_size, too."),
        ({"low_res_size": 8, "low_res_blur": -1}, "--low_res_blur: must be greater than or equal to 0, got -1.0."),
        ({"low_res_size": 8, "low_res_noise": "nan"}, "--low_res_noise: must be a finite number, got nan."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_flags_that_cannot_be_meant(tiny_flags, tmp_path, flags, said):
    argv = tiny_flags(output_dir=tmp_path / "output", **flags)
    ended = run_command("train_unet", *argv, log=tmp_path / "log")
    assert (ended.status, ended.output.strip()) == (2, f"error: {said}")
    assert not (tmp_path / "output").exists()


# ----------------------------------------------------------------------------------------------------------- assembling


@pytest.fixture
def assemble(trained, tmp_path):
    def assemble(classifier):
        flags = {"unet": trained, "classifier": classifier, "output_dir": tmp_path / "pipeline"}
        argv = [item for name, value in flags.items() for item in (f"--{name}", value)]
        return run_command("assemble_pipeline", *argv, "--ddpm_classifier_scale", 3, log=tmp_path / "log")

    return assemble


def test_assembled_with_a_classifier_of_the_high_resolution(assemble, train, tmp_path):
    train("train_classifier", output_dir=tmp_path / "classifier", validation_fraction=0)
    ended = assemble(tmp_path / "classifier")
    assert ended.status == 0, ended.output
    index = json.loads((tmp_path / "pipeline" / "model_index.json").read_text())
    assert (index["_class_name"], index["low_res_size"]) == ("ClassifierGuidedSuperResolutionPipeline", 8)
    pipe = ClassifierGuidedSuperResolutionPipeline.from_pretrained(tmp_path / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    assert pipe.config.ddpm_classifier_scale == 3
    assert len(pipe(image=torch.zeros(2, 1, 8, 8), class_labels=[0, 2], num_inference_steps=2).images) == 2


def test_a_classifier_of_the_low_resolution_is_refused(assemble, train, tmp_path):
    train("train_classifier", output_dir=tmp_path / "classifier", validation_fraction=0, resolution=8)
    ended = assemble(tmp_path / "classifier")
    assert ended.status == 2 and "Traceback" not in ended.output
    assert "the image size of the unet is (16, 16), that of the classifier (8, 8)." in ended.output
    assert not (tmp_path / "pipeline").exists()
