"""The upsampling pipeline from outside; its arithmetic is that of the other two, which have tests of their own."""

import json
import math

import numpy as np
import pytest
import tiny
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, LCMScheduler, UNet2DModel
from PIL import Image
from processes import run_function
from tiny import seeded

from diffusers_cg import (
    ClassifierGuidedDDIMPipeline,
    ClassifierGuidedDDPMPipeline,
    ClassifierGuidedSuperResolutionPipeline,
)
from diffusers_cg.diffusion import to_ddim_scheduler
from diffusers_cg.errors import InputError


Upsampler, DDPM, DDIM = (
    ClassifierGuidedSuperResolutionPipeline,
    ClassifierGuidedDDPMPipeline,
    ClassifierGuidedDDIMPipeline,
)
SCHEDULERS = {
    "ddpm": DDPMScheduler(variance_type="learned_range", timestep_spacing="linspace"),
    "ddim": DDIMScheduler(timestep_spacing="leading"),
    "dpm-solver": DPMSolverMultistepScheduler(),
}
LOW_RES = tiny.images(2, size=4, seed=3).sigmoid()


def upsampler(kind="ddpm", **options):
    return tiny.pipeline(Upsampler, scheduler=SCHEDULERS[kind], low_res_size=4, **options)


def draw(pipe, image=LOW_RES, class_labels=(0, 3), *, seed=0, **options):
    """The raw sample."""
    options = {"num_inference_steps": 3, "output_type": "latent", "generator": seeded(seed), **options}
    return pipe(image=image, class_labels=class_labels, **options).images


@pytest.fixture(scope="module")
def pipes():
    """For the tests that do not change them: unconditional, guided by a classifier."""
    return {kind: upsampler(kind) for kind in SCHEDULERS}


@pytest.fixture(scope="module")
def conditional_pipes():
    return {kind: upsampler(kind, conditional=True) for kind in SCHEDULERS}


# ----------------------------------------------------------------------------------------------------------- the steps


def same_steps(base_class, kind, **options):
    """Samples of the upsampler, and of a base pipeline whose unet sees the same low-resolution images."""
    pipe = upsampler(kind)
    base = tiny.pipeline(base_class, scheduler=SCHEDULERS[kind])

    class Seeing(torch.nn.Module):
        config, dtype, device = base.unet.config, base.unet.dtype, base.unet.device

        def forward(self, sample, timestep):
            return pipe.unet(sample, timestep, low_res=2 * LOW_RES - 1)

    upsampled = draw(pipe, classifier_scale=2.0, **options)
    base.unet = Seeing()
    sample = base([0, 3], 3, classifier_scale=2.0, generator=seeded(), output_type="latent", **options).images
    return upsampled, sample


@pytest.mark.parametrize(
    ("base_class", "kind", "options"),
    [(DDPM, "ddpm", {}), (DDIM, "ddim", {}), (DDIM, "ddim", {"eta": 0.7}), (DDIM, "dpm-solver", {})],
)
def test_steps_are_those_of_the_base_pipelines(base_class, kind, options):
    upsampled, sample = same_steps(base_class, kind, **options)
    assert torch.equal(upsampled, sample)


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_low_resolution_labels_and_guidance_all_matter(conditional_pipes, kind):
    pipe = conditional_pipes[kind]
    expected = draw(pipe, classifier_scale=5.0)
    assert expected.shape == (2, 3, 8, 8) and expected.dtype == torch.float32
    for changed in (
        {"image": LOW_RES.flip(-1)},
        {"class_labels": [1, 4]},
        {"classifier_scale": 0.0},
        {"seed": 1},
    ):
        assert not torch.allclose(draw(pipe, **{"classifier_scale": 5.0, **changed}), expected, atol=1e-2)


def test_chain_guided_at_both_stages(conditional_pipes):
    base = tiny.pipeline(DDPM, conditional=True, sample_size=4, attention_resolutions=(2,))
    low = base([0, 3], 3, classifier_scale=2.0, generator=seeded(), output_type="pt").images
    high = conditional_pipes["ddpm"](image=low, class_labels=[0, 3], num_inference_steps=3, generator=seeded()).images
    assert [(image.mode, image.size) for image in high] == [("RGB", (8, 8))] * 2


def test_without_labels_and_classifier():
    pipe = upsampler(with_classifier=False)
    assert draw(pipe, class_labels=None).shape == (2, 3, 8, 8)
    assert torch.equal(draw(pipe, class_labels=None), draw(pipe, class_labels=None, classifier_scale=0))


# ----------------------------------------------------------------------------------------------------- images and batches


def test_images_of_any_form(pipes):
    pixels = (255 * LOW_RES.permute(0, 2, 3, 1).numpy()).round().astype(np.uint8)
    array = pixels.astype(np.float32) / 255
    tensor = torch.from_numpy(array).permute(0, 3, 1, 2)
    pil = [Image.fromarray(image) for image in pixels]
    expected = draw(pipes["ddpm"], tensor)
    for image in (array, array.astype(np.float64), pil, tuple(pil), list(array), list(tensor), tensor.double()):
        assert torch.equal(draw(pipes["ddpm"], image), expected)
    one = draw(pipes["ddpm"], tensor[:1], 3)
    for image in (array[0], tensor[0], pil[0]):
        assert torch.equal(draw(pipes["ddpm"], image, 3), one)


@pytest.mark.parametrize("channels, mode", [(1, "L"), (4, "RGBA"), (5, None)])
def test_gray_and_other_channels(channels, mode):
    pipe = upsampler(in_channels=channels, out_channels=2 * channels)
    image = tiny.images(2, channels, 4).sigmoid()
    expected = draw(pipe, image)
    assert expected.shape == (2, channels, 8, 8)
    if mode is not None:
        pixels = (255 * image.permute(0, 2, 3, 1).numpy()).round().astype(np.uint8)
        pil = [Image.fromarray(one.squeeze(-1) if channels == 1 else one, mode) for one in pixels]
        assert (draw(pipe, pil) - expected).abs().mean() < 0.1
        (high,) = pipe(image=pil[0], class_labels=0, num_inference_steps=1).images
        assert high.mode == mode


def test_low_resolution_of_two_sides():
    pipe = tiny.pipeline(Upsampler, low_res_size=(3, 5), sample_size=(8, 16))
    assert draw(pipe, tiny.images(2, 3, (3, 5)).sigmoid()).shape == (2, 3, 8, 16)


def test_one_label_serves_all_images(conditional_pipes):
    pipe = conditional_pipes["ddim"]
    assert torch.equal(draw(pipe, class_labels=3), draw(pipe, class_labels=[3, 3]))


@pytest.mark.parametrize("options", [{}, {"low_res_noise": 0.3, "low_res_blur": 0.5}], ids=["plain", "augmented"])
@pytest.mark.parametrize("kind", ["ddpm", "ddim"])
def test_image_with_its_own_generator_does_not_depend_on_the_batch(conditional_pipes, kind, options):
    pipe, labels = conditional_pipes[kind], [0, 1, 2, 3, 4]
    image = tiny.images(5, size=4).sigmoid()
    together = draw(pipe, image, labels, generator=[seeded(k) for k in range(5)], classifier_scale=3.0, **options)
    for k in (0, 4):
        alone = draw(pipe, image[k], labels[k], generator=seeded(k), classifier_scale=3.0, **options)
        assert (alone[0] - together[k]).abs().max() <= 1e-4


def test_latents_callback_and_tuple(pipes):
    pipe, seen = pipes["ddpm"], []

    def callback(given, step, timestep, tensors):
        seen.append((step, int(timestep), tensors["latents"].shape))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 1 else {}

    options = {"timesteps": [900, 4], "num_inference_steps": None, "callback_on_step_end": callback}
    assert (draw(pipe, latents=tiny.images(), **options) == 0).all()
    assert seen == [(0, 900, (2, 3, 8, 8)), (1, 4, (2, 3, 8, 8))]
    (images,) = pipe(LOW_RES, [0, 3], 3, generator=seeded(), output_type="latent", return_dict=False)
    assert torch.equal(images, draw(pipe))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(conditional_pipes, dtype):
    sample = draw(upsampler(conditional=True).to(dtype))
    assert sample.dtype == torch.float32
    assert (sample - draw(conditional_pipes["ddpm"])).abs().mean() < 0.1


# ---------------------------------------------------------------------------------------------- conditioning augmentation


def test_augmentation_is_off_by_default(pipes):
    assert torch.equal(draw(pipes["ddpm"]), draw(pipes["ddpm"], low_res_noise=0, low_res_blur=0.0))


def test_augmentation_at_sampling(pipes):
    pipe = pipes["ddpm"]
    noisy, blurred = draw(pipe, low_res_noise=0.5), draw(pipe, low_res_blur=1.0)
    assert not torch.allclose(noisy, draw(pipe), atol=1e-2) and not torch.allclose(blurred, draw(pipe), atol=1e-2)
    assert torch.equal(noisy, draw(pipe, low_res_noise=0.5))

    # the noise is the generator's next after the initial sample
    generator, seen = seeded(), []
    latents = torch.randn(2, 3, 8, 8, generator=generator)
    noise = torch.randn(2, 3, 4, 4, generator=generator)
    handle = pipe.unet.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
    draw(pipe, low_res_noise=0.5)
    handle.remove()
    assert torch.allclose(seen[0]["low_res"], 2 * LOW_RES - 1 + 0.5 * noise, atol=1e-6)
    assert latents.shape == (2, 3, 8, 8)


# --------------------------------------------------------------------------------------------------------- saved files


def save_and_draw(folder, file):
    pipe = upsampler(conditional=True)
    pipe.save_pretrained(folder)
    torch.save(draw(pipe, classifier_scale=2.0), file)


def load_and_draw(folder, file):
    torch.save(draw(Upsampler.from_pretrained(folder), classifier_scale=2.0), file)


def test_another_process_draws_the_same_from_the_saved_folder(tmp_path):
    for function in (save_and_draw, load_and_draw):
        ended = run_function(function, tmp_path / "pipe", tmp_path / function.__name__, log=tmp_path / "log")
        assert ended.status == 0, ended.output
    saved, loaded = (torch.load(tmp_path / function.__name__) for function in (save_and_draw, load_and_draw))
    assert torch.equal(saved, loaded)
    index = json.loads((tmp_path / "pipe" / "model_index.json").read_text())
    assert index["_class_name"] == "ClassifierGuidedSuperResolutionPipeline"
    assert index["low_res_size"] == 4
    assert index["unet"] == ["diffusers_cg", "ADMUNet2DModel"]


def test_saved_defaults_go_with_the_kind_of_scheduler(tmp_path):
    defaults = {
        "ddpm_num_inference_steps": 2,
        "ddpm_classifier_scale": 3.0,
        "ddim_num_inference_steps": 4,
        "ddim_classifier_scale": 5.0,
    }
    pipe = upsampler()
    Upsampler(**pipe.components, low_res_size=4, **defaults).save_pretrained(tmp_path)
    pipe.scheduler = to_ddim_scheduler(pipe.scheduler)
    for loaded, steps, scale, expected in (
        (Upsampler.from_pretrained(tmp_path), 2, 3.0, upsampler()),
        (Upsampler.from_pretrained(tmp_path, scheduler=pipe.scheduler), 4, 5.0, pipe),
    ):
        loaded.set_progress_bar_config(disable=True)
        actual = draw(loaded, num_inference_steps=None)
        assert loaded.num_timesteps == steps
        assert torch.equal(actual, draw(expected, num_inference_steps=steps, classifier_scale=scale))


def test_folder_without_a_classifier_and_with_two_sides(tmp_path):
    pipe = tiny.pipeline(Upsampler, low_res_size=(3, 5), sample_size=(8, 16), with_classifier=False)
    pipe.save_pretrained(tmp_path)
    loaded = Upsampler.from_pretrained(tmp_path)
    image = tiny.images(2, 3, (3, 5)).sigmoid()
    assert torch.equal(draw(loaded, image, None), draw(pipe, image, None))


# ----------------------------------------------------------------------------------------------------------- bad input

SHAPE = r"`image` must be of shape \(3, 4, 4\) \(channels, height, width\) each, got "
REFUSED = {
    "another size": ({"image": torch.zeros(2, 3, 8, 8)}, ValueError, SHAPE + r"\(3, 8, 8\)"),
    "one of another size": ({"image": [torch.zeros(3, 4, 4), torch.zeros(3, 4, 5)]}, ValueError, SHAPE),
    "another size in PIL": ({"image": [Image.new("RGB", (8, 8))] * 2}, ValueError, SHAPE),
    "gray": ({"image": torch.zeros(2, 1, 4, 4)}, ValueError, SHAPE + r"\(1, 4, 4\)"),
    "channels first in numpy": ({"image": np.zeros((2, 3, 4, 4))}, ValueError, SHAPE + r"\(4, 3, 4\)"),
    "gray in PIL": ({"image": [Image.new("L", (4, 4))] * 2}, ValueError, r'mode L, .*3 channels: pass image.convert\("RGB"\)'),
    "palette": ({"image": [Image.new("P", (4, 4))] * 2}, ValueError, "`image` is a PIL image in mode P"),
    "in [-1, 1]": ({"image": 2 * LOW_RES - 1}, ValueError, r"`image` holds values that are not in \[0, 1\]"),
    "in [0, 255]": ({"image": 255 * LOW_RES}, ValueError, r"not in \[0, 1\]"),
    "NaN": ({"image": LOW_RES * math.nan}, ValueError, r"not in \[0, 1\]"),
    "8 bits": ({"image": np.zeros((2, 4, 4, 3), np.uint8)}, InputError, "got torch.uint8: divide 8-bit values by 255"),
    "text": ({"image": "low.png"}, InputError, "`image` must be PIL images, arrays or tensors, got str"),
    "nothing": ({"image": None}, InputError, "`image` must be PIL images, arrays or tensors, got NoneType"),
    "text in numpy": ({"image": np.array(["a"])}, InputError, "`image` must be PIL images, .*, got an array of <U1"),
    "no image": ({"image": []}, ValueError, "`image` is an empty list"),
    "an empty batch": ({"image": torch.zeros(0, 3, 4, 4)}, ValueError, "`image` is an empty batch"),
    "one plane": ({"image": torch.zeros(4, 4)}, ValueError, r"of 3 or 4 dimensions, got shape \(4, 4\)"),
    "more labels than images": ({"class_labels": [0, 1, 2]}, ValueError, "holds 3 labels for a batch of 2"),
    "more images than labels": ({"class_labels": [0]}, ValueError, "holds 1 labels for a batch of 2"),
    "label out of range": ({"class_labels": 5}, ValueError, r"`class_labels` must lie in 0\.\.4"),
    "missing labels": ({"class_labels": None}, ValueError, "`class_labels` are missing: guidance"),
    "other latents": ({"latents": torch.zeros(1, 3, 8, 8)}, ValueError, r"`latents` must be of shape \(2, 3, 8, 8\)"),
    "eta for DDPM": ({"eta": 0.5}, ValueError, "`eta` is of DDIM's steps, but those of a DDPMScheduler"),
    "negative noise": ({"low_res_noise": -0.1}, ValueError, "`low_res_noise` must be a finite number of at least 0"),
    "NaN blur": ({"low_res_blur": math.nan}, ValueError, "`low_res_blur` must be a finite number of at least 0"),
    "noise per image": ({"low_res_noise": [0.1, 0.2]}, ValueError, "`low_res_noise` must be a finite number"),
    "too many steps": ({"num_inference_steps": 1001}, ValueError, "`num_inference_steps` must be between 1 and 1000"),
    "unknown output": ({"output_type": "png"}, ValueError, "`output_type` must be one of"),
}  # fmt: skip


@pytest.mark.parametrize("changed, error, said", REFUSED.values(), ids=REFUSED)
def test_refused(pipes, changed, error, said):
    tiny.check_refused(pipes["ddpm"], {"image": LOW_RES, "class_labels": [0, 3], **changed}, error, said)


def test_scale_without_a_classifier():
    call = {"image": LOW_RES, "classifier_scale": 1.0}
    tiny.check_refused(upsampler(with_classifier=False), call, ValueError, "This pipeline has no classifier")


@pytest.mark.parametrize("kind", [DDPM, DDIM])
def test_upsampler_given_to_a_base_pipeline(tmp_path, kind):
    said = "This unet is an upsampling one, .*: use ClassifierGuidedSuperResolutionPipeline"
    with pytest.raises(ValueError, match=said):
        kind(tiny.fresh_unet(low_res_channels=3), DDPMScheduler())
    upsampler(with_classifier=False).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=said):
        kind.from_pretrained(tmp_path)


def test_base_model_given_to_the_upsampling_pipeline(tmp_path):
    said = "This unet generates from noise alone, .*: use ClassifierGuidedDDPMPipeline or ClassifierGuidedDDIMPipeline"
    for unet in (tiny.fresh_unet(), UNet2DModel(block_out_channels=(32, 32, 32, 32))):
        with pytest.raises(ValueError, match=said):
            Upsampler(unet, DDPMScheduler(), low_res_size=4)
    tiny.pipeline(DDPM).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=said):
        Upsampler.from_pretrained(tmp_path)


@pytest.mark.parametrize("size", [0, 9, (4, 9), (4,), 4.5, "4"])
def test_low_res_size_that_cannot_be(size):
    with pytest.raises(ValueError, match=r"`low_res_size` must be one side or two, up to those of the unet \(8, 8\)"):
        Upsampler(tiny.fresh_unet(low_res_channels=3), DDPMScheduler(), low_res_size=size)


def test_missing_low_res_size():
    with pytest.raises(ValueError, match="`low_res_size` is missing: pass height and width"):
        Upsampler(tiny.fresh_unet(low_res_channels=3), DDPMScheduler())


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"sample_size": 4, "attention_resolutions": (2,)}, r"the image size of the unet is \(8, 8\), .* \(4, 4\)"),
        ({"in_channels": 1}, "the channels of the unet is 3, that of the classifier 1"),
        ({"num_classes": 7}, "the number of classes of the unet is 5, that of the classifier 7"),
    ],
)
def test_classifier_that_does_not_fit(changed, said):
    unet = tiny.fresh_unet(low_res_channels=3, num_class_embeds=tiny.NUM_CLASSES)
    with pytest.raises(ValueError, match=f"do not fit together: .*{said}"):
        Upsampler(unet, DDPMScheduler(), tiny.fresh_classifier(**changed), low_res_size=4)


@pytest.mark.parametrize(
    ("scheduler", "said"),
    [
        (LCMScheduler(), "LCMScheduler .*use DDIMScheduler"),
        (DDPMScheduler(prediction_type="flow_prediction"), "`prediction_type` must be one of"),
        (DDPMScheduler(variance_type="learned_range"), "expects a learned variance, but the unet has as many output"),
    ],
)
def test_schedulers_that_do_not_fit(scheduler, said):
    with pytest.raises(ValueError, match=said):
        Upsampler(tiny.fresh_unet(low_res_channels=3, out_channels=3), scheduler, low_res_size=4)
