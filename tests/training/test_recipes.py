"""Recipes: the files that come with the package, and how a file and the command line go together."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from reference import DATA

from diffusers_cg import DIGITS
from diffusers_cg.errors import InputError
from diffusers_cg.models.presets import PRESETS
from diffusers_cg.training import train_classifier, train_unet
from diffusers_cg.training.arguments import accumulation_steps, check_training_arguments
from diffusers_cg.training.parser import RECIPES, installed_recipes


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
    args = script.parse_args(["--config", recipe, *PATHS])
    check_training_arguments(args)
    make = script.make_classifier if script is train_classifier else script.make_unet
    with torch.device("meta"):
        return args, make(args, [str(label) for label in range(num_classes)])


def test_every_recipe_is_checked_here():
    assert set(installed_recipes()) == {*RELEASED, *DIGIT_RECIPES, "digits_upsampler"}


@pytest.mark.parametrize("recipe", RELEASED)
def test_model_of_a_recipe_is_the_released_one(recipe):
    args, model = build(recipe, num_classes=1000)
    released = PRESETS[RELEASED[recipe]]
    config = {name: tuple(v) if isinstance(v, list) else v for name, v in model.config.items()}
    expected = {"num_attention_heads": None, **released.architecture}
    assert {name: config[name] for name in expected} == expected
    manifest = json.loads((DATA / "manifests" / f"{RELEASED[recipe]}.json").read_text())
    assert sum(parameter.numel() for parameter in model.parameters()) == manifest["parameters"]
    if script_of(recipe) is train_unet:
        assert args.ddpm_beta_schedule == released.beta_schedule
        assert args.low_res_size == released.low_res_size


@pytest.mark.parametrize(
    ("recipe", "stated"),
    [  # the paper's tables 11 to 13
        ("imagenet64", (2048, 540_000, 3e-4, 0.0)),
        ("imagenet128", (256, 4_360_000, 1e-4, 0.0)),
        ("imagenet256", (256, 1_980_000, 1e-4, 0.0)),
        ("imagenet512", (256, 1_940_000, 1e-4, 0.0)),
        ("imagenet64_to_256", (256, 500_000, 1e-4, 0.0)),
        ("imagenet128_to_512", (256, 1_050_000, 1e-4, 0.0)),
        ("imagenet64_classifier", (1024, 300_000, 6e-4, 0.2)),
        ("imagenet128_classifier", (256, 300_000, 3e-4, 0.05)),
        ("imagenet256_classifier", (256, 500_000, 3e-4, 0.05)),
        ("imagenet512_classifier", (256, 500_000, 3e-4, 0.05)),
    ],
)
def test_training_of_a_recipe_is_the_papers(recipe, stated):
    args = script_of(recipe).parse_args(["--config", recipe, *PATHS])
    assert (args.total_batch_size, args.max_train_steps, args.learning_rate, args.adam_weight_decay) == stated
    assert args.random_flip and args.max_grad_norm == 0
    if script_of(recipe) is train_unet:
        assert args.center_crop and args.use_ema and args.ema_max_decay == [0.9999] and not args.ema_warmup
    else:
        assert not args.center_crop and not args.use_ema and args.lr_scheduler == "linear"


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
    assert config == shipped


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
    args = train_unet.parse_args(["--config", str(path)])
    assert (str(args.train_data_dir), args.learning_rate, args.use_ema) == ("images", 1e-5, False)
    typed = ["--learning_rate", "2e-5", "--use_ema", "--train_batch_size", "32"]
    args = train_unet.parse_args(["--config", str(path), *typed])
    assert (str(args.output_dir), args.learning_rate, args.use_ema) == ("output", 2e-5, True)
    assert args.train_batch_size == 32


def test_a_recipe_changes_its_base(recipe):
    recipe("resolution: 32\nchannel_multipliers: [1, 2]\nattention_head_dim: 16\nmixed_precision: no\n", "base.yaml")
    path = recipe("base: base.yaml\nattention_head_dim: null\nnum_attention_heads: 4\n")
    args = train_unet.parse_args(["--config", str(path), *PATHS])
    assert (args.resolution, args.channel_multipliers, args.mixed_precision) == (32, [1, 2], "no")
    assert (args.attention_head_dim, args.num_attention_heads) == (None, 4)
    assert train_unet.parse_args(["--config", str(recipe("base: digits\n")), *PATHS]).resolution == 16


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("learning_rat: 1e-4\n", "mine.yaml: {prog} has no setting 'learning_rat'; the nearest is learning_rate."),
        ("qqqq: 1\n", "mine.yaml: {prog} has no setting 'qqqq'; --help lists them."),
        ("pool: attention\n", "mine.yaml: {prog} has no setting 'pool'; "),
        ("train_batch_size: many\n", "mine.yaml: train_batch_size has an invalid int value: 'many'."),
        ("train_batch_size: 1.5\n", "mine.yaml: train_batch_size has an invalid int value: '1.5'."),
        ("resample_type: wavy\n", "mine.yaml: resample_type has an invalid choice: 'wavy' (choose from "),
        ("use_ema: perhaps\n", "mine.yaml: use_ema must be true or false, got 'perhaps'."),
        ("seed: [1, 2]\n", "mine.yaml: seed must be one value, got ['1', '2']."),
        ("channel_multipliers: {a: 1}\n", "mine.yaml: channel_multipliers must be one value or a list of them"),
        ("base: mine.yaml\n", "mine.yaml is its own base: "),
        ("base: nowhere\n", "There is no recipe nowhere: "),
        ("just words\n", "mine.yaml is no recipe: it must hold lines like `train_batch_size: 32`."),
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
    assert said.format(prog=sys.argv[0].rpartition("/")[2]) in line


def test_a_mistyped_name_of_a_recipe(capsys):
    with pytest.raises(SystemExit):
        train_unet.parse_args(["--config", "imagnet64", *PATHS])
    assert "There is no recipe imagnet64: did you mean imagenet64? " in capsys.readouterr().err


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
    shown = " ".join(capsys.readouterr().out.split())
    assert "this side. [64]" in shown and "left to right. [no]" in shown and "the result. [0.9999]" in shown
    assert "in place of --num_epochs. --" in shown  # which has none
