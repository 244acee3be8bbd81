"""`diffusers-cg nll`: bits per dimension of a folder of images."""

import json
import os

import numpy as np
import pytest
import tiny
import torch
from diffusers import DDPMScheduler, UNet2DModel
from PIL import Image
from processes import run_here

from diffusers_cg import ClassifierGuidedDDPMPipeline, ClassifierGuidedSuperResolutionPipeline, GaussianDiffusion
from diffusers_cg.diffusion import bits_per_dimension, seeded_generator


STEPS = 12
STOCK = {"block_out_channels": (16,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
LOW = {"sample_size": 4, "attention_resolutions": (2,)}


def scheduler(**changed):
    options = {"num_train_timesteps": STEPS, "variance_type": "learned_range", "timestep_spacing": "linspace"}
    return DDPMScheduler(**{**options, **changed})


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    root = tmp_path_factory.mktemp("saved")
    base = ClassifierGuidedDDPMPipeline
    options = {"with_classifier": False, "scheduler": scheduler(), **LOW}
    named = tiny.pipeline(base, conditional=True, **options)
    named.unet.register_to_config(class_names=NAMES)
    for name, pipe in {
        "named": named,
        "plain": tiny.pipeline(base, **options),
        "conditional": tiny.pipeline(base, conditional=True, **options),
        "unclipped": tiny.pipeline(base, **{**options, "scheduler": scheduler(clip_sample=False)}),
        "fixed": tiny.pipeline(
            base, out_channels=3, **{**options, "scheduler": scheduler(variance_type="fixed_large")}
        ),
        "oblong": tiny.pipeline(base, **{**options, "sample_size": (4, 8)}),
        "stock": base(
            UNet2DModel(4, out_channels=3, norm_num_groups=8, **STOCK), scheduler(variance_type="fixed_large")
        ),
        "up": tiny.pipeline(ClassifierGuidedSuperResolutionPipeline, low_res_size=4, with_classifier=False),
    }.items():
        pipe.save_pretrained(root / name)
    return root


NAMES = ["class 1", "class 3", "class 4", "class 0", "class 2"]
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
CLEAN = torch.from_numpy(PIXELS).permute(0, 3, 1, 2).float() / 127.5 - 1


@pytest.fixture
def data(tmp_path):
    for number, image in enumerate(PIXELS):
        (tmp_path / "data" / f"class {number}").mkdir(parents=True)
        Image.fromarray(image).save(tmp_path / "data" / f"class {number}" / "image.png")
    return tmp_path / "data"


@pytest.fixture
def nll(saved, tmp_path):
    def nll(model, data, *argv, status=0):
        flags = ["--model", saved / model, "--data", data, "--output", tmp_path / "out", *argv]
        result = run_here("nll", *flags)
        assert result.status == status, result.output
        assert "Traceback" not in result.output
        return result.output

    return nll


def terms(tmp_path):
    with np.load(tmp_path / "out" / "terms.npz") as arrays:
        return dict(arrays)


def expected(saved, model, diffusion, seed=0, clip_range=1.0, **inputs):
    unet = ClassifierGuidedDDPMPipeline.from_pretrained(saved / model).unet
    generators = [seeded_generator(seed, number) for number in range(5)]
    return bits_per_dimension(diffusion, lambda x, t: unet(x, t, **inputs).sample, CLEAN, generators, clip_range)


def assert_terms(actual, bits):
    for name in ("vb", "mse", "xstart_mse", "prior", "total"):
        np.testing.assert_allclose(actual[name], getattr(bits, name).numpy(), rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("model", ["plain", "unclipped", "fixed"])
def test_all_timesteps(nll, saved, data, tmp_path, model):
    said = nll(model, data)
    settings = scheduler(variance_type="fixed_large" if model == "fixed" else "learned_range")
    clip_range = None if model == "unclipped" else 1.0
    bits = expected(saved, model, GaussianDiffusion.from_scheduler(settings), clip_range=clip_range)
    actual = terms(tmp_path)
    assert_terms(actual, bits)
    assert actual["timesteps"].tolist() == list(range(STEPS - 1, -1, -1)) and actual["vb"].shape == (5, STEPS)
    assert actual["files"].tolist() == [f"class {number}/image.png" for number in range(5)]

    report = json.loads((tmp_path / "out" / "nll.json").read_text())
    assert report["bits_per_dimension"] == pytest.approx(bits.total.mean().item(), rel=1e-4)
    assert report["standard_error"] == pytest.approx(bits.total.std().item() / 5**0.5, rel=1e-4)
    assert (report["num_images"], report["num_timesteps"]) == (5, STEPS)
    assert f"{report['bits_per_dimension']:.4f} bits per dimension" in said and "5 images, 12 timesteps." in said
    with Image.open(tmp_path / "out" / "nll.png") as plot:
        assert plot.width > 600


def test_a_unet_of_diffusers_own(nll, data):
    assert "bits per dimension" in nll("stock", data, "--num_inference_steps", 2)


def test_fewer_timesteps_labels_and_batches(nll, saved, data, tmp_path):
    settings = scheduler()
    settings.set_timesteps(4)
    diffusion = GaussianDiffusion.from_scheduler(settings, settings.timesteps)
    bits = expected(saved, "conditional", diffusion, seed=3, class_labels=torch.arange(5))
    for batch_size in (5, 2, "auto"):
        nll("conditional", data, "--num_inference_steps", 4, "--seed", 3, "--batch_size", batch_size)
        assert_terms(terms(tmp_path), bits)
        assert terms(tmp_path)["timesteps"].tolist() == settings.timesteps.tolist()
    nll("conditional", data, "--num_inference_steps", 4, "--seed", 4)
    assert abs(terms(tmp_path)["total"] / bits.total.numpy() - 1).max() > 1e-3


def test_images_are_seen_as_in_training(nll, saved, data, tmp_path):
    """Larger, oblong, transparent: the middle, on white."""
    image = PIXELS[0].repeat(2, axis=0).repeat(2, axis=1)
    image = np.concatenate([np.zeros_like(image[:, :4]), image, np.zeros_like(image[:, :4])], axis=1)
    alpha = np.full((8, 16, 1), 255, dtype=np.uint8)
    (tmp_path / "one").mkdir()
    Image.fromarray(np.concatenate([image, alpha], axis=2)).save(tmp_path / "one" / "image.png")
    Image.new("RGB", (9, 9)).save(tmp_path / "one" / "grid.png")
    nll("plain", data)
    total = terms(tmp_path)["total"]
    nll("plain", tmp_path / "one")
    np.testing.assert_allclose(terms(tmp_path)["total"], total[:1], rtol=1e-4)
    assert json.loads((tmp_path / "out" / "nll.json").read_text())["standard_error"] == 0


def test_classes_by_the_names_of_the_model(nll, saved, data, tmp_path):
    """In whatever order they come, as folders or as the beginnings of files' names."""
    steps = ["--num_inference_steps", 4]
    nll("named", data, *steps)
    settings = scheduler()
    settings.set_timesteps(4)
    diffusion = GaussianDiffusion.from_scheduler(settings, settings.timesteps)
    labels = torch.tensor([3, 0, 4, 1, 2])  # `NAMES`
    assert_terms(terms(tmp_path), expected(saved, "named", diffusion, class_labels=labels))
    right = terms(tmp_path)["total"]
    for number in range(5):
        (tmp_path / "flat").mkdir(exist_ok=True)
        (data / f"class {number}" / "image.png").rename(tmp_path / "flat" / f"class {number}_a.png")
    nll("named", tmp_path / "flat", "--class_from_file_name", *steps)
    np.testing.assert_array_equal(terms(tmp_path)["total"], right)
    (tmp_path / "flat" / "class 2_a.png").rename(tmp_path / "flat" / "class two_a.png")
    said = nll("named", tmp_path / "flat", "--class_from_file_name", status=2)
    assert "none of the 5 known ones" in said and "class two" in said


def test_a_stated_range_of_values(nll, data, tmp_path):
    few = ["--num_inference_steps", 2]
    nll("plain", data, *few)
    right = terms(tmp_path)["total"]
    np.savez(tmp_path / "floats.npz", PIXELS / np.float32(127.5) - 1)
    nll("plain", tmp_path / "floats.npz", "--image_range", -1, 1, *few)
    np.testing.assert_array_equal(terms(tmp_path)["total"], right)
    assert json.loads((tmp_path / "out" / "nll.json").read_text())["image_range"] == [-1, 1]
    assert "--image_range" in nll("plain", tmp_path / "floats.npz", status=2)


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("model", "argv", "said"),
    [
        ("nowhere", [], "There is no folder {saved}/nowhere: pass that of a saved pipeline, or OWNER/NAME"),
        ("up", [], "This unet is an upsampling one"),
        ("oblong", [], "Images are cropped to squares, but those of this model are 8x4."),
        ("plain", ["--num_inference_steps", 13], "`num_inference_steps` must be between 1 and 12"),
        ("plain", ["--seed=-1"], "--seed: must be greater than or equal to 0, got -1."),
        ("plain", ["--batch_size", 0], "--batch_size: must be greater than 0, got 0."),
        ("plain", ["--device", "moon"], "`device` is 'moon', which cannot be used here"),
    ],
)
def test_bad_flags(nll, saved, data, tmp_path, model, argv, said):
    line = nll(model, data, *argv, status=2).strip().splitlines()[-1]
    assert line.startswith("error: ") and line.endswith(".") and said.format(saved=saved) in line
    assert os.listdir(tmp_path) == ["data"]


def remove_a_class(data):
    (data / "class 3" / "image.png").rename(data / "class 2" / "other.png")
    (data / "class 3").rmdir()


def break_an_image(data):
    file = data / "class 3" / "image.png"
    file.write_bytes(file.read_bytes()[:-30])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            remove_a_class,
            "{data} has 4 classes, but the model knows 5 and not their names: there must be one of images for each",
        ),
        (break_an_image, "{data}/class 3/image.png cannot be read as an image (damaged: "),
        (
            lambda data: data.rename(data.with_name("moved")),
            "There is no file or folder {data}: pass an .npz or a folder of images.",
        ),
        (lambda data: [file.unlink() for file in data.rglob("*.png")], "{data} holds no images."),
    ],
)
def test_bad_data(nll, data, tmp_path, change, said):
    change(data)
    line = nll("conditional", data, status=2).strip().splitlines()[-1]
    assert line.startswith("error: ") and line.endswith(".") and said.format(data=data) in line
    assert not (tmp_path / "out").exists()
