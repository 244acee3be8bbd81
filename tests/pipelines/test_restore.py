"""`restore` of the pipelines: what it takes, and that it is a call with a guidance."""

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from tiny import seeded

from diffusers_cg import ClassifierGuidedDDIMPipeline, ClassifierGuidedDDPMPipeline
from diffusers_cg.errors import InputError
from diffusers_cg.guidance import DDNMGuidance, DiffPIRGuidance, DPSGuidance, PiGDMGuidance
from diffusers_cg.restoration import BoxDownsampling, Grayscale, Mask


BOX = BoxDownsampling(2)
IMAGES = tiny.images(2, seed=6).mul(0.4).clamp(-1, 1)
Y = BOX.forward(IMAGES)


@pytest.fixture(scope="module")
def ddim():
    return tiny.pipeline(ClassifierGuidedDDIMPipeline)


@pytest.fixture(scope="module")
def ddpm():
    return tiny.pipeline(ClassifierGuidedDDPMPipeline)


def restore(pipe, *args, **options):
    options = {"num_inference_steps": 2, "output_type": "latent", "generator": seeded(), **options}
    return pipe.restore(*args, **options).images


def call(pipe, guidance, **options):
    options = {
        "num_inference_steps": 2,
        "output_type": "latent",
        "generator": seeded(),
        "classifier_scale": 0,
        **options,
    }
    return pipe(batch_size=2, guidance=guidance, **options).images


def test_it_is_a_call_with_a_guidance(ddim, ddpm):
    for method, guidance, options in (
        ("ddnm", DDNMGuidance(BOX, Y, 0.1, eta=0.85), {}),
        ("diffpir", DiffPIRGuidance(BOX, Y, 0.1), {}),
        ("pigdm", PiGDMGuidance(BOX, Y, 0.1), {"eta": 1.0}),
        ("dps", DPSGuidance(BOX, Y, 0.1), {"eta": 1.0}),
    ):
        assert torch.equal(restore(ddim, Y, BOX, method, 0.1), call(ddim, guidance, **options)), method
    assert torch.equal(restore(ddpm, Y, BOX), call(ddpm, DDNMGuidance(BOX, Y, eta=None)))
    assert torch.equal(restore(ddpm, Y, BOX, "dps"), call(ddpm, DPSGuidance(BOX, Y)))
    assert torch.equal(restore(ddim, Y, BOX, eta=0.3), call(ddim, DDNMGuidance(BOX, Y, eta=0.3)))
    assert torch.equal(restore(ddim, Y, BOX, "dps", scale=2.0), call(ddim, DPSGuidance(BOX, Y, scale=2.0), eta=1.0))


def test_steps_are_those_of_the_method(ddim):
    for method, steps in (("ddnm", 100), ("dps", 1000)):
        passes = tiny.count_forward_passes(ddim.unet)
        stop = KeyError("enough")

        def first_pass(*_, stop=stop):
            raise stop

        hook = ddim.unet.register_forward_pre_hook(first_pass)
        with pytest.raises(KeyError):
            ddim.restore(Y, BOX, method)
        hook.remove()
        assert len(passes) == 1 and ddim.num_timesteps == steps


def test_it_is_guided_by_a_classifier_where_a_scale_is_given(ddim):
    plain = restore(ddim, Y, BOX, class_labels=[0, 3])
    assert torch.equal(plain, restore(ddim, Y, BOX))
    assert not torch.allclose(plain, restore(ddim, Y, BOX, class_labels=[0, 3], classifier_scale=5.0), atol=1e-3)
    assert len(restore(ddim, Y[:1], BOX, class_labels=[0, 3, 1])) == 3


def test_any_function_of_images_is_an_operator(ddim):
    images = restore(ddim, IMAGES[..., ::2, 1:], lambda x: x[..., ::2, 1:])
    assert torch.allclose(images[..., ::2, 1:], IMAGES[..., ::2, 1:], atol=1e-4)


def test_measurements_may_be_images(ddim):
    colors = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    as_tensor = torch.from_numpy(colors).movedim(-1, 1) / 127.5 - 1
    expected = restore(ddim, as_tensor, BOX)
    pictures = [Image.fromarray(each) for each in colors]
    for measurement in (pictures, colors / 255.0):
        assert torch.allclose(restore(ddim, measurement, BOX), expected, atol=1e-4)
    gray = Image.fromarray(colors.reshape(-1)[:64].reshape(8, 8))
    restored = Grayscale().forward(restore(ddim, gray, Grayscale()))
    assert torch.allclose(restored[0, 0], torch.from_numpy(np.array(gray)) / 127.5 - 1, atol=1e-4)


def test_a_picture_keeps_its_known_pixels(ddim):
    known = tiny.images(1, 1, 8, seed=4)[0, 0] > 0
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    image = restore(ddim, picture, Mask(known), output_type="pil")[0]
    assert (np.asarray(image)[known] == np.asarray(picture)[known]).all()


@pytest.mark.parametrize(
    ("algorithm", "arguments", "said"),
    [
        ("ddim", {"method": "ddrm"}, "`method` must be one of dps, ddnm, diffpir, pigdm"),
        ("ddpm", {"method": "diffpir"}, "takes the steps of DDIM"),
        ("ddpm", {"eta": 0.5}, "has no `eta` in this pipeline"),
        ("ddim", {"method": "diffpir", "eta": 0.5}, "has no `eta` in this pipeline"),
        ("ddim", {"eta": 2.0}, "`eta` of DDNM must lie"),
        ("ddim", {"noise_std": -1.0}, "`noise_std` must be"),
        ("ddim", {"measurement": Y[..., :3]}, "`measurement` must be of shape"),
        ("ddim", {"measurement": torch.tensor(0.5)}, "one per image"),
        ("ddim", {"measurement": Image.new("RGB", (8, 8))}, "must be of shape"),
        ("ddim", {"measurement": [[1.0]]}, "must be PIL images"),
        (
            "ddim",
            {"operator": lambda x: x.flatten(1), "measurement": [Image.new("RGB", (8, 8))]},
            "does not measure images",
        ),
        ("ddim", {"operator": 3}, "must be a LinearOperator"),
        ("ddim", {"operator": torch.abs, "measurement": IMAGES}, "or that is not linear"),
        ("ddim", {"class_labels": [1, 2, 3]}, "3 labels for a batch of 2"),
    ],
)
def test_bad_input(ddim, ddpm, algorithm, arguments, said):
    pipe = {"ddim": ddim, "ddpm": ddpm}[algorithm]
    passes = tiny.count_forward_passes(pipe.unet)
    with pytest.raises(InputError, match=said) as refused:
        pipe.restore(**{"measurement": Y, "operator": BOX, **arguments})
    assert not passes
    assert str(refused.value).endswith(".") and "\n" not in str(refused.value)
