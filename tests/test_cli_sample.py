"""`diffusers-cg sample`: one pipeline or a cascade, into a folder of images."""

import os
import signal
import weakref

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from processes import Signal, run_cli
from torch.nn.modules.module import register_module_forward_pre_hook
from typer.testing import CliRunner

from diffusers_cg import (
    ADMUNet2DModel,
    ClassifierGuidedDDIMPipeline,
    ClassifierGuidedDDPMPipeline,
    ClassifierGuidedSuperResolutionPipeline,
)
from diffusers_cg.cli import app
from diffusers_cg.sampling import Request


LOW = {"sample_size": 4, "attention_resolutions": (2,)}
STEPS = ["--num_inference_steps", 3]
BOTH_STEPS = [*STEPS, "--upsampler_num_inference_steps", 2]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    root = tmp_path_factory.mktemp("saved")
    base, upsampler = ClassifierGuidedDDPMPipeline, ClassifierGuidedSuperResolutionPipeline
    for name, pipe in {
        "base": tiny.pipeline(base, conditional=True, **LOW),
        "unconditional": tiny.pipeline(base, with_classifier=False, **LOW),
        "larger": tiny.pipeline(base, with_classifier=False),
        "gray": tiny.pipeline(base, with_classifier=False, in_channels=1, out_channels=2, **LOW),
        "up": tiny.pipeline(upsampler, conditional=True, low_res_size=4),
        "unguided up": tiny.pipeline(upsampler, low_res_size=4, with_classifier=False),
    }.items():
        pipe.save_pretrained(root / name)
    other = base(tiny.unet(num_class_embeds=7, **LOW), pipe.scheduler)
    other.save_pretrained(root / "seven classes")
    (root / "empty").mkdir()
    return root


@pytest.fixture
def sample(saved, tmp_path):
    def sample(model="base", upsampler=None, *argv, status=0, output="out"):
        flags = ["--model", saved / model, "--output", tmp_path / output, *argv]
        flags += [] if upsampler is None else ["--upsampler", saved / upsampler]
        result = CliRunner().invoke(app, ["sample", *map(str, flags)])
        assert result.exit_code == status, result.output
        assert "Traceback" not in result.output
        return result.output

    return sample


def pixels(folder):
    """Every image but the grid, by path, as an array."""
    files = sorted(path for path in folder.rglob("*.png") if path.name != "grid.png")
    return {str(path.relative_to(folder)): np.asarray(Image.open(path), dtype=int) for path in files}


def assert_same_but_for_rounding(actual, expected, levels):
    assert list(actual) == list(expected)
    assert max(abs(actual[name] - expected[name]).max() for name in expected) <= levels


# ---------------------------------------------------------------------------------------------------- what it leaves


def test_one_stage(sample, saved, tmp_path):
    said = sample("base", None, "--classes", 3, 0, "--num_images_per_class", 2, *STEPS, "--seed", 5)
    assert said.strip().endswith(f"Saved {tmp_path / 'out'}.")
    drawn = pixels(tmp_path / "out")
    assert list(drawn) == ["0/00000.png", "0/00001.png", "3/00000.png", "3/00001.png"]
    assert len(np.unique(np.stack(list(drawn.values())), axis=0)) == 4

    pipe = ClassifierGuidedDDPMPipeline.from_pretrained(saved / "base")
    image = pipe([3], 3, generator=[Request(3, 1).generator(5, 0)]).images[0]
    assert_same_but_for_rounding({"": drawn["3/00001.png"]}, {"": np.asarray(image, dtype=int)}, levels=1)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_cascade_is_the_chain_of_both_pipelines(sample, saved, tmp_path, sampler):
    scales = ["--classifier_scale", 2, "--upsampler_classifier_scale", 3, "--low_res_noise", 0.1]
    sample("base", "up", "--classes", 4, "--num_images_per_class", 1, *BOTH_STEPS, *scales, "--sampler", sampler)
    base = {"ddpm": ClassifierGuidedDDPMPipeline, "ddim": ClassifierGuidedDDIMPipeline}[sampler]
    pipe = base.from_pretrained(saved / "base")
    upsampler = ClassifierGuidedSuperResolutionPipeline.from_pretrained(saved / "up")
    if sampler == "ddim":
        upsampler.scheduler = ClassifierGuidedDDIMPipeline.from_pretrained(saved / "base").scheduler
    generators = [[Request(4, 0).generator(0, stage)] for stage in (0, 1)]
    low = pipe([4], 3, classifier_scale=2.0, generator=generators[0]).images
    (high,) = upsampler(low, [4], 2, classifier_scale=3.0, low_res_noise=0.1, generator=generators[1]).images
    assert high.size == (8, 8)
    assert_same_but_for_rounding(pixels(tmp_path / "out"), {"4/00000.png": np.asarray(high, dtype=int)}, levels=0)


def test_grid_of_pairs(sample, tmp_path):
    sample("base", "up", "--classes", 1, 2, 3, "--num_images_per_class", 2, *BOTH_STEPS)
    assert sorted(os.listdir(tmp_path / "out")) == ["1", "2", "3", "grid.png"]
    with Image.open(tmp_path / "out" / "grid.png") as grid:
        assert grid.width == pytest.approx(4 * 70, abs=40) and grid.height == pytest.approx(3 * 70, abs=40)


def test_images_do_not_depend_on_the_batch_or_on_what_else_is_drawn(sample, tmp_path):
    sample("base", "up", "--classes", 0, 1, "--num_images_per_class", 3, *BOTH_STEPS, "--batch_size", 4, output="a")
    sample("base", "up", "--classes", 1, 4, "--num_images_per_class", 2, *BOTH_STEPS, "--batch_size", 3, output="b")
    sample("base", "up", "--classes", 1, "--num_images_per_class", 2, *BOTH_STEPS, "--seed", 1, output="c")
    first, second, third = (pixels(tmp_path / name) for name in "abc")
    common = [name for name in first if name in second]
    assert common == ["1/00000.png", "1/00001.png"]
    assert_same_but_for_rounding(*({name: part[name] for name in common} for part in (second, first)), levels=4)
    assert all(abs(third[name] - first[name]).max() > 50 for name in common)


def test_no_classes_where_nobody_needs_them(sample, tmp_path):
    sample("unconditional", "unguided up", "--num_images_per_class", 3, *BOTH_STEPS)
    assert list(pixels(tmp_path / "out")) == [f"images/0000{number}.png" for number in range(3)]
    sample("gray", None, "--num_images_per_class", 1, *STEPS)
    assert [image.shape for image in pixels(tmp_path / "out").values()] == [(4, 4)]


def test_saved_defaults(saved, tmp_path):
    pipe = ClassifierGuidedDDPMPipeline.from_pretrained(saved / "base")
    defaults = {"ddpm_num_inference_steps": 3, "ddpm_classifier_scale": 4.0}
    ClassifierGuidedDDPMPipeline(**pipe.components, **defaults).save_pretrained(tmp_path / "pipe")
    argv = ["sample", "--classes", 2, "--num_images_per_class", 1, "--output", tmp_path / "out"]
    for changed in (["--model", saved / "base", *STEPS, "--classifier_scale", 4], ["--model", tmp_path / "pipe"]):
        result = CliRunner().invoke(app, [str(arg) for arg in (*argv, *changed)])
        assert result.exit_code == 0, result.output
        (image,) = pixels(tmp_path / "out").values()
        if "--classifier_scale" in changed:
            expected = image
    assert np.array_equal(image, expected)


def test_one_stage_in_memory_at_a_time(sample):
    alive, counts = weakref.WeakSet(), []

    def see(module, args):
        if isinstance(module, ADMUNet2DModel):
            alive.add(module)
            counts.append(len(alive))

    handle = register_module_forward_pre_hook(see)
    sample("base", "up", "--classes", 1, "--num_images_per_class", 1, *BOTH_STEPS)
    handle.remove()
    assert counts == [1] * 5


def test_killed_leaves_no_folder(saved, tmp_path):
    argv = ["--model", saved / "base", "--upsampler", saved / "up", "--classes", 3, *BOTH_STEPS]
    argv += ["--output", tmp_path / "out", "--num_images_per_class", 1]
    kill = Signal(signal.SIGKILL, "grid.png")
    assert run_cli("sample", *argv, log=tmp_path / "log", signal=kill).status == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    ended = run_cli("sample", *argv, log=tmp_path / "log")
    assert ended.status == 0 and "base: 100%" in ended.output and "upsampler: 100%" in ended.output
    assert sorted(os.listdir(tmp_path)) == ["log", "out"]
    assert sorted(os.listdir(tmp_path / "out")) == ["3", "grid.png"]


def test_only_a_folder_of_samples_is_replaced(sample, tmp_path):
    for classes in (3, 4):
        sample("base", None, "--classes", classes, "--num_images_per_class", 1, *STEPS)
        assert list(pixels(tmp_path / "out")) == [f"{classes}/00000.png"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    said = sample("base", None, "--classes", 1, *STEPS, output="mine", status=2)
    assert "error: This folder has no grid.png and would be replaced whole" in said
    assert os.listdir(tmp_path / "mine") == ["thesis.tex"]


# ----------------------------------------------------------------------------------------------------------- bad input


CLASSES = ["--classes", 1]


@pytest.mark.parametrize(
    ("model", "upsampler", "argv", "said"),
    [
        ("nowhere", None, CLASSES, "There is no folder {saved}/nowhere: pass that of a saved pipeline, or OWNER/NAME"),
        ("empty", None, CLASSES, "{saved}/empty is not the folder of a pipeline (it has no model_index.json)."),
        ("base", "nowhere", CLASSES, "There is no folder {saved}/nowhere"),
        ("up", None, CLASSES, "This unet is an upsampling one"),
        ("base", "base", CLASSES, "This unet generates from noise alone, but this pipeline upsamples"),
        (
            "larger",
            "up",
            CLASSES,
            "the image shape of the first is (3, 8, 8), but the upsampler is made for (3, 4, 4)",
        ),
        ("gray", "up", CLASSES, "the image shape of the first is (1, 4, 4), but the upsampler is made for (3, 4, 4)"),
        ("seven classes", "up", CLASSES, "the number of classes of the first is 7, but the upsampler is made for 5"),
        ("base", None, ["--classes", 5], "`class_labels` must lie in 0..4, got [5]"),
        ("base", None, ["--classes", 1, 2, 1], "each once and none below 0, got [1, 2, 1]"),
        ("unconditional", None, ["--classes=-1"], "each once and none below 0, got [-1]"),
        ("base", None, [], "`class_labels` are missing: the class-conditional unet needs one per image"),
        ("unconditional", "up", [], "`class_labels` are missing: the class-conditional unet"),
        ("base", None, [*CLASSES, "--num_images_per_class", 0], "`num_images_per_class` must be at least 1, got 0"),
        ("base", None, [*CLASSES, "--batch_size", 0], "`batch_size` must be at least 1, got 0"),
        ("base", None, [*CLASSES, "--seed=-1"], "`seed` must be at least 0, got -1"),
        ("base", None, [*CLASSES, "--device", "moon"], "`device` is 'moon', which cannot be used here"),
        ("base", None, [*CLASSES, "--classifier_scale=-1"], "`classifier_scale` must be finite and at least 0"),
        ("base", None, [*CLASSES, "--num_inference_steps", 1001], "`num_inference_steps` must be between 1 and 1000"),
        ("base", None, [*CLASSES, "--low_res_noise", 1], "Flags of the upsampler need one: pass --upsampler"),
        ("base", "up", [*CLASSES, "--low_res_blur=-1"], "`low_res_blur` must be a finite number of at least 0"),
        ("base", "up", [*CLASSES, "--upsampler_num_inference_steps", 0], "`num_inference_steps` must be between"),
        ("base", "unguided up", [*CLASSES, "--upsampler_classifier_scale", 1], "This pipeline has no classifier"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_refused_before_anything_is_computed(sample, saved, tmp_path, model, upsampler, argv, said):
    passes = []
    handle = register_module_forward_pre_hook(lambda module, _: passes.append(isinstance(module, ADMUNet2DModel)))
    line = sample(model, upsampler, *argv, status=2).strip().splitlines()[-1]
    handle.remove()
    assert line.startswith("error: ") and line.endswith(".") and said.format(saved=saved) in line
    assert not any(passes)
    assert os.listdir(tmp_path) == []


def test_flag_that_is_no_number(sample, tmp_path):
    assert "Invalid value for '--classes'" in sample("base", None, "--classes", 1, "cat", status=2)
    assert os.listdir(tmp_path) == []


def test_generators_are_streams_of_their_own():
    requests = [Request(label, number) for label in (0, 1, 2) for number in (0, 1, 2)]
    drawn = {
        torch.randn(4, generator=request.generator(seed, stage)).sum().item()
        for request in requests
        for seed in (0, 1)
        for stage in (0, 1)
    }
    assert len(drawn) == 36
