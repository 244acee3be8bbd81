"""`diffusers-cg edit`, `inpaint` and `restore`: folders in, folders out; what a call draws is tested in tests/pipelines."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image
from processes import Signal, run_cli, run_here, run_together

import diffusers_cg_cli
from diffusers_cg import ClassifierGuidedDDIMPipeline, ClassifierGuidedDDPMPipeline
from diffusers_cg.generation import SampleFolder
from diffusers_cg.generation.edited_folder import ImageToEdit
from diffusers_cg.restoration import BoxDownsampling


NAMES = ["cat", "dog", "owl", "bee", "3"]
STEPS = ["--num_inference_steps", 4]
EDIT = ["edit", *STEPS, "--class_label", "owl"]
INPAINT = ["inpaint", *STEPS, "--jump_length", 2, "--jump_n_sample", 2]
RESTORE = ["restore", *STEPS, "--operator", "BoxDownsampling", "factor=2"]


def write_images(root, side, names=("cat/b.png", "cat/a.jpg", "owl/nested/c.png", "owl/d.png")):
    rng = np.random.default_rng(0)
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path, quality=95)
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Pipelines, images of three sizes, and a mask."""
    root = tmp_path_factory.mktemp("root")
    tiny.pipeline(ClassifierGuidedDDPMPipeline, conditional=True, class_names=NAMES).save_pretrained(root / "model")
    tiny.pipeline(ClassifierGuidedDDPMPipeline, with_classifier=False).save_pretrained(root / "plain")
    write_images(root / "images", 8)
    write_images(root / "small", 4)
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[:, 5:] = 255
    Image.fromarray(mask).save(root / "mask.png")
    return root


@pytest.fixture
def call(root, tmp_path, monkeypatch):
    monkeypatch.chdir(root)

    def call(command, *argv, status=0, output="out", images="images", model="model"):
        flags = ["--model", root / model, "--images", root / images, "--output", tmp_path / output]
        ended = run_here(*command, *flags, *argv)
        assert ended.status == status and "Traceback" not in ended.output, ended.output
        return ended.output

    call.output = tmp_path / "out"
    return call


def pixels(folder):
    return {str(file.relative_to(folder)): np.asarray(Image.open(file)) for file in SampleFolder(folder).images()}


COMMANDS = {
    "edit": (EDIT, "images"),
    "edit by noise": ([*EDIT, "--noise", "--strength", 0.75], "images"),
    "inpaint": ([*INPAINT, "--masks", "mask.png"], "images"),
    "restore": (RESTORE, "small"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_new_images_have_the_names_of_the_old_and_do_not_depend_on_their_batch(name, call, tmp_path):
    command, images = COMMANDS[name]
    call(command, images=images)
    made = pixels(call.output)
    assert sorted(made) == ["cat/a.png", "cat/b.png", "owl/d.png", "owl/nested/c.png"]
    assert all(image.shape == (8, 8, 3) and image.std() > 0 for image in made.values())
    assert Image.open(call.output / "grid.png").width > 200
    before = (call.output / "cat" / "a.png").stat().st_mtime_ns
    for batch_size in (1, "auto"):
        (call.output / "owl" / "d.png").unlink()
        call(command, "--batch_size", batch_size, images=images)  # goes on
        assert (call.output / "cat" / "a.png").stat().st_mtime_ns == before
        assert np.abs(pixels(call.output)["owl/d.png"].astype(int) - made["owl/d.png"]).max() <= 1


def test_each_image_is_inpainted_as_of_the_class_of_its_folder_and_keeps_what_is_known(root, call):
    call([*INPAINT, "--masks", root / "mask.png"])
    old, made = Image.open(root / "images" / "owl" / "d.png"), pixels(call.output)["owl/d.png"]
    assert np.array_equal(made[:, :5], np.asarray(old)[:, :5]) and not np.array_equal(made, np.asarray(old))
    call([*INPAINT, "--masks", root / "mask.png", "--class_label", "owl"], output="owls")
    owls = pixels(call.output.parent / "owls")
    assert np.array_equal(owls["owl/d.png"], made) and not np.array_equal(
        owls["cat/b.png"], pixels(call.output)["cat/b.png"]
    )


def test_a_mask_for_each_image(root, call, tmp_path):
    for name, side in (("cat/a.png", 0), ("cat/b.png", 255), ("owl/d.png", 0), ("owl/nested/c.png", 0)):
        (tmp_path / "masks" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), side).save(tmp_path / "masks" / name)
    call([*INPAINT, "--masks", tmp_path / "masks"])
    made, old = pixels(call.output), pixels(root / "images")
    changed = [name for name in made if name != "cat/a.png" and not np.array_equal(made[name], old[name])]
    assert changed == ["cat/b.png"]
    (tmp_path / "masks" / "owl" / "d.png").unlink()
    assert "d.png" in call([*INPAINT, "--masks", tmp_path / "masks"], status=2, output="other")


def test_commands_draw_what_calls_do(root, call):
    call([*EDIT, "--classifier_scale", 2, "--strength", 0.5, "--seed", 3, "--batch_size", 4])
    call([*RESTORE, "--method", "diffpir", "--noise_std", 0.1], images="small", output="restored")
    settings = json.loads((call.output / "sampling.json").read_text())
    assert settings["strength"] == 0.5 and settings["class_label"] == 2 and settings["base"]["classifier_scale"] == 2
    assert settings["seed"] == 3
    settings = json.loads((call.output.parent / "restored" / "sampling.json").read_text())
    assert settings["operator"] == {"name": "BoxDownsampling", "factor": 2} and settings["method"] == "diffpir"

    pipe = ClassifierGuidedDDIMPipeline.from_pretrained(root / "model")
    names, steps = ["cat/b.png", "owl/d.png"], {"num_inference_steps": STEPS[1]}
    classes = [NAMES.index(name.split("/")[0]) for name in names]

    def images_and_generators(folder, seed):
        images = [Image.open(root / folder / name) for name in names]
        return images, [ImageToEdit(Path(name), 0).generator(seed) for name in names]

    images, generators = images_and_generators("images", 3)
    of_edit = {"classifier_scale": 2.0, "strength": 0.5, "source_labels": classes}
    edited = pipe.edit(images, [2, 2], generator=generators, **of_edit, **steps).images
    images, generators = images_and_generators("small", 0)
    of_restore = {"method": "diffpir", "noise_std": 0.1, "class_labels": classes}
    restored = pipe.restore(images, BoxDownsampling(2), generator=generators, **of_restore, **steps).images
    for output, expected in (("out", edited), ("restored", restored)):
        made = pixels(call.output.parent / output)
        for name, image in zip(names, expected):
            assert np.abs(made[name].astype(int) - np.asarray(image)).max() <= 1, (output, name)


def test_restore_says_how_many_steps_it_took(root, call):
    call(["restore", "--operator", "BoxDownsampling", "factor=2"], images="small", model="plain")
    assert json.loads((call.output / "sampling.json").read_text())["base"]["num_inference_steps"] == 100


def test_folders_that_sample_wrote_are_called_by_labels_not_by_names(root, call, tmp_path):
    assert NAMES.index("3") == 4
    write_images(tmp_path / "samples", 8, ["3/00000.png"])
    made = {}
    for output, argv in (("names", []), ("label 3", ["--class_label", 3]), ("labels", [])):
        if output == "labels":
            (tmp_path / "samples" / "sampling.json").write_text('{"random_classes": false}')
        call([*INPAINT, "--masks", root / "mask.png", *argv], output=output, images=tmp_path / "samples")
        made[output] = pixels(tmp_path / output)["3/00000.png"]
    assert np.array_equal(made["labels"], made["label 3"]) and not np.array_equal(made["names"], made["label 3"])


def test_an_unconditional_model_needs_no_class(call):
    for command, images in (([*INPAINT, "--masks", "mask.png"], "images"), (RESTORE, "small")):
        call(command, images=images, model="plain", output=command[0])


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["edit", *STEPS], "class_label"),
        ([*EDIT, "--strength", 0], "strength"),
        ([*EDIT, "--scheduler", "UniPCMultistepScheduler"], "--noise"),
        ([*EDIT, "--class_label", "owls"], "owl"),
        ([*EDIT, "--source_class", 9], "0..4"),
        ([*EDIT, "--noise", "--source_class", 1], "which --noise does not go"),
        ([*EDIT, "--noise", "--num_inversion_steps", 3], "which --noise does not go"),
        ([*INPAINT, "--masks", "nowhere.png"], "nowhere.png"),
        ([*RESTORE[:-2], "BoxDownsamplin"], "BoxDownsampling"),
        ([*RESTORE, "sides=2"], "factor"),
        ([*RESTORE[:-1], "factor=3"], "multiples"),
        (RESTORE, "8x8"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else value,
)
def test_bad_input_is_said_before_any_image_is_made(command, said, call):
    assert said in call(command, status=2)
    assert not pixels(call.output)


def test_new_images_among_the_old_or_of_other_settings_are_refused(root, call):
    assert "outside" in call(EDIT, status=2, output=root / "images" / "new")
    call(EDIT)
    assert "seed" in call([*EDIT, "--seed", 1], status=2)


def test_another_mask_is_another_setting(root, call, tmp_path):
    call([*INPAINT, "--masks", root / "mask.png"])
    Image.new("L", (16, 16), 255).save(tmp_path / "whole.png")
    assert "mask " in call([*INPAINT, "--masks", tmp_path / "whole.png"], status=2)


def test_an_image_that_would_lie_where_the_grid_does(root, call, tmp_path):
    write_images(tmp_path / "images", 8, ("a.png", "grid.jpg"))
    flags = ["--source_class", 1]
    assert "where the grid does: rename it" in call([*EDIT, *flags], status=2, images=tmp_path / "images")


def test_a_run_of_several_processes_goes_on_when_the_first_was_killed_first(root, call, tmp_path):
    flags = ["--model", root / "model", "--images", root / "images", "--output", call.output, "--batch_size", 1]
    argv = [str(arg) for arg in (*EDIT, *flags)]
    kill = Signal(9, "images/cat/a.jpg")  # which it is the first to read
    first, _ = run_together(diffusers_cg_cli.main, argv, num_processes=2, logs=tmp_path, signals={0: kill})
    assert first.status == -9, first.output
    made = pixels(call.output)
    assert 0 < len(made) < 4
    call([*EDIT, "--batch_size", 1])
    assert len(pixels(call.output)) == 4 and all(
        np.array_equal(pixels(call.output)[name], made[name]) for name in made
    )


def test_killed_and_started_again_leaves_what_an_undisturbed_run_does(root, call, tmp_path):
    call([*EDIT, "--batch_size", 1], output="undisturbed")
    flags = ["--model", root / "model", "--images", root / "images", "--output", call.output, "--batch_size", 1]
    killed = run_cli(*EDIT, *flags, log=tmp_path / "log", signal=Signal(9, "owl/.d.png"))
    assert killed.status == -9, killed.output
    assert 0 < len(pixels(call.output)) < 4
    call([*EDIT, "--batch_size", 1])
    made, undisturbed = pixels(call.output), pixels(tmp_path / "undisturbed")
    assert made.keys() == undisturbed.keys() and all(np.array_equal(made[name], undisturbed[name]) for name in made)
