"""The table of layouts: what OpenAI's flags, the paper and others' repositories say of each, and rows of one's own.

python tests/models/test_presets.py   # writes docs/checkpoints.md's tables anew
"""

import json
import re
from contextlib import nullcontext
from pathlib import Path

import pytest
from reference import COMMUNITY_LAYOUTS, MANIFESTS, on_meta

from diffusers_cg import ADMUNet2DModel
from diffusers_cg.errors import InputError
from diffusers_cg.models.openai_files import CheckpointWarning
from diffusers_cg.models.openai_flags import layout_facts_of_flags
from diffusers_cg.models.own_layouts import register_layout, register_layouts
from diffusers_cg.models.presets import (
    COMMUNITY,
    CONTINUOUS_COSINE,
    LAYOUTS,
    PRESETS,
    Layout,
    layouts_table,
)


PAGE = Path(__file__).parents[2] / "docs" / "checkpoints.md"
DIFFUSERS_SCHEDULES = {"cosine": "squaredcos_cap_v2", "linear": "linear"}


def stated_table():
    numbers = {name: each["parameters"] for name, each in {**MANIFESTS, **COMMUNITY_LAYOUTS}.items()}
    return layouts_table(numbers)


def test_there_is_a_row_for_every_file():
    assert len(MANIFESTS) == len(COMMUNITY_LAYOUTS) == 15
    assert MANIFESTS.keys() == PRESETS.keys()
    assert COMMUNITY_LAYOUTS.keys() == COMMUNITY.keys()


@pytest.mark.parametrize("name", COMMUNITY_LAYOUTS)
def test_a_row_says_what_its_authors_flags_say(name):
    stated, row = COMMUNITY_LAYOUTS[name], COMMUNITY[name]
    upsamples = {"large_size": stated["size"], "small_size": stated["small_size"]} if "small_size" in stated else {}
    facts = layout_facts_of_flags({**stated["flags"], "image_size": stated["size"], **upsamples})
    assert {key: value for key, value in facts["architecture"].items() if value is not None} == {
        key: value for key, value in row.architecture.items() if value is not None
    }
    assert set(stated["files"]) <= set(row.files)
    assert row.source == stated["source"]
    schedule = "squaredcos_cap_v2" if row.beta_schedule == CONTINUOUS_COSINE else row.beta_schedule
    assert schedule == DIFFUSERS_SCHEDULES[stated["noise_schedule"]]
    for fact in ("num_train_timesteps", "rescale_timesteps", "prediction_type"):
        assert getattr(row, fact) == stated[fact], fact
    assert row.low_res_size == stated.get("small_size") and not row.new_attention_order


@pytest.mark.parametrize("name", [name for name, manifest in MANIFESTS.items() if manifest["kind"] != "classifier"])
def test_schedule_and_dropout_of_a_released_file(name):
    manifest, released = MANIFESTS[name], PRESETS[name]
    assert released.beta_schedule == DIFFUSERS_SCHEDULES[manifest["noise_schedule"]]
    assert released.architecture["dropout"] == manifest["flags"].get("dropout", 0.0)


@pytest.mark.parametrize(
    ("name", "schedule", "ddpm_steps", "ddpm_scale", "ddim_scale"),
    [
        ("64x64_diffusion", "squaredcos_cap_v2", 250, 1.0, 1.0),
        ("128x128_diffusion", "linear", 250, 0.5, 1.25),
        ("256x256_diffusion", "linear", 250, 1.0, 2.5),
        ("256x256_diffusion_uncond", "linear", 250, 10.0, 10.0),
        ("512x512_diffusion", "linear", 250, 4.0, 9.0),
        ("lsun_cat", "linear", 1000, 1.0, 1.0),
    ],
)
def test_the_paper_s_defaults(name, schedule, ddpm_steps, ddpm_scale, ddim_scale):
    released = PRESETS[name]
    assert released.beta_schedule == schedule
    assert released.ddpm_num_inference_steps == ddpm_steps
    assert (released.ddpm_classifier_scale, released.ddim_classifier_scale) == (ddpm_scale, ddim_scale)


def test_the_page_s_tables_are_the_code_s():
    assert stated_table() in PAGE.read_text(), "PYTHONPATH=tests python tests/models/test_presets.py writes them anew"


TINY = {"sample_size": 16, "base_channels": 32, "channel_multipliers": (1, 2), "layers_per_block": 1,
        "attention_resolutions": (8,), "num_attention_heads": 2}  # fmt: skip


def tiny_file(**changed):
    return ADMUNet2DModel(**{**TINY, **changed}).to_openai_state_dict(new_attention_order=False)


def test_a_row_of_one_s_own(own_layouts):
    row = Layout("unet", TINY, ("my_faces",), num_train_timesteps=500, prediction_type="sample", license="CC0")
    register_layout("mine", row)
    state_dict = tiny_file()
    with pytest.warns(CheckpointWarning, match="shapes of mine: .*num_attention_heads=2.* assumed"):
        unet = ADMUNet2DModel.from_single_file(state_dict)
    assert unet.config.num_attention_heads == 2
    unet = ADMUNet2DModel.from_single_file(state_dict, layout="mine")
    assert (unet.config.num_train_timesteps, unet.config.prediction_type) == (500, "sample")
    with pytest.raises(InputError, match="There is a layout mine already"):
        register_layout("mine", Layout("unet", TINY, ()))
    with pytest.raises(InputError, match="files named ffhq_10m have the layout p2_256 already"):
        register_layout("other", Layout("unet", TINY, ("ffhq_10m",)))


def test_two_rows_that_fit_equally_are_not_guessed_between(own_layouts):
    register_layout("two_heads", Layout("unet", TINY, ()))
    register_layout("four_heads", Layout("unet", {**TINY, "num_attention_heads": 4}, ()))
    state_dict = tiny_file()
    with pytest.raises(InputError) as error:
        ADMUNet2DModel.from_single_file(state_dict)
    for part in ("two_heads has num_attention_heads=2", "four_heads has num_attention_heads=4", "pass layout="):
        assert part in str(error.value)
    for facts in ({"layout": "four_heads"}, {"num_attention_heads": 4, "num_train_timesteps": 1000}):
        with pytest.warns(CheckpointWarning) if "layout" not in facts else nullcontext():
            assert ADMUNet2DModel.from_single_file(state_dict, **facts).config.num_attention_heads == 4


def test_rows_in_a_file(own_layouts, tmp_path):
    path = tmp_path / "layouts.yaml"
    path.write_text("""
mine:
  files: [my_faces]
  flags: {image_size: 16, channel_mult: "1,2", num_channels: 32, num_res_blocks: 1, attention_resolutions: 8,
          num_heads: 2, learn_sigma: true, resblock_updown: true, diffusion_steps: 500, predict_xstart: true}
""")
    assert register_layouts(path) == ["mine"]
    assert register_layouts(path) == ["mine"]  # again is no other
    unet = ADMUNet2DModel.from_single_file(tiny_file(), layout="my_faces")
    assert (unet.config.num_train_timesteps, unet.config.prediction_type) == (500, "sample")

    (tmp_path / "layouts.json").write_text(json.dumps({"other": {"architecture": TINY, "files": "other_faces"}}))
    register_layouts(tmp_path / "layouts.json")
    assert LAYOUTS["other"].architecture == TINY and LAYOUTS["other"].files == ("other_faces",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1, 2", "cannot be read as YAML or JSON"),
        ("- a", "holds no layouts"),
        ("mine: {files: a}", "needs `architecture` or `flags`"),
        ("mine: {flags: {}, heads: 4}", "the layout mine has no heads"),
        ("mine: {flags: {num_headz: 4}}", "no flag num_headz"),
        ("mine: {flags: {image_size: 48}}", "state channel_mult"),
        ("mine: {architecture: {base_channels: 32}}", "must state `sample_size`"),
        ("mine: {flags: {}, beta_schedule: cosine}", "`beta_schedule` must be one of ('linear', 'squaredcos_cap_v2',"),
        ("mine: {flags: {}, prediction_type: v}", "`prediction_type` must be one of"),
        ("mine: {flags: }", "`flags` of the layout mine must hold names and values, got None"),
        ("mine: {architecture: [1]}", "`architecture` of the layout mine must hold names and values, got [1]"),
        ("mine: {flags: {attention_resolutions: many}}", "A number is needed, or several, got 'many'"),
        ("mine: {kind: gan, flags: {}}", "`kind` must be 'unet' or 'classifier'"),
    ],
)
def test_rows_that_are_none(own_layouts, tmp_path, text, said):
    (tmp_path / "layouts.yaml").write_text(text)
    with pytest.raises(InputError, match=re.escape(said)):
        register_layouts(tmp_path / "layouts.yaml")
    assert "mine" not in LAYOUTS


def test_names_by_which_a_layout_is_asked_for():
    shapes = on_meta(COMMUNITY_LAYOUTS["tfg_cifar10"]["shapes"])
    for name in ("tfg_cifar10", "openai_cifar10"):
        assert ADMUNet2DModel.from_single_file(shapes, layout=name).config.out_channels == 3
    with pytest.raises(InputError, match="there is no such layout; of its shapes are tfg_cifar10"):
        ADMUNet2DModel.from_single_file(shapes, layout="cifar")
    with pytest.raises(InputError, match="it has other shapes"):
        ADMUNet2DModel.from_single_file(shapes, layout="improved_cifar10")


if __name__ == "__main__":
    text = PAGE.read_text()
    start, end = (text.index(mark) for mark in ("| files | parameters | network", "\n\n<!-- end of the table -->"))
    PAGE.write_text(text[:start] + stated_table() + text[end:])
