"""`diffusers-cg sample`: one pipeline or a cascade, into a folder of images, by any number of processes."""

import os
import signal
import subprocess
import sys
import weakref

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from processes import Signal, run_cli, run_here
from torch.nn.modules.module import register_module_forward_pre_hook

from diffusers_cg import (
    ADMUNet2DModel,
    ClassifierGuidedDDIMPipeline,
    ClassifierGuidedDDPMPipeline,
    ClassifierGuidedSuperResolutionPipeline,
)
from diffusers_cg.evaluation import open_images
from diffusers_cg.generation import Request, make_requests


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
    pipe = tiny.pipeline(base, conditional=True, **LOW)
    with torch.no_grad():
        pipe.unet.conv_out.bias[0] += 1
    pipe.save_pretrained(root / "other weights")
    (root / "empty").mkdir()
    return root


@pytest.fixture
def sample(saved, tmp_path):
    def sample(model="base", upsampler=None, *argv, status=0, output="out"):
        flags = ["--model", saved / model, "--output", tmp_path / output, *argv]
        flags += [] if upsampler is None else ["--upsampler", saved / upsampler]
        result = run_here("sample", *flags)
        assert result.status == status, result.output
        assert "Traceback" not in result.output
        return result.output

    return sample


def pixels(folder):
    """Every image but the grid, by path, as an array."""
    files = sorted(path for path in folder.rglob("*.png") if path.name != "grid.png")
    return {str(path.relative_to(folder)): np.asarray(Image.open(path), dtype=int) for path in files}


def contents(folder):
    """Every file by its path, hidden ones, too."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def quantized(latents):
    """The first image of a batch as the reference turns it into 8 bits, (H, W, C)."""
    return ((latents[0] + 1) * 127.5).clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy().astype(int)


@pytest.fixture
def count_unet_passes():
    """Counts the forward passes of unets from its call on."""
    handles = []

    def start():
        passes = []
        handles.append(
            register_module_forward_pre_hook(lambda module, _: passes.append(isinstance(module, ADMUNet2DModel)))
        )
        return lambda: sum(passes)

    yield start
    for handle in handles:
        handle.remove()


def assert_same_but_for_rounding(actual, expected, levels):
    assert list(actual) == list(expected)
    assert max(abs(actual[name] - expected[name]).max() for name in expected) <= levels


# ---------------------------------------------------------------------------------------------------- what it leaves


def test_one_stage(sample, saved, tmp_path):
    said = sample("base", None, "--classes", 3, 0, "--num_samples", 4, *STEPS, "--seed", 5)
    assert said.strip().endswith(f"Saved {tmp_path / 'out'}.")
    drawn = pixels(tmp_path / "out")
    assert list(drawn) == ["0/00000.png", "0/00001.png", "3/00000.png", "3/00001.png"]
    assert len(np.unique(np.stack(list(drawn.values())), axis=0)) == 4

    pipe = ClassifierGuidedDDPMPipeline.from_pretrained(saved / "base")
    latents = pipe([3], 3, generator=[Request(3, 1).generator(5, 0)], output_type="latent").images
    assert_same_but_for_rounding({"": drawn["3/00001.png"]}, {"": quantized(latents)}, levels=1)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_cascade_is_the_chain_of_both_pipelines(sample, saved, tmp_path, sampler):
    scales = ["--classifier_scale", 2, "--upsampler_classifier_scale", 3, "--low_res_noise", 0.1]
    sample("base", "up", "--classes", 4, "--num_samples", 1, *BOTH_STEPS, *scales, "--sampler", sampler)
    base = {"ddpm": ClassifierGuidedDDPMPipeline, "ddim": ClassifierGuidedDDIMPipeline}[sampler]
    pipe = base.from_pretrained(saved / "base")
    upsampler = ClassifierGuidedSuperResolutionPipeline.from_pretrained(saved / "up")
    if sampler == "ddim":
        upsampler.scheduler = ClassifierGuidedDDIMPipeline.from_pretrained(saved / "base").scheduler
    generators = [[Request(4, 0).generator(0, stage)] for stage in (0, 1)]
    latents = pipe([4], 3, classifier_scale=2.0, generator=generators[0], output_type="latent").images
    low = Image.fromarray(quantized(latents).astype(np.uint8))
    latents = upsampler(
        low, [4], 2, classifier_scale=3.0, low_res_noise=0.1, generator=generators[1], output_type="latent"
    ).images
    assert latents.shape == (1, 3, 8, 8)
    assert_same_but_for_rounding(pixels(tmp_path / "out"), {"4/00000.png": quantized(latents)}, levels=0)


def test_options_of_ddim(sample, saved, tmp_path):
    sample("base", None, "--classes", 4, "--num_samples", 1, "--sampler", "ddim", "--timesteps", 900, 20, "--eta", 0.5)
    pipe = ClassifierGuidedDDIMPipeline.from_pretrained(saved / "base")
    generator = [Request(4, 0).generator(0, 0)]
    latents = pipe([4], timesteps=[900, 20], eta=0.5, generator=generator, output_type="latent").images
    assert_same_but_for_rounding(pixels(tmp_path / "out"), {"4/00000.png": quantized(latents)}, levels=0)


def test_precision(sample, tmp_path):
    flags = ["--classes", 4, "--num_samples", 2, *BOTH_STEPS]
    sample("base", "up", *flags, output="fp32")
    sample("base", "up", *flags, "--dtype", "bf16", output="bf16")
    fp32, bf16 = (np.stack(list(pixels(tmp_path / name).values())) for name in ("fp32", "bf16"))
    assert 0 < abs(fp32 - bf16).mean() < 20


def test_all_classes_take_turns_by_default(sample, tmp_path):
    sample("base", None, "--num_samples", 7, *STEPS)
    assert list(pixels(tmp_path / "out")) == [
        *("0/00000.png", "0/00001.png", "1/00000.png", "1/00001.png", "2/00000.png", "3/00000.png", "4/00000.png")
    ]


def test_random_classes(sample, tmp_path):
    sample("base", None, "--num_samples", 12, "--random_classes", *STEPS, "--npz")
    with np.load(tmp_path / "out" / "samples.npz") as arrays:
        labels = arrays["arr_1"]
    assert labels.tolist() == [request.class_label for request in make_requests(12, range(5), True, seed=0)]
    assert len(set(labels.tolist())) > 2 and labels.tolist() != sorted(labels.tolist())
    counts = np.bincount([request.class_label for request in make_requests(5000, range(5), True, seed=3)])
    assert counts.min() > 900
    assert make_requests(20, range(5), True, seed=3) == make_requests(5000, range(5), True, seed=3)[:20]


def test_npz_is_in_the_layout_of_the_reference(sample, tmp_path, count_unet_passes):
    flags = ["--classes", 2, 1, "--num_samples", 5, *STEPS, "--npz"]
    sample("base", None, *flags)
    with np.load(tmp_path / "out" / "samples.npz") as arrays:
        assert arrays.files == ["arr_0", "arr_1"]
        images, labels = arrays["arr_0"], arrays["arr_1"]
    assert images.dtype == np.uint8 and images.shape == (5, 4, 4, 3)
    assert labels.dtype == np.int64 and labels.tolist() == [2, 1, 2, 1, 2]
    drawn = pixels(tmp_path / "out")
    numbers = ["2/00000.png", "1/00000.png", "2/00001.png", "1/00001.png", "2/00002.png"]
    assert np.array_equal(images, np.stack([drawn[name] for name in numbers]))

    sample("base", None, *flags, "--no_png", output="alone")
    assert sorted(os.listdir(tmp_path / "alone")) == ["grid.png", "samples.npz", "sampling.json"]
    once = contents(tmp_path / "alone")
    assert once["samples.npz"] == contents(tmp_path / "out")["samples.npz"]
    forward_passes = count_unet_passes()
    sample("base", None, *flags, "--no_png", output="alone")
    assert forward_passes() == 0 and contents(tmp_path / "alone") == once

    sample("gray", None, "--num_samples", 2, *STEPS, "--npz", output="gray")
    with np.load(tmp_path / "gray" / "samples.npz") as arrays:
        assert arrays.files == ["arr_0"] and arrays["arr_0"].shape == (2, 4, 4, 1)


def test_evaluate_reads_what_sample_writes(sample, tmp_path):
    sample("base", None, "--num_samples", 6, *STEPS, "--npz")
    assert open_images(tmp_path / "out").shape == open_images(tmp_path / "out" / "samples.npz").shape == (6, 4, 4, 3)


def test_grid_of_pairs(sample, tmp_path):
    sample("base", "up", "--classes", 1, 2, 3, "--num_samples", 6, *BOTH_STEPS)
    assert sorted(os.listdir(tmp_path / "out")) == ["1", "2", "3", "grid.png", "sampling.json"]
    with Image.open(tmp_path / "out" / "grid.png") as grid:
        assert grid.width == pytest.approx(4 * 70, abs=40) and grid.height == pytest.approx(3 * 70, abs=40)


def test_images_do_not_depend_on_the_batch_or_on_what_else_is_drawn(sample, tmp_path):
    sample("base", "up", "--classes", 0, 1, "--num_samples", 6, *BOTH_STEPS, "--batch_size", 4, output="a")
    sample("base", "up", "--classes", 1, 4, "--num_samples", 4, *BOTH_STEPS, "--batch_size", 3, output="b")
    sample("base", "up", "--classes", 1, "--num_samples", 2, *BOTH_STEPS, "--seed", 1, output="c")
    first, second, third = (pixels(tmp_path / name) for name in "abc")
    common = [name for name in first if name in second]
    assert common == ["1/00000.png", "1/00001.png"]
    assert_same_but_for_rounding(*({name: part[name] for name in common} for part in (second, first)), levels=4)
    assert all(abs(third[name] - first[name]).max() > 50 for name in common)


def test_no_classes_where_nobody_needs_them(sample, tmp_path):
    sample("unconditional", "unguided up", "--num_samples", 3, *BOTH_STEPS)
    assert list(pixels(tmp_path / "out")) == [f"images/0000{number}.png" for number in range(3)]


def test_saved_defaults(saved, tmp_path):
    pipe = ClassifierGuidedDDPMPipeline.from_pretrained(saved / "base")
    defaults = {"ddpm_num_inference_steps": 3, "ddpm_classifier_scale": 4.0}
    ClassifierGuidedDDPMPipeline(**pipe.components, **defaults).save_pretrained(tmp_path / "pipe")
    argv = ["sample", "--classes", 2, "--num_samples", 1, "--output", tmp_path / "out"]
    for changed in (["--model", saved / "base", *STEPS, "--classifier_scale", 4], ["--model", tmp_path / "pipe"]):
        result = run_here(*argv, *changed)
        assert result.status == 0, result.output  # the second one finds the images of the first
    assert sorted(os.listdir(tmp_path / "out")) == ["2", "grid.png", "sampling.json"]


def test_one_stage_in_memory_at_a_time(sample):
    alive, counts = weakref.WeakSet(), []

    def see(module, args):
        if isinstance(module, ADMUNet2DModel):
            alive.add(module)
            counts.append(len(alive))

    handle = register_module_forward_pre_hook(see)
    sample("base", "up", "--classes", 1, "--num_samples", 1, *BOTH_STEPS)
    handle.remove()
    assert counts == [1] * 5


# ------------------------------------------------------------------------------------- stopped, continued, several at it


RUN = ["--classes", 3, 1, "--num_samples", 10, "--batch_size", 3, "--npz"]


@pytest.fixture(scope="module")
def undisturbed(saved, tmp_path_factory):
    """What each of two runs leaves when nothing happens to it: by name, flags and contents."""
    runs = {}
    for name, flags in {
        "one stage": ["--model", saved / "base", *STEPS, *RUN],
        "cascade": ["--model", saved / "base", "--upsampler", saved / "up", *BOTH_STEPS, *RUN],
    }.items():
        root = tmp_path_factory.mktemp("undisturbed")
        assert run_cli("sample", *flags, "--output", root / "out", log=root / "log").status == 0
        runs[name] = flags, contents(root / "out")
    return runs


@pytest.mark.parametrize(
    ("name", "at"),
    [
        ("one stage", Signal(signal.SIGKILL, ".00003.png", "os.rename")),  # in the middle of a batch's files
        ("one stage", Signal(signal.SIGKILL, ".samples.npz")),
        ("one stage", Signal(signal.SIGKILL, "out/.sampling.json", "os.rename")),
        ("cascade", Signal(signal.SIGKILL, ".low_res/3/.00002.png", "os.rename")),
        ("cascade", Signal(signal.SIGKILL, "out/1/.00004.png", "os.rename")),
        ("cascade", Signal(signal.SIGKILL, "grid.png")),
    ],
    ids=lambda value: value if isinstance(value, str) else value.path,
)
def test_killed_and_started_again_leaves_what_an_undisturbed_run_does(undisturbed, tmp_path, name, at):
    flags, expected = undisturbed[name]
    argv = [*flags, "--output", tmp_path / "out"]
    assert run_cli("sample", *argv, log=tmp_path / "log", signal=at).status == -signal.SIGKILL
    before = contents(tmp_path / "out")
    whole = [file for file in before if file.endswith(".png") and "/." not in file and not file.startswith(".")]
    ended = run_cli("sample", *argv, log=tmp_path / "log")
    assert ended.status == 0 and f"Saved {tmp_path / 'out'}." in ended.output
    after = contents(tmp_path / "out")
    assert after == expected
    assert all(after[file] == before[file] for file in whole)


def test_two_processes_leave_what_one_does(undisturbed, tmp_path):
    flags, expected = undisturbed["cascade"]
    # `accelerate launch` starts several processes on CPU through MPI only
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    argv = [*launch, "-m", "diffusers_cg", "sample", *flags, "--output", tmp_path / "out"]
    done = subprocess.run(
        list(map(str, argv)),
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Saved") == 1
    assert contents(tmp_path / "out") == expected


def test_more_images_of_the_same(sample, tmp_path, count_unet_passes):
    flags = ["--classes", 3, *STEPS, "--batch_size", 2]
    sample("base", None, *flags, "--num_samples", 3)
    before = contents(tmp_path / "out")
    passes = count_unet_passes()
    sample("base", None, *flags, "--num_samples", 5)
    assert passes() == 2 * 3  # batches of which images were missing, three steps each
    after = contents(tmp_path / "out")
    assert len(pixels(tmp_path / "out")) == 5
    assert all(after[file] == before[file] for file in before if file != "grid.png")
    said = sample("base", None, *flags, "--num_samples", 2, status=2)
    assert f"error: {tmp_path / 'out'} holds more than the 2 samples asked for, 3/00002.png for one" in said


@pytest.mark.parametrize(
    ("model", "changed", "said"),
    [
        ("base", ["--seed", 1], "seed 0 (now 1)"),
        ("base", ["--classifier_scale", 3], "base.classifier_scale 1.0 (now 3.0)"),
        ("base", ["--sampler", "ddim"], "base.sampler ddpm (now ddim)"),
        ("base", ["--num_inference_steps", 4], "base.num_inference_steps 3 (now 4)"),
        ("base", ["--random_classes"], "random_classes False (now True)"),
        ("base", ["--classes", 3, 4], "classes [3] (now [3, 4])"),
        ("other weights", [], "base.components "),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_refuses_to_go_on_with_other_settings(sample, saved, tmp_path, model, changed, said):
    flags = ["--num_samples", 1, *STEPS]
    sample("base", None, "--classes", 3, *flags)
    before = contents(tmp_path / "out")
    flags += [] if "--classes" in changed else ["--classes", 3]
    line = sample(model, None, *flags, *changed, status=2).strip().splitlines()[-1]
    assert line.startswith(f"error: {tmp_path / 'out'} holds samples of other settings: ") and said in line
    assert contents(tmp_path / "out") == before


def test_only_a_folder_of_samples_is_written_to(sample, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    said = sample("base", None, "--classes", 1, *STEPS, output="mine", status=2)
    assert f"error: {tmp_path / 'mine'} holds something else than samples (it has no sampling.json)" in said
    assert os.listdir(tmp_path / "mine") == ["thesis.tex"]
    (tmp_path / "file").write_text("precious")
    assert "file is a file: name a folder" in sample("base", None, "--classes", 1, *STEPS, output="file", status=2)


def test_no_space_left(saved, tmp_path):
    argv = ["--model", saved / "larger", "--num_inference_steps", 1, "--num_samples", 400, "--batch_size", 200]
    argv += ["--npz", "--output", tmp_path / "out"]
    ended = run_cli("sample", *argv, log=tmp_path / "log", file_size_limit=40_000)
    assert ended.status == 2
    assert ended.output.strip().splitlines()[-1].startswith("error: File too large")
    assert len(pixels(tmp_path / "out")) == 400
    assert run_cli("sample", *argv, log=tmp_path / "log").status == 0


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
        ("base", None, ["--classes", 5, 2], "`class_labels` must lie in 0..4, got [2, 5]"),
        ("base", None, ["--classes", 1, 2, 1], "`classes` must name at least one class, each once and none below 0"),
        ("unconditional", None, ["--classes=-1"], "--classes: must be greater than or equal to 0, got -1"),
        ("base", None, [*CLASSES, "--num_samples", 0], "--num_samples: must be greater than 0, got 0"),
        ("base", None, [*CLASSES, "--no_png"], "Neither `png` nor `npz`"),
        ("base", None, [*CLASSES, "--eta", 0.5], "`eta` is for the sampler ddim"),
        ("base", None, [*CLASSES, "--sampler", "ddim", "--eta", 2], "--eta: must be less than or equal to 1, got 2.0"),
        ("base", None, [*CLASSES, "--timesteps", 20, 900], "`timesteps` must"),
        ("base", None, [*CLASSES, *STEPS, "--timesteps", 20], "Pass either `num_inference_steps` or `timesteps`"),
        ("base", None, [*CLASSES, "--batch_size", 0], "--batch_size: must be greater than 0, got 0"),
        ("base", None, [*CLASSES, "--seed=-1"], "--seed: must be greater than or equal to 0, got -1"),
        ("base", None, [*CLASSES, "--device", "moon"], "`device` is 'moon', which cannot be used here"),
        ("base", None, [*CLASSES, "--classifier_scale=-1"], "--classifier_scale: must be greater than or equal to 0"),
        ("base", None, [*CLASSES, "--num_inference_steps", 1001], "`num_inference_steps` must be between 1 and 1000"),
        ("base", None, [*CLASSES, "--low_res_noise", 1], "Flags of the upsampler need one: pass --upsampler"),
        ("base", "up", [*CLASSES, "--low_res_blur=-1"], "--low_res_blur: must be greater than or equal to 0"),
        (
            "base",
            "up",
            [*CLASSES, "--upsampler_num_inference_steps", 0],
            "--upsampler_num_inference_steps: must be greater",
        ),
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
    assert "Error parsing --classes" in sample("base", None, "--classes", 1, "cat", status=2)
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
