"""What a unet is trained to say, of which process, and with which labels left out, is in the result and goes on with it."""

import json

import pytest
import tiny
import torch
from conftest import TINY
from diffusers import DDIMScheduler

from diffusers_cg import ADMUNet2DModel, ClassifierGuidedDDIMPipeline, NoisyClassifierModel
from diffusers_cg.errors import InputError
from diffusers_cg.hub.model_card import describe
from diffusers_cg.training import train_classifier
from diffusers_cg.training.config import ClassifierSettings, UNetSettings
from diffusers_cg.training.train_unet import drop_labels, train


FLAGS = {"num_train_timesteps": "ddpm_num_steps", "beta_schedule": "ddpm_beta_schedule"}
COSINE = {"num_train_timesteps": 500, "beta_schedule": "squaredcos_cap_v2", "rescale_timesteps": True}
LINEAR = {"num_train_timesteps": 500, "beta_schedule": "linear"}


@pytest.mark.parametrize(
    ("process", "learn_variance", "beta_end"),
    [(COSINE, True, None), (LINEAR, False, 0.04), ({**LINEAR, "scale_betas": False}, True, 0.02)],
    ids=["cosine, learned variance", "linear, fixed variance", "linear, not scaled"],
)
def test_a_unet_that_predicts_v(few_digits, tmp_path, process, learn_variance, beta_end):
    settings = {**TINY, "max_train_steps": 1, "learn_variance": learn_variance, "train_data_dir": few_digits}
    of_process = {FLAGS.get(word, word): value for word, value in process.items()}
    train(UNetSettings(output_dir=tmp_path / "first", prediction_type="v_prediction", **of_process, **settings))
    train(UNetSettings(output_dir=tmp_path / "tuned", init_from=str(tmp_path / "first"), **settings))
    for name in ("first", "tuned"):
        pipe = ClassifierGuidedDDIMPipeline.from_pretrained(tmp_path / name)
        assert {word: pipe.unet.config[word] for word in process} == process
        assert pipe.unet.config.prediction_type == pipe.scheduler.config.prediction_type == "v_prediction"
        assert pipe.scheduler.config.num_train_timesteps == 500
        if beta_end is not None:
            assert torch.allclose(pipe.scheduler.betas, torch.linspace(beta_end / 200, beta_end, 500))
        assert pipe(0, num_inference_steps=2, output_type="np").images.shape == (1, 16, 16, 1)


def test_a_classifier_of_other_steps_is_trained_on_scaled_betas_and_says_so(few_digits, tmp_path):
    changed = {"ddpm_num_steps": 500, "max_train_steps": 1, "validation_fraction": 0, "train_data_dir": few_digits}
    train_classifier.train(ClassifierSettings(output_dir=tmp_path, **{**TINY, **changed}))
    classifier = NoisyClassifierModel.from_pretrained(tmp_path)
    unet = tiny.fresh_unet(sample_size=16, in_channels=1, out_channels=1, attention_resolutions=())
    ClassifierGuidedDDIMPipeline(unet, DDIMScheduler(500, 0.0002, 0.04), classifier)
    with pytest.raises(InputError, match="The classifier was trained with beta_start=0.0002"):
        ClassifierGuidedDDIMPipeline(unet, DDIMScheduler(500), classifier)


# ------------------------------------------------------------------------------------------------------ label dropout


def test_labels_are_left_out_by_draw():
    labels = torch.arange(1000) % 3
    dropped = drop_labels(range(1000), labels, 0.2, seed=0)
    is_left_out = dropped == -1
    assert abs(is_left_out.float().mean() - 0.2) < 0.04
    assert torch.equal(dropped[~is_left_out], labels[~is_left_out])
    assert torch.equal(drop_labels(torch.tensor([700, 3]), labels[[700, 3]], 0.2, seed=0), dropped[[700, 3]])
    assert not torch.equal(drop_labels(range(1000), labels, 0.2, seed=1), dropped)
    assert drop_labels(range(1000), labels, 0.0, seed=0) is labels


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A unet of three classes, none of whose layers is at zero."""
    folder = tmp_path_factory.mktemp("pretrained")
    shape = ("base_channels", "norm_num_groups", "channel_multipliers", "layers_per_block", "attention_head_dim")
    trunk = {word: TINY[word] for word in shape}
    of_digits = {"sample_size": 16, "in_channels": 1, "out_channels": 2, "attention_resolutions": (16, 8)}
    tiny.with_weights(ADMUNet2DModel(num_class_embeds=3, **of_digits, **trunk)).save_pretrained(folder / "unet")
    return folder


@pytest.fixture(scope="module")
def with_dropout(few_digits, pretrained):
    """Trains the unet on with labels left out; by default half of them."""

    def with_dropout(folder, **changed):
        settings = {**TINY, "init_from": str(pretrained), "label_dropout": 0.5, "checkpointing_steps": 1, **changed}
        train(UNetSettings(train_data_dir=few_digits, output_dir=folder, use_ema=False, **settings))
        return ADMUNet2DModel.from_pretrained(folder, subfolder="unet")

    return with_dropout


@pytest.fixture(scope="module")
def half(with_dropout, tmp_path_factory):
    folder = tmp_path_factory.mktemp("half")
    with_dropout(folder)
    return folder


def test_what_is_trained_draws_with_and_without_labels(half):
    pipe = ClassifierGuidedDDIMPipeline.from_pretrained(half)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.unet.config.label_dropout == 0.5 and not pipe.needs_class
    with_label, without = (
        pipe(labels, num_inference_steps=2, output_type="latent", generator=tiny.seeded()).images
        for labels in (1, None)
    )
    assert with_label.shape == without.shape and not torch.equal(with_label, without)
    assert "predicts without a class" in describe(pipe, "me/half")[1]["about"]
    run = json.loads((half / "training.json").read_text())["unet"]
    assert "--label_dropout 0.5" in " ".join(run["arguments"])


def test_where_all_labels_are_left_out_none_is_learned(half, with_dropout, pretrained, tmp_path):
    before, learned = (ADMUNet2DModel.from_pretrained(folder, subfolder="unet") for folder in (pretrained, half))
    unlearned = with_dropout(tmp_path, label_dropout=0.999)
    assert torch.equal(unlearned.class_embedding.weight, before.class_embedding.weight)
    assert not torch.equal(learned.class_embedding.weight, before.class_embedding.weight)
    assert not torch.equal(unlearned.conv_in.weight, before.conv_in.weight)


def test_a_training_with_label_dropout_goes_on_as_if_it_had_not_stopped(half, with_dropout, tmp_path):
    checkpoint = str(half / "checkpoint-1")
    resumed = with_dropout(tmp_path / "resumed", resume_from_checkpoint=checkpoint).state_dict()
    for name, tensor in ADMUNet2DModel.from_pretrained(half, subfolder="unet").state_dict().items():
        assert torch.equal(resumed[name], tensor), name
    with pytest.raises(InputError, match="label_dropout=0.5, now it is 0.0: the two cannot be joined"):
        with_dropout(tmp_path / "other", resume_from_checkpoint=checkpoint, label_dropout=None)


def test_label_dropout_goes_on_where_nothing_else_is_said(half):
    unet = ADMUNet2DModel.from_pretrained(half, subfolder="unet")
    for changed, share in (({}, 0.5), ({"label_dropout": 0.1}, 0.1), ({"class_conditional": False}, 0.0)):
        assert UNetSettings(output_dir="out", init_from=str(half), **changed).resolve(unet).label_dropout == share
    with pytest.raises(InputError, match="--label_dropout is for a unet that is told the class"):
        UNetSettings(output_dir="out", class_conditional=False, label_dropout=0.1)
