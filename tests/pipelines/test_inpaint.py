"""Inpainting: RePaint against its published code, what is known of an image, masks of any form, and what is refused."""

import hashlib
import json
import logging

import numpy as np
import pytest
import tiny
import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from exact import MEANS, PROCESS, SPREAD, ExactUNet, distance_to
from PIL import Image
from reference import DATA, reference_classifier, reference_unet
from safetensors.torch import load_file
from tiny import seeded

from diffusers_cg import ClassifierGuidedDDIMPipeline, ClassifierGuidedInpaintPipeline
from diffusers_cg.errors import InputError
from diffusers_cg.pipelines.pipeline_classifier_guided_inpaint import jumping_levels


PUBLISHED = json.loads((DATA / "published_repaint.json").read_text())
NUMBERS = load_file(DATA / "published_repaint.safetensors")
METHODS = pytest.mark.parametrize("method", ["repaint", "ddnm"])
IMAGES = torch.rand(2, 3, 8, 8, generator=seeded(3)).square()  # small numbers would not survive [-1, 1] and back
MASK = torch.zeros(8, 8)
MASK[:, :3] = 1
KEPT = (MASK == 0).expand(3, 8, 8)
SHORT = {"num_inference_steps": 3, "jump_length": 1, "jump_n_sample": 2}


@pytest.fixture(scope="module")
def pipe():
    return tiny.pipeline(ClassifierGuidedInpaintPipeline)


def fill(pipe, image=IMAGES, mask_image=MASK, class_labels=(0, 3), **options):
    options = {"generator": seeded(), "output_type": "pt", **SHORT, **options}
    return pipe(image, mask_image, class_labels, **options).images


# --------------------------------------------------------------------------------------------------- the published code


@pytest.mark.parametrize("case", PUBLISHED["sequences"], ids=str)
def test_steps_up_and_down_are_the_published_ones(case):
    levels = jumping_levels(case["t_T"], case["jump_length"], case["jump_n_sample"])
    assert len(levels) == case["length"]
    assert hashlib.sha256(json.dumps(levels).encode()).hexdigest() == case["sha256"]


@pytest.mark.parametrize("name", PUBLISHED["cases"])
def test_a_run_of_the_published_code(name):
    case, expected, drawn = PUBLISHED["cases"][name], NUMBERS[f"{name}.sample"], []
    classifier = None
    if case["classifier_scale"]:
        classifier = reference_classifier("attention")
        classifier.register_forward_hook(
            lambda _, args, output: type(output)(logits=case["logits_multiplied_by"] * output.logits)
        )
    scheduler = DDPMScheduler(variance_type="learned_range", timestep_spacing="linspace")
    pipe = ClassifierGuidedInpaintPipeline(reference_unet(case["unet"]), scheduler, classifier)
    pipe.set_progress_bar_config(disable=True)
    generator = seeded(case["seed"])
    output = pipe(
        NUMBERS["image"], NUMBERS["hole"], case["class_labels"], timesteps=case["timesteps"], generator=generator,
        latents=torch.randn(NUMBERS["image"].shape, generator=generator), classifier_scale=case["classifier_scale"],
        jump_length=case["jump_length"], jump_n_sample=case["jump_n_sample"], output_type="latent",
        callback_on_step_end=lambda pipe, step, timestep, tensors: drawn.append(tensors["latents"]) or {},
    )  # fmt: skip
    assert torch.allclose(torch.stack(drawn), expected, rtol=1e-4, atol=1e-4)
    hole = NUMBERS["hole"].expand_as(expected[-1])
    assert torch.allclose(output.images[hole], expected[-1][hole], rtol=1e-4, atol=1e-4)
    assert torch.equal(output.images[~hole], (2 * NUMBERS["image"] - 1)[~hole])
    assert output.evaluations["unet"] == len(expected)


# ------------------------------------------------------------------------------------------------------ what is known


@METHODS
def test_the_hole_is_filled_by_what_is_known(method):
    """Of a mixture of two Gaussians: three pixels tell the class, the fourth is to be drawn from it, of each image its own."""
    pipe = ClassifierGuidedInpaintPipeline(ExactUNet(), PROCESS)
    pipe.set_progress_bar_config(disable=True)
    mask = torch.tensor([[0, 1], [0, 0]])
    labels = torch.arange(2).repeat(300)
    images = pipe(
        (MEANS[labels] + 1) / 2, mask, num_inference_steps=30, jump_length=5, jump_n_sample=4, generator=seeded(),
        output_type="latent", method=method,
    ).images  # fmt: skip
    filled, means = images[:, :, 0, 1:], MEANS[labels][:, :, 0, 1:]
    assert distance_to(filled, means, SPREAD) < 0.12
    assert distance_to(filled, means.flip(0), SPREAD) > 0.2


@METHODS
@pytest.mark.parametrize("output_type", ["pt", "np", "latent"])
def test_the_known_part_is_kept_bit_for_bit(pipe, output_type, method):
    images = fill(pipe, output_type=output_type, method=method, classifier_scale=9.0)
    if output_type == "np":
        images = torch.from_numpy(images).movedim(-1, 1)
    expected = 2 * IMAGES - 1 if output_type == "latent" else IMAGES
    assert torch.equal(images[:, KEPT], expected[:, KEPT])
    assert not torch.isclose(images[:, ~KEPT], expected[:, ~KEPT]).any(dim=1).all()


def test_8_bit_images_are_kept_bit_for_bit(pipe):
    array = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    mask = Image.fromarray((MASK * 255).byte().numpy())
    (image,) = fill(pipe, Image.fromarray(array), mask, 3, output_type="pil")
    assert (np.asarray(image)[:, 3:] == array[:, 3:]).all() and (np.asarray(image)[:, :3] != array[:, :3]).any()


def test_masks_of_any_form(pipe):
    short = {"num_inference_steps": 1, "jump_n_sample": 1, "classifier_scale": 0}
    expected = fill(pipe, **short)
    white = Image.fromarray((MASK * 255).byte().numpy())
    forms = [
        MASK.bool(), MASK.long(), 0.5 * MASK, MASK[None], MASK[None, None], MASK.expand(2, 8, 8), MASK.expand(2, 1, 8, 8),
        MASK.numpy(), MASK.bool().numpy(), MASK.numpy()[..., None], MASK.numpy()[None], MASK.numpy()[None, ..., None],
        white, white.convert("1"), white.convert("RGB"), [white, white], [MASK.numpy(), MASK.numpy()],
    ]  # fmt: skip
    for mask in forms:
        assert torch.equal(fill(pipe, mask_image=mask, **short), expected)


@METHODS
def test_an_image_does_not_depend_on_its_batch(pipe, method):
    masks = torch.stack([MASK, MASK.T])
    both = fill(pipe, mask_image=masks, generator=[seeded(1), seeded(2)], method=method, classifier_scale=9.0)
    for i, label in enumerate((0, 3)):
        alone = fill(pipe, IMAGES[i], masks[i], label, generator=[seeded(i + 1)], method=method, classifier_scale=9.0)
        assert torch.allclose(alone[0], both[i], atol=1e-4)


def test_one_image_for_all_labels(pipe):
    images = fill(pipe, IMAGES[0], class_labels=[0, 1, 2], classifier_scale=20.0)
    assert images.shape == (3, 3, 8, 8)
    assert torch.equal(images[:, KEPT], IMAGES[:1, KEPT].expand(3, -1))
    assert fill(pipe, IMAGES[0], class_labels=None, batch_size=2, classifier_scale=0).shape == (2, 3, 8, 8)


def test_masks_that_leave_nothing_to_do_are_warned_of(pipe, caplog):
    caplog.set_level(logging.WARNING)
    empty = fill(pipe, mask_image=torch.stack([0 * MASK, MASK]))
    assert "Mask 0 of `mask_image` is empty" in caplog.text and "Mask 1" not in caplog.text
    assert torch.equal(empty[0], IMAGES[0])
    caplog.clear()
    full = fill(pipe, mask_image=MASK + 1 - MASK)
    assert "Mask 0 of `mask_image` is full" in caplog.text
    assert not torch.isclose(full, IMAGES).all()


# -------------------------------------------------------------------------------------------------- files and bad input


def test_every_folder_serves(tmp_path, pipe):
    ddim = ClassifierGuidedDDIMPipeline.from_pipe(pipe)
    ddim.save_pretrained(tmp_path / "of_another")
    pipe.save_pretrained(tmp_path / "own")
    expected = fill(pipe, classifier_scale=0)
    loaded = [
        ClassifierGuidedInpaintPipeline.from_pretrained(tmp_path / "of_another"),
        ClassifierGuidedInpaintPipeline.from_pipe(ddim),
        DiffusionPipeline.from_pretrained(tmp_path / "own"),
    ]
    for other in loaded:
        assert type(other) is ClassifierGuidedInpaintPipeline
        other.set_progress_bar_config(disable=True)
        assert torch.equal(fill(other, classifier_scale=0), expected)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"mask_image": torch.ones(4, 8)}, r"of the images' size \(8, 8\) and one channel, got shape \(4, 8\)"),
        ({"mask_image": torch.ones(1, 3, 8, 8)}, "one channel"),
        ({"mask_image": np.ones((8, 8, 3))}, "one channel"),
        ({"mask_image": torch.zeros(0, 8, 8)}, "one mask or a batch"),
        ({"mask_image": torch.zeros(3, 8, 8)}, "3 masks for a batch of 2"),
        ({"mask_image": 255 * MASK}, r"not in \[0, 1\]"),
        ({"mask_image": MASK * torch.nan}, r"not in \[0, 1\]"),
        ({"mask_image": []}, "empty list"),
        ({"mask_image": "mask.png"}, "must be PIL images, arrays or tensors, got str"),
        ({"image": 2 * IMAGES}, r"not in \[0, 1\]"),
        ({"image": IMAGES[..., :4]}, r"shape \(3, 8, 8\)"),
        ({"class_labels": [0, 1, 2]}, "3 labels for a batch of 2"),
        ({"class_labels": [0, 1, 2], "batch_size": 3}, "2 images for a batch of 3"),
        ({"jump_length": 0}, "positive whole numbers, got 0 and 10"),
        ({"jump_n_sample": 1.5}, "positive whole numbers"),
        ({"method": "paint"}, "must be one of"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input(pipe, changed, said):
    call = {"image": IMAGES, "mask_image": MASK, "class_labels": [0, 3], **changed}
    tiny.check_refused(pipe, call, InputError, said)
