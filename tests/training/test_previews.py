"""What is said of samples that do not look as the images do."""

import pytest
import torch
from diffusers.training_utils import EMAModel

from diffusers_cg import DIGITS, ClassifierGuidedDDIMPipeline
from diffusers_cg.data import open_folder
from diffusers_cg.training.config import UNetSettings
from diffusers_cg.training.data import TrainingImages, examples_by_class
from diffusers_cg.training.previews import Look, average_logs, diagnose


def settings(**changed):
    return UNetSettings(output_dir="output", resolution=16, channel_multipliers=[1], **changed).resolve()


def pictures(number=64, channels=3, seed=0):
    """Soft blobs (number, channels, 16, 16) in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(number, channels, 4, 4, generator=generator) * 1.6 - 0.8
    return torch.nn.functional.interpolate(coarse, 16, mode="bicubic").clamp(-1, 1)


def speckled(images, share=0.1):
    """Salt and pepper on a share of the pixels."""
    generator = torch.Generator().manual_seed(1)
    chosen = torch.rand(images.shape, generator=generator) < share
    return torch.where(chosen, torch.rand(images.shape, generator=generator).round() * 2 - 1, images)


def said(samples, images=None, steps=10_000, **changed):
    return diagnose(settings(**changed), steps, Look.of(samples), Look.of(pictures() if images is None else images))


def test_numbers_of_a_look():
    images = torch.zeros(2, 3, 8, 8)
    images[:, 0], images[1, 1] = -0.5, 1.0
    look = Look.of(images)
    assert look.mean == [-0.5, 0.5, 0.0] and look.spread == [0.0, 0.5, 0.0] and look.noise == 0.0
    assert look.mean_error[1] == pytest.approx(0.5 / 2**0.5)
    logs = look.logs("samples")
    assert logs["samples/mean_red"] == -0.5 and logs["samples/spread_green"] == 0.5 and logs["samples/noise"] == 0.0
    board = torch.tensor([[1.0, -1.0] * 4, [-1.0, 1.0] * 4]).repeat(4, 1)[None, None]
    assert Look.of(board).noise == pytest.approx(2.0)
    assert Look.of(torch.zeros(1, 1, 1, 1)).noise == 0.0


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_of_samples_that_look_right_nothing_is_said(channels):
    assert said(pictures(channels=channels, seed=1), pictures(channels=channels)) is None
    assert said(pictures(24, channels, seed=2), pictures(channels=channels)) is None


def test_noise_is_told():
    sentence = said(speckled(pictures(seed=1)))
    assert "noisy" in sentence and "more steps" in sentence and "colours" not in sentence
    assert sentence.endswith(".") and "\n" not in sentence
    assert "--prediction_type v_prediction" in sentence
    assert "--prediction_type" not in said(speckled(pictures(seed=1)), prediction_type="v_prediction")


def test_speckles_in_some_of_the_images_are_told():
    samples = pictures(20, 1, seed=1)
    samples[:8] = speckled(samples[:8])
    assert "noisy" in said(samples, pictures(channels=1))


def test_a_cast_is_told_by_its_channel():
    samples = pictures(seed=1) + torch.tensor([0.25, 0.0, -0.25])[:, None, None]
    sentence = said(samples)
    assert "red +0.2" in sentence and "blue -0.2" in sentence and "green" not in sentence and "noisy" not in sentence
    assert "--total_batch_size" in sentence and "--learning_rate" in sentence
    assert "brightness -0.3" in said(pictures(channels=1, seed=1) - 0.3, pictures(channels=1))


def test_means_that_vary_by_chance_are_not_a_cast():
    flat = torch.tensor([-0.8, -0.6, 0.1, 0.3, 0.5, 0.6, 0.7, 0.8])[:, None, None, None].expand(-1, 1, 16, 16)
    others = torch.linspace(-0.9, 0.9, 200)[:, None, None, None].expand(-1, 1, 16, 16)
    assert flat.mean() - others.mean() == pytest.approx(0.2)
    assert said(flat, others) is None
    assert "brightness +0.2" in said(flat.repeat(20, 1, 1, 1), others)


def test_contrast_is_told():
    assert "0.5 times the contrast" in said(pictures(seed=1) / 2 + pictures().mean() / 2)


def test_an_average_that_remembers_its_start_is_told():
    sentence = said(pictures(seed=1), steps=1000, ema_warmup=False)
    assert "90% of the averaged weights" in sentence and "--ema_warmup" in sentence
    assert said(pictures(seed=1), steps=1000) is None
    assert said(pictures(seed=1), steps=100_000, ema_warmup=False) is None
    assert said(pictures(seed=1), steps=1000, ema_warmup=False, use_ema=False) is None
    sentence = said(pictures(seed=1), steps=1000, ema_inv_gamma=1e-9)
    assert "--ema_warmup" not in sentence
    proposed = float(sentence.split("--ema_max_decay ")[1].rstrip("."))
    assert said(pictures(seed=1), steps=1000, ema_inv_gamma=1e-9, ema_max_decay=[proposed]) is None


@pytest.mark.parametrize(
    "changed",
    [{}, {"ema_warmup": False, "ema_max_decay": [0.9]}, {"ema_power": 0.5, "ema_max_decay": [0.7]}, {"ema_power": -1}],
)
def test_the_share_of_the_start_is_that_of_the_average_of_diffusers(changed):
    chosen = settings(**changed)
    weight = torch.nn.Parameter(torch.zeros(1))
    decay = chosen.ema_max_decay[0]
    average = EMAModel(
        [weight],
        decay=decay,
        min_decay=0.0 if chosen.ema_warmup else decay,
        use_ema_warmup=chosen.ema_warmup,
        inv_gamma=chosen.ema_inv_gamma,
        power=chosen.ema_power,
    )
    weight.data.fill_(1.0)  # after the first step, and 0 ever after
    for steps in range(1, 7):
        average.step([weight])
        weight.data.zero_()
        logs = average_logs(chosen, steps)
        assert logs["average/start"] == pytest.approx(average.shadow_params[0].item())
        assert logs["average/decay"] == pytest.approx(average.cur_decay_value)


@pytest.mark.parametrize(
    "steps, mean, error, spread, noise",
    [(230, -0.130, 0.064, 0.744, 0.297), (460, -0.240, 0.046, 0.699, 0.249), (600, -0.299, 0.029, 0.670, 0.238)],
)
def test_previews_of_a_short_training_that_predicts_noise(steps, mean, error, spread, noise):
    """Of the front page's first training with `--prediction_type epsilon`: of its 25 DDIM steps, many images are speckles."""
    digits = Look(mean=[-0.376], mean_error=[0.006], spread=[0.698], noise=0.132)
    sentence = diagnose(settings(), steps, Look([mean], [error], [spread], noise), digits)
    assert "noisy" in sentence and "try a new training with --prediction_type v_prediction" in sentence
    assert "--learning_rate" not in sentence


@pytest.mark.parametrize(
    "steps, mean, error, spread, noise",
    [(230, -0.399, 0.005, 0.653, 0.132), (460, -0.385, 0.005, 0.657, 0.126), (600, -0.383, 0.005, 0.660, 0.126)],
)
def test_previews_of_a_short_training_that_predicts_v(steps, mean, error, spread, noise):
    """The same with `--prediction_type v_prediction`, as it stands there."""
    digits = Look(mean=[-0.376], mean_error=[0.006], spread=[0.698], noise=0.132)
    assert (
        diagnose(settings(prediction_type="v_prediction"), steps, Look([mean], [error], [spread], noise), digits)
        is None
    )


def test_digits_that_ship_look_right_and_with_speckles_they_do_not(digits):
    images = TrainingImages(open_folder(digits / "train", "required"), 16, 1)
    real = torch.stack([item["clean_images"] for of_class in examples_by_class(images, 10, 10) for item in of_class])
    pipe = ClassifierGuidedDDIMPipeline.from_pretrained(DIGITS)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    call = {
        "class_labels": [*range(10)] * 2,
        "num_inference_steps": 25,
        "classifier_scale": 0.0,
        "generator": generator,
    }
    samples = torch.as_tensor(pipe(**call, output_type="np").images).permute(0, 3, 1, 2) * 2 - 1
    assert said(samples, real) is None
    samples[:8] = speckled(samples[:8], 0.05)
    assert "noisy" in said(samples, real)
