"""What the training commands refuse: exit status 2, one sentence, no traceback, nothing written."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import run_command, run_script


@pytest.fixture
def refusal(tiny_flags, tmp_path):
    """Runs a command that must be refused, and returns its sentence."""

    def refusal(name, **changed):
        flags = tiny_flags(**{"output_dir": tmp_path / "output", **changed})
        return sentence(run_command(name, *flags, log=tmp_path / "log"))

    return refusal


def sentence(ended):
    assert ended.status == 2, ended.output
    assert "Traceback" not in ended.output
    line = ended.output.strip().splitlines()[-1]
    assert line.startswith("error: ") and line.endswith(".") and not line.endswith("..")
    return line.removeprefix("error: ")


@pytest.fixture
def folder(few_digits, tmp_path):
    """A good folder, to be spoilt."""
    return Path(shutil.copytree(few_digits, tmp_path / "images"))


# ----------------------------------------------------------------------------------------------------------- the data


def test_script_started_by_hand_refuses_a_missing_folder(tiny_flags, tmp_path):
    flags = tiny_flags(train_data_dir=tmp_path / "nowhere", output_dir=tmp_path / "output")
    said = sentence(run_script("training/train_unet.py", *flags, log=tmp_path / "log"))
    assert said.startswith(f"There is no folder {tmp_path / 'nowhere'}: pass a folder with one subfolder")
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("name", ["train_unet", "train_classifier"])
def test_empty_folder(refusal, tmp_path, name):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / ".hidden").mkdir()
    assert "images has no subfolders" in refusal(name, train_data_dir=tmp_path / "images")
    assert not (tmp_path / "output").exists()


def test_one_class(refusal, folder):
    shutil.rmtree(folder / "0")
    shutil.rmtree(folder / "2")
    assert "images has one class only, 1:" in refusal("train_unet", train_data_dir=folder)


def test_class_without_images(refusal, folder):
    (folder / "3").mkdir()
    (folder / "4").mkdir()
    said = refusal("train_unet", train_data_dir=folder)
    assert f"hold no images: {folder}/3, {folder}/4." in said


def spoil(folder):
    """One file that is no image, and one of each format that ends too early."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    bad = [folder / "0" / "notes", folder / "0" / "empty.png"]
    bad[0].write_text("not an image")
    bad[1].touch()
    for suffix in ("png", "jpg", "tif"):
        path = folder / "1" / f"truncated.{suffix}"
        Image.fromarray(pixels).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
        bad.append(path)
    return bad


def test_every_kind_of_bad_file_is_named_with_its_fault(refusal, folder):
    spoilt = {path: path.read_bytes() for path in spoil(folder)}
    for path in spoilt:
        path.unlink()
    for path, content in spoilt.items():
        path.write_bytes(content)
        said = refusal("train_unet", train_data_dir=folder)
        assert said.startswith("1 of 37 images cannot be read: ")
        fault = "not an image" if path.name in ("notes", "empty.png") else "damaged: "
        assert f"{path} ({fault}" in said
        assert "--skip_bad_images" in said
        path.unlink()


def test_many_bad_files_are_counted(refusal, folder):
    for number in range(8):
        (folder / "2" / f"bad{number}.png").write_text("not an image")
    said = refusal("train_classifier", train_data_dir=folder)
    assert said.startswith("8 of 44 images") and "bad4.png" in said and "bad5.png" not in said and "and 3 more" in said


def test_bad_files_are_skipped_when_asked(train, folder, tmp_path):
    bad = spoil(folder)
    ended = train("train_unet", train_data_dir=folder, output_dir=tmp_path / "output", skip_bad_images=True)
    assert f"Skipped {len(bad)} of {36 + len(bad)} images" in ended.output and str(bad[0]) in ended.output
    assert (tmp_path / "output" / "model_index.json").is_file()


def test_class_of_bad_files_only_is_empty_when_they_are_skipped(refusal, folder):
    for file in (folder / "1").iterdir():
        file.write_text("not an image")
    said = refusal("train_unet", train_data_dir=folder, skip_bad_images=True)
    assert said == "No image of these classes can be read: 1. Replace or remove them."


@pytest.mark.parametrize("num_workers", [0, 1])
def test_bad_file_met_in_the_middle_is_named(refusal, folder, num_workers):
    for file in (folder / "1").iterdir():
        file.write_bytes(file.read_bytes()[:60])
    flags = {"train_data_dir": folder, "verify_images": False, "dataloader_num_workers": num_workers}
    assert f"{folder}/1/" in refusal("train_unet", **flags)


def test_validation_folder_of_other_classes(refusal, folder):
    (folder / "2").rename(folder / "two")
    said = refusal("train_classifier", validation_data_dir=folder)
    assert said == (f"{folder} has classes that are none of the 3 known ones (0, 1, 2): two (the nearest is 2).")


@pytest.mark.parametrize("fraction", [0.001, 1.0, -0.5, "nan"])
def test_validation_fraction_that_leaves_nothing(refusal, fraction):
    assert "--validation_fraction" in refusal("train_classifier", validation_fraction=fraction)


# ---------------------------------------------------------------------------------------------------------- the flags


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"train_batch_size": 0}, "--train_batch_size: must be greater than 0, got 0."),
        ({"learning_rate": "nan"}, "--learning_rate: must be greater than 0, got nan."),
        ({"checkpointing_steps": -1}, "--checkpointing_steps: must be greater than or equal to 0, got -1."),
        ({"dropout": 1.0}, "--dropout: must be less than 1, got 1.0."),
        ({"resolution": 20, "channel_multipliers": None}, "no customary architecture for --resolution 20"),
        ({"resolution": 15}, "multiples of 2"),
        ({"attention_resolutions": (4,)}, "`attention_resolutions` names [4]"),
        ({"lr_warmup_steps": 5}, "--lr_scheduler constant knows no --lr_warmup_steps: pass constant_with_warmup."),
        ({"max_grad_norm": -1}, "--max_grad_norm: must be greater than or equal to 0, got -1.0."),
        ({"adam_beta2": 1.0}, "--adam_beta2: must be less than 1, got 1.0."),
        ({"ema_max_decay": (0.9, 1.0)}, "--ema_max_decay: must be less than 1, got 1.0."),
        (
            {"total_batch_size": 12},
            "--total_batch_size 12 is no multiple of 8, the images of --train_batch_size 8 on 1 ",
        ),
        ({"loss": "simple"}, "The loss 'simple' does not train a learned variance"),
        ({"loss": "hybrid", "learn_variance": False}, "The loss 'hybrid' trains a learned variance"),
        ({"loss": "kl", "lambda_vlb": 0.1}, "--lambda_vlb is for --loss rescaled_hybrid, not kl"),
        ({"run_name": "x"}, "--logger none takes no --run_name"),
        ({"logger": "wandb"}, "--logger wandb is not installed: install it, or pass --logger none."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_flags_that_cannot_be_meant(refusal, flags, said):
    assert said in refusal("train_unet", **flags)


@pytest.mark.parametrize(
    "flags",
    [
        {"lr_scheduler": "wavy"},
        {"ddpm_beta_schedule": "wavy"},
        {"logger": "wavy"},
        {"mixed_precision": "wavy"},
        {"preset": "wavy"},
        {"train_batch_size": "wavy"},
        {"wavy": 1},
    ],
    ids=lambda value: " ".join(value),
)
def test_words_that_no_flag_takes(tiny_flags, tmp_path, flags):
    argv = tiny_flags(output_dir=tmp_path / "output", **flags)
    ended = run_command("train_unet", *argv, log=tmp_path / "log")
    assert ended.status == 2 and "Traceback" not in ended.output
    (name,) = flags
    assert "wavy" in ended.output and f"--{name}" in ended.output
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("name", ["train_unet", "train_classifier"])
def test_levels_that_do_not_fit_are_told_before_all_images_are_checked(refusal, folder, name):
    spoil(folder)
    assert "multiples of 2" in refusal(name, train_data_dir=folder, resolution=15)


def test_output_that_is_a_file(refusal, tmp_path):
    (tmp_path / "output").write_text("precious")
    assert str(tmp_path / "output") in refusal("train_unet")
    assert (tmp_path / "output").read_text() == "precious"


def test_export_onto_a_file(tmp_path):
    (tmp_path / "output").write_text("precious")
    ended = run_command("export_digits", "--output_dir", tmp_path / "output", log=tmp_path / "log")
    assert str(tmp_path / "output") in sentence(ended)
    assert (tmp_path / "output").read_text() == "precious"


# --------------------------------------------------------------------------------------------------------- resuming


@pytest.fixture(scope="module")
def stopped(train, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("stopped")
    train("train_unet", output_dir=output_dir, max_train_steps=1, checkpointing_steps=1)
    return output_dir


def test_resume_where_there_is_no_checkpoint(refusal, train, stopped, tmp_path):
    said = refusal("train_unet", resume_from_checkpoint=stopped / "unet")
    assert f"{stopped / 'unet'} is not a checkpoint" in said
    assert not (tmp_path / "output").exists()
    flags = {"output_dir": tmp_path / "output", "max_train_steps": 1, "checkpointing_steps": 1}
    begun = train("train_unet", resume_from_checkpoint="latest", **flags)
    assert f"{tmp_path / 'output'} holds no checkpoint yet: the training starts anew." in begun.output
    for file in ("checkpoint-1/training_state.json", "training.json"):
        assert (tmp_path / "output" / file).read_bytes() == (stopped / file).read_bytes()


def test_a_folder_with_checkpoints_of_another_training(refusal, train, stopped, tmp_path):
    output = tmp_path / "output"
    shutil.copytree(stopped / "checkpoint-1", output / "checkpoint-10")
    (output / "checkpoint-best").mkdir()
    flags = {"seed": 7, "max_train_steps": 1, "checkpointing_steps": 1, "checkpoints_total_limit": 1}
    for resumed in ({}, {"resume_from_checkpoint": stopped / "checkpoint-1"}):
        said = refusal("train_unet", **flags, **resumed)
        assert said.startswith(f"{output} holds checkpoints that this training does not come from")
        assert "choose another --output_dir, or pass --overwrite_output_dir" in said
    assert "cannot be joined" in refusal(
        "train_unet", **flags, resume_from_checkpoint="latest", overwrite_output_dir=True
    )
    assert sorted(path.name for path in output.iterdir()) == ["checkpoint-10", "checkpoint-best"]
    train("train_unet", output_dir=output, overwrite_output_dir=True, **flags)
    assert sorted(path.name for path in output.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-best"]
    assert '"seed": 7' in (output / "checkpoint-1" / "training_state.json").read_text()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"base_channels": 64}, "another architecture: base_channels=16 (now 64)."),
        ({"class_conditional": False}, "num_class_embeds=3 (now None)."),
        ({"seed": 1}, "seed=0, now it is 1"),
        ({"train_batch_size": 4}, "images_per_step=8, now it is 4"),
        ({"use_ema": False}, "use_ema=True, now it is False"),
        ({"ema_max_decay": (0.99, 0.9)}, "ema_max_decay=[0.9999], now it is [0.99, 0.9]"),
        ({"loss": "kl"}, "loss='rescaled_hybrid', now it is 'kl'"),
        ({"timestep_sampler": "loss_second_moment"}, "timestep_sampler='uniform', now it is 'loss_second_moment'"),
        ({"learning_rate": 1e-3}, "learning_rate=0.0001, now it is 0.001"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_resume_from_another_training(refusal, stopped, flags, said):
    assert said in refusal("train_unet", resume_from_checkpoint=stopped / "checkpoint-1", **flags)


def test_resume_with_classes_of_other_names(refusal, stopped, folder):
    (folder / "2").rename(folder / "two")
    said = refusal("train_unet", train_data_dir=folder, resume_from_checkpoint=stopped / "checkpoint-1")
    assert "class_names=['0', '1', '2'], now it is ['0', '1', 'two']: the two cannot be joined" in said


def test_resume_on_other_images(refusal, train, stopped, folder, tmp_path):
    other = sorted((folder / "1").glob("*.png"))
    for file, content in zip(other, [file.read_bytes() for file in other[::-1]]):
        file.write_bytes(content)  # as many, of the same classes
    flags = {"train_data_dir": folder, "resume_from_checkpoint": stopped / "checkpoint-1"}
    said = refusal("train_unet", **flags)
    assert "was trained on other images than these" in said and "--allow_other_images" in said
    for meant in (other[0].unlink, lambda: None):
        ended = train("train_unet", output_dir=tmp_path / "output", allow_other_images=True, **flags)
        assert "Resumed from" in ended.output
        meant()


def test_resume_with_the_same_classes_written_otherwise(train, stopped, folder, few_digits, tmp_path):
    """The folder lies elsewhere, and its names have leading zeros now."""
    for name in "012":
        (folder / name).rename(folder / f"0{name}")
    flags = {"train_data_dir": folder, "resume_from_checkpoint": stopped / "checkpoint-1", "max_train_steps": 2}
    train("train_unet", output_dir=tmp_path / "output", **flags)
    config = json.loads((tmp_path / "output" / "unet" / "config.json").read_text())
    assert config["class_names"] == ["0", "1", "2"]


def test_resume_a_classifier_from_a_unet(refusal, stopped):
    assert "another architecture" in refusal("train_classifier", resume_from_checkpoint=stopped / "checkpoint-1")


def test_other_folders_named_like_checkpoints_are_passed_over(train, stopped, tmp_path):
    shutil.copytree(stopped / "checkpoint-1", tmp_path / "checkpoint-1")
    shutil.copytree(stopped / "checkpoint-1", tmp_path / "checkpoint-best")
    (tmp_path / "checkpoint-9").mkdir()
    ended = train("train_unet", output_dir=tmp_path, resume_from_checkpoint="latest")
    assert f"Resumed from {tmp_path}/checkpoint-1 at step 1." in ended.output


# --------------------------------------------------------------------------------------------------------- assembling


@pytest.fixture(scope="module")
def classifier(train, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("classifier")
    train("train_classifier", output_dir=output_dir, max_train_steps=1, validation_fraction=0)
    return output_dir


@pytest.fixture
def assemble(stopped, classifier, tmp_path):
    def assemble(**changed):
        flags = {"unet": stopped, "classifier": classifier, "output_dir": tmp_path / "pipeline", **changed}
        argv = [item for name, value in flags.items() if name != "limit" for item in (f"--{name}", value)]
        return run_command("assemble_pipeline", *argv, log=tmp_path / "log", file_size_limit=flags.get("limit"))

    return assemble


@pytest.mark.parametrize("part", ["unet", "classifier", "unconditional_unet"])
def test_assembling_what_is_not_there(assemble, tmp_path, part):
    said = sentence(assemble(**{part: tmp_path / "nowhere"}))
    assert said.startswith(f"--{part} {tmp_path / 'nowhere'} is not an output folder of train_")
    assert not (tmp_path / "pipeline").exists()


def test_assembling_what_does_not_fit(assemble, train, tmp_path):
    train("train_classifier", output_dir=tmp_path / "rgb", max_train_steps=1, validation_fraction=0, channels=3)
    assert "channels" in sentence(assemble(classifier=tmp_path / "rgb"))
    assert not (tmp_path / "pipeline").exists()


def test_full_disk_leaves_the_assembled_pipeline(assemble, tmp_path):
    assert assemble().status == 0
    before = sorted(path.stat().st_ino for path in (tmp_path / "pipeline").rglob("*"))
    sentence(assemble(limit=100_000))
    assert sorted(path.stat().st_ino for path in (tmp_path / "pipeline").rglob("*")) == before
    assert not list(tmp_path.glob(".pipeline*"))
