"""`diffusers-cg sample`: its flags reach what they name; what the drawing does is tested in tests/generation."""

import os
import signal

import pytest
import tiny
import torch
from processes import Signal, as_torchrun, run_cli, run_here, run_together
from torch.nn.modules.module import register_module_forward_pre_hook

import diffusers_cg_cli
from diffusers_cg import ADMUNet2DModel, ClassifierGuidedDDPMPipeline, ClassifierGuidedSuperResolutionPipeline
from diffusers_cg.data import open_images
from diffusers_cg.generation import BESIDE_SAMPLES, SampleFolder, SavedPipeline, generate_to_folder


LOW = {"sample_size": 4, "attention_resolutions": (2,)}
NAMES = ["cat", "dog", "owl", "bee", "3"]
STEPS = ["--num_inference_steps", 3]
BOTH_STEPS = [*STEPS, "--upsampler_num_inference_steps", 2]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    root = tmp_path_factory.mktemp("saved")
    base, upsampler = ClassifierGuidedDDPMPipeline, ClassifierGuidedSuperResolutionPipeline
    for name, pipe in {
        "base": tiny.pipeline(base, conditional=True, class_names=NAMES, **LOW),
        "unconditional": tiny.pipeline(base, with_classifier=False, **LOW),
        "larger": tiny.pipeline(base, with_classifier=False),
        "up": tiny.pipeline(upsampler, conditional=True, low_res_size=4),
    }.items():
        pipe.save_pretrained(root / name)
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


def contents(folder):
    """Every file by its path, hidden ones, too."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


# ------------------------------------------------------------------------------------------------------------- flags


def test_what_is_said(sample, tmp_path):
    said = sample("base", None, "--classes", 3, 0, "--num_samples", 4, *STEPS)
    assert said.strip().endswith(f"Saved {tmp_path / 'out'}.")


def test_classes_by_name_are_those_by_label(sample, tmp_path, caplog):
    flags = ["--num_samples", 2, *STEPS]
    sample("base", None, *flags, "--classes", "dog", 2, output="names")
    sample("base", None, *flags, "--classes", 1, "owl", output="labels")
    assert contents(tmp_path / "names") == contents(tmp_path / "labels")
    sample("base", None, *flags, "--classes", 1, 2, output="names")  # goes on
    assert not caplog.records
    sample("base", None, *flags, "--classes", 3, output="warned")
    assert "not the one that is called '3'" in caplog.text


def test_flags_of_one_stage(sample, saved, tmp_path):
    flags = ["--classes", 4, 2, "--num_samples", 3, "--sampler", "ddim", "--timesteps", 900, 20, "--eta", 0.5]
    flags += ["--classifier_scale", 2, "--seed", 5, "--batch_size", 2, "--npz", "--no_png", "--dtype", "bf16"]
    sample("base", None, *flags, "--random_classes")
    base = SavedPipeline(
        str(saved / "base"),
        "ddim",
        classifier_scale=2.0,
        dtype=torch.bfloat16,
        eta=0.5,
        timesteps=[900, 20],
    )
    options = {"num_samples": 3, "seed": 5, "batch_size": 2, "png": False, "npz": True}
    generate_to_folder(tmp_path / "python", base, classes=[4, 2], random_classes=True, **options)
    assert contents(tmp_path / "out") == contents(tmp_path / "python")


def test_flags_of_a_cascade(sample, saved, tmp_path):
    scales = ["--classifier_scale", 2, "--upsampler_classifier_scale", 3]
    levels = ["--low_res_noise", 0.1, "--low_res_blur", 0.2]
    sample("base", "up", "--num_samples", 2, *BOTH_STEPS, *scales, *levels)
    generate_to_folder(
        tmp_path / "python",
        SavedPipeline(str(saved / "base"), num_inference_steps=3, classifier_scale=2.0),
        SavedPipeline(
            str(saved / "up"), num_inference_steps=2, classifier_scale=3.0, low_res_noise=0.1, low_res_blur=0.2
        ),
        num_samples=2,
    )
    assert contents(tmp_path / "out") == contents(tmp_path / "python")


def test_evaluate_reads_what_sample_writes(sample, tmp_path):
    sample("base", None, "--num_samples", 6, *STEPS, "--npz")
    assert open_images(tmp_path / "out", leave_out=BESIDE_SAMPLES).shape == (6, 4, 4, 3)
    assert open_images(tmp_path / "out" / "samples.npz").shape == (6, 4, 4, 3)


# -------------------------------------------------------------------------------------- several processes, killed, full


RUN = ["--classes", 3, 1, "--num_samples", 10, "--batch_size", 3, "--npz"]


@pytest.fixture(scope="module")
def undisturbed(saved, tmp_path_factory):
    """Flags of a run, and what it leaves when nothing happens to it."""
    flags = ["--model", saved / "base", "--upsampler", saved / "up", *BOTH_STEPS, *RUN]
    root = tmp_path_factory.mktemp("undisturbed")
    assert run_cli("sample", *flags, "--output", root / "out", log=root / "log").status == 0
    return flags, contents(root / "out")


def test_killed_and_started_again_leaves_what_an_undisturbed_run_does(undisturbed, tmp_path):
    flags, expected = undisturbed
    argv = [*flags, "--output", tmp_path / "out"]
    at = Signal(signal.SIGKILL, "out/1/.00002.png", "os.rename")
    assert run_cli("sample", *argv, log=tmp_path / "log", signal=at).status == -signal.SIGKILL
    ended = run_cli("sample", *argv, log=tmp_path / "log")
    assert ended.status == 0 and f"Saved {tmp_path / 'out'}." in ended.output
    assert contents(tmp_path / "out") == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="on GPUs Accelerate knows processes by itself")
def test_two_processes_of_torchrun_share_the_work_in_batches_of_sizes_that_they_find(undisturbed, tmp_path):
    flags, expected = undisturbed
    argv = list(map(str, ["sample", *flags, "--batch_size", "auto", "--output", tmp_path / "out"]))
    ended = run_together(as_torchrun, diffusers_cg_cli.main, argv, num_processes=2, logs=tmp_path)
    assert [process.status for process in ended] == [0, 0], ended
    assert "batches of 5" in ended[0].output  # of 10 images
    assert contents(tmp_path / "out").keys() == expected.keys()
    assert contents(tmp_path / "out")["sampling.json"] == expected["sampling.json"]


def test_two_processes_leave_what_one_does(undisturbed, tmp_path):
    flags, expected = undisturbed
    argv = list(map(str, ["sample", *flags, "--output", tmp_path / "out"]))
    ended = run_together(diffusers_cg_cli.main, argv, num_processes=2, logs=tmp_path)
    assert [process.status for process in ended] == [0, 0], ended
    assert sum(process.output.count("Saved") for process in ended) == 1
    assert contents(tmp_path / "out") == expected


def test_no_space_left(saved, tmp_path):
    argv = ["--model", saved / "larger", "--num_inference_steps", 1, "--num_samples", 400, "--batch_size", 200]
    argv += ["--npz", "--output", tmp_path / "out"]
    ended = run_cli("sample", *argv, log=tmp_path / "log", file_size_limit=40_000)
    assert ended.status == 2
    assert ended.output.strip().splitlines()[-1].startswith("error: File too large")
    assert len(SampleFolder(tmp_path / "out").images()) == 400
    assert run_cli("sample", *argv, log=tmp_path / "log").status == 0


# ----------------------------------------------------------------------------------------------------------- bad input


CLASSES = ["--classes", 1]


@pytest.mark.parametrize(
    ("model", "upsampler", "argv", "said"),
    [
        ("nowhere", None, CLASSES, "There is no folder {saved}/nowhere: pass that of a saved pipeline, or OWNER/NAME"),
        ("up", None, CLASSES, "This unet is an upsampling one"),
        ("base", None, ["--classes", 5, 2], "`class_labels` must lie in 0..4, got [2, 5]"),
        ("base", None, ["--classes", 1, 2, 1], "`classes` must name at least one class, each once and none below 0"),
        ("base", None, ["--classes", "cta"], "There is no class 'cta'; the nearest of the 5 is 'cat'"),
        ("base", None, ["--classes", "cat", 0], "`classes` must name at least one class, each once"),
        ("unconditional", None, ["--classes", "cat"], "The classes of this pipeline have no names"),
        ("unconditional", None, ["--classes=-1"], "--classes: must be greater than or equal to 0, got -1"),
        ("base", None, [*CLASSES, "--num_samples", 0], "--num_samples: must be greater than 0, got 0"),
        ("base", None, [*CLASSES, "--no_png"], "Neither `png` nor `npz`"),
        ("base", None, [*CLASSES, "--eta", 0.5], "`eta` is for the sampler ddim"),
        ("base", None, [*CLASSES, "--sampler", "ddim", "--eta", 2], "--eta: must be less than or equal to 1, got 2.0"),
        ("base", None, [*CLASSES, *STEPS, "--timesteps", 20], "Pass either `num_inference_steps` or `timesteps`"),
        ("base", None, [*CLASSES, "--batch_size", 0], "--batch_size: must be greater than 0, got 0"),
        ("base", None, [*CLASSES, "--seed=-1"], "--seed: must be greater than or equal to 0, got -1"),
        ("base", None, [*CLASSES, "--device", "moon"], "`device` is 'moon', which cannot be used here"),
        ("base", None, [*CLASSES, "--classifier_scale=-1"], "--classifier_scale: must be greater than or equal to 0"),
        ("base", None, [*CLASSES, "--low_res_noise", 1], "Flags of the upsampler need one: pass --upsampler"),
        ("base", "up", [*CLASSES, "--low_res_blur=-1"], "--low_res_blur: must be greater than or equal to 0"),
        ("base", "up", [*CLASSES, "--upsampler_num_inference_steps", 0], "--upsampler_num_inference_steps: must be"),
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
