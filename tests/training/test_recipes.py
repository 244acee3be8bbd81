"""Recipes: the files that come with the package, and how a file and the command line go together."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from reference import DATA

from diffusers_cg import DIGITS
from diffusers_cg.diffusion import TRAINED_WITH
from diffusers_cg.errors import InputError
from diffusers_cg.models.presets import PRESETS
from diffusers_cg.training import train_classifier, train_unet
from diffusers_cg.training.config import RECIPES, UNetSettings
from diffusers_cg.training.loop import accumulation_steps


ROOT = Path(__file__).parents[2]
RELEASED = {
    "imagenet64": "64x64_diffusion",
    "imagenet128": "128x128_diffusion",
    "imagenet256": "256x256_diffusion",
    "imagenet256_unconditional": "256x256_diffusion_uncond",
    "imagenet512": "512x512_diffusion",
    "imagenet64_to_256": "64_256_upsampler",
    "imagenet128_to_512": "128_512_upsampler",
    "lsun_bedroom": "lsun_bedroom",
    "lsun_cat": "lsun_cat",
    "lsun_horse": "lsun_horse",
    "imagenet64_classifier": "64x64_classifier",
    "imagenet128_classifier": "128x128_classifier",
    "imagenet256_classifier": "256x256_classifier",
    "imagenet512_classifier": "512x512_classifier",
}
DIGIT_RECIPES = {"digits", "digits_unconditional", "digits_classifier", "digits_low_res", "digits_low_res_classifier"}
PATHS = ["--train_data_dir", "images", "--output_dir", "output"]


def script_of(recipe):
    return train_classifier if "classifier" in recipe else train_unet


def build(recipe, num_classes):
    """The recipe's settings and its model, without memory for the weights."""
    script = script_of(recipe)
    settings = script.parse_args(["--config", recipe, *PATHS]).resolve()
    make = script.make_classifier if script is train_classifier else script.make_unet
    with torch.device("meta"):
        return settings, make(settings, [str(label) for label in range(num_classes)])


def test_every_recipe_is_checked_here():
    assert {path.stem for path in RECIPES.glob("*.yaml")} == {*RELEASED, *DIGIT_RECIPES, "digits_upsampler"}


@pytest.mark.parametrize("recipe", RELEASED)
def test_model_of_a_recipe_is_the_released_one(recipe):
    settings, model = build(recipe, num_classes=1000)
    released = PRESETS[RELEASED[recipe]]
    config = {name: tuple(v) if isinstance(v, list) else v for name, v in model.config.items()}
    expected = {"num_attention_heads": None, **released.architecture}
    assert {name: config[name] for name in expected} == expected
    manifest = json.loads((DATA / "manifests" / f"{RELEASED[recipe]}.json").read_text())
    assert sum(parameter.numel() for parameter in model.parameters()) == manifest["parameters"]
    if script_of(recipe) is train_unet:
        assert settings.ddpm_beta_schedule == released.beta_schedule
        assert settings.low_res_size == released.low_res_size


EARLIER = json.loads((DATA / "recipes.json").read_text())
"""What the scripts alone, and each recipe over its script, said when the recipes still held all numbers."""


@pytest.mark.parametrize("recipe", EARLIER)
def test_settings_of_a_recipe_are_those_of_before_presets(recipe):
    script = script_of(recipe)
    config = [] if recipe.startswith("train_") else ["--config", recipe]
    settings = script.parse_args([*config, *PATHS]).resolve().model_dump(mode="json")
    earlier = {**EARLIER[script.__name__.rpartition(".")[2]], **EARLIER[recipe]}
    assert {name: settings[name] for name in earlier} == earlier
    new = {"config", "preset", "overwrite_output_dir", "image_range", "class_from_file_name", "allow_other_images"}
    new |= {"rescale_timesteps", "overwrite_learning_rate", "tracker_project_name", "run_name"}
    new |= {"scale_betas"}
    new |= {"prediction_type", "label_dropout"} if script is train_unet else {"early_stopping_patience"}
    assert settings.keys() - earlier.keys() == new | {"train_data_dir", "output_dir"}


@pytest.mark.parametrize("recipe", sorted(DIGIT_RECIPES))
def test_models_of_digits_are_those_that_ship(recipe):
    folder = {
        "digits": DIGITS / "unet",
        "digits_unconditional": DIGITS / "unet_unconditional",
        "digits_classifier": DIGITS / "classifier",
        "digits_low_res": DIGITS / "low_res" / "unet",
        "digits_low_res_classifier": DIGITS / "low_res" / "classifier",
    }[recipe]
    _, model = build(recipe, num_classes=10)
    shipped, config = model.load_config(folder), json.loads(model.to_json_string())
    for settings in (shipped, config):  # a setting left out is None
        for name in [name for name, value in settings.items() if name.startswith("_") or value is None]:
            del settings[name]
    # of the trained process they say nothing: they are older than these words
    assert {name: value for name, value in config.items() if name not in TRAINED_WITH} == shipped


# ------------------------------------------------------------------------------------------------ file and command line


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe and returns its path."""

    def recipe(text, name="mine.yaml"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return recipe


def test_the_command_line_has_the_last_word(recipe):
    path = recipe(
        "train_data_dir: images\noutput_dir: output\nlearning_rate: 1e-5\nrandom_flip: true\nuse_ema: false\n"
    )
    settings = train_unet.parse_args(["--config", str(path)])
    assert (str(settings.train_data_dir), settings.learning_rate, settings.use_ema) == ("images", 1e-5, False)
    typed = ["--learning_rate", "2e-5", "--use_ema", "--train_batch_size", "32"]
    settings = train_unet.parse_args(["--config", str(path), *typed])
    assert (str(settings.output_dir), settings.learning_rate, settings.use_ema) == ("output", 2e-5, True)
    assert settings.train_batch_size == 32


def test_a_recipe_changes_its_base(recipe):
    recipe("resolution: 32\nchannel_multipliers: [1, 2]\nattention_head_dim: 16\nmixed_precision: no\n", "base.yaml")
    path = recipe("base: base.yaml\nattention_head_dim: null\nnum_attention_heads: 4\n")
    settings = train_unet.parse_args(["--config", str(path), *PATHS])
    assert (settings.resolution, settings.channel_multipliers, settings.mixed_precision) == (32, [1, 2], "no")
    assert (settings.attention_head_dim, settings.num_attention_heads) == (None, 4)
    assert train_unet.parse_args(["--config", str(recipe("base: digits\n")), *PATHS]).resolution == 16


def test_a_recipe_named_in_python_is_the_one_of_the_command_line():
    settings = UNetSettings(config="digits", train_data_dir="images", output_dir="output", max_train_steps=5)
    typed = ["--config", "digits", *PATHS, "--max_train_steps", "5"]
    assert settings.resolve().model_dump() == train_unet.parse_args(typed).resolve().model_dump()


def test_epochs_in_place_of_steps():
    settings = train_unet.parse_args(["--preset", "64x64_diffusion", "--num_epochs", "3", *PATHS]).resolve()
    assert (settings.num_epochs, settings.max_train_steps) == (3, None)
    assert train_unet.parse_args(PATHS).resolve().num_epochs == 100
    with pytest.raises(InputError, match="--num_epochs and --max_train_steps, which a recipe may set"):
        UNetSettings(config="digits", train_data_dir="images", output_dir="output", num_epochs=3)


def test_a_preset_stands_below_file_and_command_line(recipe):
    preset = ["--preset", "64x64_diffusion"]
    settings = train_unet.parse_args([*preset, *PATHS]).resolve()
    assert (settings.base_channels, settings.dropout, settings.ddpm_beta_schedule) == (192, 0.1, "squaredcos_cap_v2")
    assert (settings.total_batch_size, settings.max_train_steps, settings.learning_rate) == (2048, 540_000, 3e-4)
    path = recipe("preset: 128x128_diffusion\nlearning_rate: 1e-5\ndropout: 0.3\n")
    settings = train_unet.parse_args(["--config", str(path), *preset, "--dropout", "0.2", *PATHS]).resolve()
    assert (settings.resolution, settings.learning_rate, settings.dropout) == (64, 1e-5, 0.2)
    assert (settings.attention_head_dim, settings.num_attention_heads) == (64, None)
    settings = train_unet.parse_args([*preset, "--num_attention_heads", "2", *PATHS]).resolve()
    assert (settings.attention_head_dim, settings.num_attention_heads) == (None, 2)  # one fact, said in two ways
    assert train_unet.parse_args(["--preset", "64_256_upsampler", *PATHS]).resolve().low_res_size == 64


def test_a_preset_of_the_other_network_is_refused():
    with pytest.raises(InputError, match="--preset 64x64_classifier is a classifier, and a unet is trained here"):
        UNetSettings(preset="64x64_classifier", output_dir="output")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("learning_rat: 1e-4\n", "mine.yaml: there is no setting learning_rat (the nearest is learning_rate)"),
        ("qqqq: 1\n", "mine.yaml: there is no setting qqqq"),
        ("pool: attention\n", "mine.yaml: there is no setting pool"),
        ("train_batch_size: many\n", "mine.yaml: train_batch_size: must be a valid integer"),
        ("train_batch_size: 1.5\n", "mine.yaml: train_batch_size: must be a valid integer"),
        ("resample_type: wavy\n", "mine.yaml: resample_type: must be 'resnet' or 'conv', got 'wavy'"),
        ("use_ema: perhaps\n", "mine.yaml: use_ema: must be a valid boolean"),
        ("seed: [1, 2]\n", "mine.yaml: seed: must be a valid integer, got ['1', '2']"),
        ("channel_multipliers: {a: 1}\n", "mine.yaml: channel_multipliers: must be a valid list"),
        ("base: mine.yaml\n", "mine.yaml is its own base: "),
        ("base: nowhere\n", "There is no file nowhere"),
        ("just words\n", "mine.yaml holds no settings: it must hold lines like "),
        ("a: [1\n", "mine.yaml cannot be read as YAML ("),
    ],
    ids=lambda value: value.strip()[:20],
)
def test_what_a_recipe_cannot_say(recipe, capsys, text, said):
    with pytest.raises(SystemExit) as ended:
        train_unet.parse_args(["--config", str(recipe(text)), *PATHS])
    assert ended.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.endswith(".\n") and line.count("\n") == 1
    assert said in line


def test_a_mistyped_name_of_a_recipe(capsys):
    with pytest.raises(SystemExit):
        train_unet.parse_args(["--config", "imagnet64", *PATHS])
    assert "There is no file imagnet64 (the nearest is imagenet64): " in capsys.readouterr().err


def test_the_compiler_is_named_or_torchs_own():
    assert train_unet.parse_args([*PATHS]).torch_compile is None
    assert train_unet.parse_args([*PATHS, "--torch_compile"]).torch_compile == "inductor"
    assert train_unet.parse_args(["--torch_compile", "eager", *PATHS]).torch_compile == "eager"


def test_recipes_are_installed_with_the_package(tmp_path):
    build = ["-q", "build_py", "--build-lib", tmp_path / "lib", "egg_info", "--egg-base", tmp_path]
    subprocess.run([sys.executable, "-c", "import setuptools; setuptools.setup()", *build], cwd=ROOT, check=True)
    installed = tmp_path / "lib" / "diffusers_cg" / "training" / "recipes"
    sources = {path.relative_to(RECIPES) for path in RECIPES.rglob("*") if path.is_file()}
    assert sources == {path.relative_to(installed) for path in installed.rglob("*") if path.is_file()}


# --------------------------------------------------------------------------------------------------------- batch sizes


def batch_args(*flags):
    return train_unet.parse_args([*PATHS, *flags])


def test_batches_are_accumulated_to_the_total():
    assert accumulation_steps(batch_args(), num_processes=8) == 1
    assert accumulation_steps(batch_args("--gradient_accumulation_steps", "3"), num_processes=8) == 3
    total = ["--total_batch_size", "256", "--train_batch_size", "16"]
    assert accumulation_steps(batch_args(*total), num_processes=1) == 16
    assert accumulation_steps(batch_args(*total), num_processes=8) == 2
    assert accumulation_steps(batch_args(*total, "--gradient_accumulation_steps", "2"), num_processes=8) == 2


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--train_batch_size", "48"],
            "--total_batch_size 256 is no multiple of 96, the images of --train_batch_size 48 ",
        ),
        (["--gradient_accumulation_steps", "4"], "takes 8 batches of --train_batch_size 16 on 2 processes, not "),
    ],
)
def test_a_total_that_cannot_be_reached(flags, said):
    with pytest.raises(InputError, match=said):
        accumulation_steps(batch_args("--total_batch_size", "256", *flags), num_processes=2)


def test_help_states_the_defaults(capsys):
    with pytest.raises(SystemExit):
        train_unet.parse_args(["--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "left to right. (default: False)" in shown and "is the result. (default: 0.9999)" in shown
    assert "the preset's, else 1e-4 for a unet" in shown and "comes with the package: digits, " in shown
