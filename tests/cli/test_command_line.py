"""The command `diffusers-cg` itself: which commands there are, at what cost, and how they fail."""

import os
import subprocess
import sys

import numpy as np
import pytest
import tiny
from PIL import Image
from processes import run_here

from diffusers_cg import ClassifierGuidedDDPMPipeline
from diffusers_cg.errors import InputError, MissingExtraError
from diffusers_cg_cli import COMMANDS
from diffusers_cg_cli.command import command
from diffusers_cg_cli.convert import ConvertSettings
from diffusers_cg_cli.evaluate import EvaluateSettings
from diffusers_cg_cli.push import PushSettings
from diffusers_cg_cli.sample import SampleSettings
from diffusers_cg_cli.settings import parse
from diffusers_cg_cli.sweep import SweepSettings


HELP = """
import sys
import diffusers_cg_cli

try:
    diffusers_cg_cli.main(sys.argv[1:])
except SystemExit as ended:
    assert ended.code == 0, ended.code
heavy = {"torch", "diffusers", "transformers", "numpy", "diffusers_cg"} & set(sys.modules)
assert not heavy, heavy
"""


@pytest.mark.parametrize("argv", [["--help"], ["sample", "--help"], ["sweep", "--help"]], ids=" ".join)
def test_help_needs_no_torch(argv):
    done = subprocess.run([sys.executable, "-c", HELP, *argv], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "usage: diffusers-cg" in done.stdout


def test_help_lists_the_commands_in_a_line_each():
    ended = run_here("--help")
    assert ended.status == 0
    for name, (settings_class, _) in COMMANDS.items():
        (line,) = [line for line in ended.output.splitlines() if line.split()[:1] == [name]]
        assert line.split(maxsplit=1)[1] == settings_class.__doc__.splitlines()[0]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command(name):
    ended = run_here(name, "--help")
    assert ended.status == 0 and f"usage: diffusers-cg {name} " in ended.output
    assert "None" not in ended.output


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "Missing from diffusers-cg"),
        (["sampel"], "invalid choice 'sampel' for argument 'command'"),
        (["sample"], "--model"),
        (["sample", "--model", "m", "--output", "o", "--num_sample", "3"], "--num_samples"),
    ],
    ids=str,
)
def test_what_cannot_be_parsed_ends_with_status_2(argv, said):
    ended = run_here(*argv)
    assert ended.status == 2 and said in ended.output and "Traceback" not in ended.output


# ------------------------------------------------------------------------------------------- flags as they are spelled


def test_flags_of_convert():
    settings = parse(ConvertSettings, ["a.pt", "--output", "o", "--classifier", "c.pt", "--legacy_attention_order"])
    assert settings.legacy_attention_order and not settings.new_attention_order and settings.beta_schedule is None
    assert parse(ConvertSettings, ["a.pt", "--output", "o", "--new_attention_order"]).new_attention_order
    with pytest.raises(InputError, match="--new_attention_order and --legacy_attention_order say the opposite"):
        parse(ConvertSettings, ["a.pt", "--output", "o", "--new_attention_order", "--legacy_attention_order"])


def test_flags_of_push():
    argv = ["folder", "me/model", "--datasets", "a", "b", "--private", "--with_code", "--license", "mit"]
    settings = parse(PushSettings, argv)
    assert (str(settings.folder), settings.name, settings.datasets) == ("folder", "me/model", ["a", "b"])
    assert settings.private and settings.with_code and not settings.public
    with pytest.raises(InputError, match="--private and --public say the opposite"):
        parse(PushSettings, [*argv, "--public"])


def test_flags_of_sample():
    argv = ["--model", "m", "--output", "o", "--timesteps", "9", "5", "0", "--classes", "1", "2", "--no_png", "--npz"]
    settings = parse(SampleSettings, argv)
    assert (settings.timesteps, settings.classes, settings.png, settings.npz) == ([9, 5, 0], [1, 2], False, True)
    assert (settings.num_samples, settings.batch_size, settings.seed, settings.dtype) == (16, 8, 0, "fp32")


def test_flags_of_sweep_and_evaluate():
    argv = ["--model", "m", "--reference", "r", "--output", "o", "--num_samples", "9"]
    settings = parse(SweepSettings, [*argv, "--scales", "0", "1", "2.5", "--samplers", "ddpm:100", "ddim:25"])
    assert (settings.scales, settings.samplers) == ([0, 1, 2.5], ["ddpm:100", "ddim:25"])
    assert settings.extractor == "inception" and settings.evaluation_batch_size == 64
    settings = parse(EvaluateSettings, ["samples", "--reference", "r", "--output", "o"])
    assert (settings.samples, settings.batch_size) == ("samples", 64)
    with pytest.raises(InputError, match=r"--inception_weights is for the extractor inception, not for mine:f\.$"):
        parse(EvaluateSettings, ["s", "--reference=r", "--output=o", "--extractor=mine:f", "--inception_weights=w"])


def test_a_file_of_settings(tmp_path):
    tiny.pipeline(ClassifierGuidedDDPMPipeline, conditional=True).save_pretrained(tmp_path / "model")
    flags = f"model: {tmp_path / 'model'}\nclasses: [3, 1]\nnum_inference_steps: 2\nnum_samples: 4\n"
    (tmp_path / "mine.yaml").write_text(flags)
    ended = run_here("sample", "--config", tmp_path / "mine.yaml", "--num_samples", 2, "--output", tmp_path / "out")
    assert ended.status == 0, ended.output
    drawn = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("0*.png"))
    assert drawn == ["1/00000.png", "3/00000.png"]
    assert np.asarray(Image.open(tmp_path / "out" / "1" / "00000.png")).shape == (8, 8, 3)


# ------------------------------------------------------------------------------------------------------ how they fail


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("`seed` must be at least 0, got -1."), "error: `seed` must be at least 0, got -1."),
        (MissingExtraError("This needs a package:\n run pip."), "error: This needs a package: run pip."),
        (FileNotFoundError(2, "No such file or directory", "x.pt"), "error: No such file or directory: x.pt."),
        (OSError("of a library"), "error: of a library."),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_the_user_can_put_right_is_one_sentence(capsys, error, line):
    @command
    def main():
        raise error

    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"{line}\n"


@pytest.mark.parametrize("error", [ValueError("a bug"), TypeError("a bug"), RuntimeError("a bug")], ids=repr)
def test_a_bug_keeps_its_traceback(error):
    @command
    def main():
        raise error

    with pytest.raises(type(error)) as raised:
        main()
    assert raised.value is error


def test_a_path_that_is_not_utf_8_is_printed(capsys):
    command(lambda: print("Saved", os.fsdecode(b"caf\xe9")))()
    assert capsys.readouterr().out == "Saved caf\\udce9\n"
