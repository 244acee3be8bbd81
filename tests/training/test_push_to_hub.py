"""What a run tells about itself, and `--push_to_hub` of the training scripts."""

import json
import os
from pathlib import Path

import pytest
from processes import run_command

from diffusers_cg import ClassifierGuidedDDIMPipeline
from diffusers_cg.hub.publishing import push_folder
from diffusers_cg.training import train_unet
from diffusers_cg.training.config import UNetSettings
from diffusers_cg.training.record import told


@pytest.fixture(scope="module")
def classifier(train, tmp_path_factory):
    """A trained classifier."""
    output_dir = tmp_path_factory.mktemp("classifier")
    flags = {"max_train_steps": 3, "seed": 7, "total_batch_size": 16, "mixed_precision": "bf16"}
    train("train_classifier", output_dir=output_dir, validation_fraction=0, **flags)
    return output_dir


def facts(folder):
    return json.loads((folder / "training.json").read_text())


def log_in(token):
    """As hf auth login does."""
    path = Path(os.environ["HF_HOME"]) / "token"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(token)


def test_the_result_is_published(hub, train, tmp_path):
    log_in("hf_me")
    flags = {"hub_model_id": "me/unet", "output_dir": tmp_path / "unet"}
    assert "Published" in train("train_unet", **flags, push_to_hub=()).output
    pipe = ClassifierGuidedDDIMPipeline.from_pretrained("me/unet")
    assert pipe.num_classes == 3
    assert not [path for path in hub.files("me/unet") if "checkpoint" in path]
    card = hub.files("me/unet")["README.md"].decode()
    assert "## Training\n\n### unet\n\n- steps: 2\n- images per step: 8\n- seed: 0\n" in card
    assert "accelerate launch training/train_unet.py --train_data_dir" in card
    assert "me/unet" not in (tmp_path / "unet" / "training.json").read_text()


def test_what_a_run_tells(classifier):
    run = facts(classifier)["classifier"]
    assert (run["steps"], run["images per step"], run["seed"], run["mixed precision"]) == (3, 16, 7, "bf16")
    assert run["hardware"] == f"1 process, CPU with {os.cpu_count()} cores"
    assert "torch 2" in run["versions"] and "recipe" not in run
    assert " --total_batch_size 16 " in " ".join(run["arguments"])
    assert str(classifier) not in run["arguments"]


def test_an_assembled_pipeline_tells_of_all_its_networks(hub, train, classifier, tmp_path):
    train("train_unet", output_dir=tmp_path / "unet", class_conditional=False)
    parts = ["--unet", tmp_path / "unet", "--classifier", classifier, "--unconditional_unet", tmp_path / "unet"]
    argv = [*parts, "--output_dir", tmp_path / "pipeline"]
    assert run_command("assemble_pipeline", *argv, log=tmp_path / "log").status == 0
    unet = facts(tmp_path / "unet")["unet"]
    assert facts(tmp_path / "pipeline") == {"unet": unet, **facts(classifier), "unet_unconditional": unet}
    push_folder(tmp_path / "pipeline", "me/model")
    card = hub.files("me/model")["README.md"].decode()
    assert "### unet\n\n- steps: 2\n" in card and "### classifier\n\n- steps: 3\n" in card

    (tmp_path / "unet" / "training.json").unlink()
    argv = ["--unet", tmp_path / "unet", "--output_dir", tmp_path / "pipeline"]
    assert run_command("assemble_pipeline", *argv, log=tmp_path / "log").status == 0
    assert not (tmp_path / "pipeline" / "training.json").exists()  # nobody knows


def test_what_is_nobody_else_s_business():
    address = "https://me:secret@host/a.tar?key=secret"
    typed = [
        "--output-dir",
        "/home/me/x",
        "--seed",
        "3",
        "--hub_model_id=me/x",
        "--push_to_hub",
        "--no-hub-private-repo",
    ]
    typed += [
        "--train_data_files",
        address,
        "b.tar",
        "--resume_from_checkpoint",
        "latest",
        f"--dataset_name={address}",
    ]
    assert told(train_unet.parse_args(typed)) == [
        *("--seed", "3", "--train_data_files", "https://host/a.tar", "b.tar", "--dataset_name=https://host/a.tar"),
    ]


def test_settings_made_in_python_tell_the_flags_that_make_them_again(tmp_path):
    settings = UNetSettings(
        train_data_dir="images",
        output_dir=tmp_path,
        ema_max_decay=[0.99, 0.9],
        use_ema=True,
        streaming=False,
        loss=None,
    )
    words = ["--ema_max_decay", "0.99", "0.9", "--use_ema", "--train_data_dir", "images", "--no-streaming"]
    assert sorted(told(settings.resolve())) == sorted(words)
    assert train_unet.parse_args([*settings.command_line()]).model_dump() == settings.model_dump()


@pytest.mark.parametrize(
    ("name", "token", "expected"),
    [
        (None, "hf_me", "--push_to_hub does not say where to: pass --hub_model_id OWNER/NAME."),
        ("unet", "hf_me", "unet is no name on the Hub: pass OWNER/NAME"),
        ("you/unet", "hf_me", "me cannot push to you/unet: choose a name that begins with me."),
        ("me/unet", "hf_nobody", "The Hub does not know this token"),
        ("me/unet", None, "The Hub asks who you are"),
    ],
)
def test_what_keeps_a_result_from_the_hub_is_told_before_training(hub, train, tmp_path, name, token, expected):
    if token is not None:
        log_in(token)
    said = train("train_classifier", status=2, output_dir=tmp_path / "out", hub_model_id=name, push_to_hub=()).output
    assert expected in said and "Traceback" not in said
    assert not (tmp_path / "out").exists() and not hub.repos
