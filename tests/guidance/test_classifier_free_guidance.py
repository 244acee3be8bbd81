"""Guidance by a second prediction against its formula, under both algorithms."""

import pytest
import tiny
import torch
from diffusers import DDPMScheduler
from tiny import seeded
from torch.nn import functional as F

from diffusers_cg import ClassifierGuidedDDIMPipeline, ClassifierGuidedDDPMPipeline
from diffusers_cg.errors import InputError
from diffusers_cg.guidance import AutoGuidance, ClassifierFreeGuidance, PerturbedAttentionGuidance


DDPM, DDIM = ClassifierGuidedDDPMPipeline, ClassifierGuidedDDIMPipeline
BOTH = pytest.mark.parametrize("kind", [DDPM, DDIM], ids=["ddpm", "ddim"])
LATENTS = tiny.images(2, seed=5)
LABELS = torch.tensor([0, 3])
PROCESS = DDPMScheduler(variance_type="learned_range", timestep_spacing="linspace")


def pipeline(kind, unet):
    pipe = kind(unet, PROCESS)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def dropout_unet():
    """Predicts without a class, too; attention in the middle alone."""
    return tiny.unet(num_class_embeds=tiny.NUM_CLASSES, label_dropout=0.1, attention_resolutions=())


def draw(pipe, guidance=None):
    options = {"timesteps": [900, 500, 40], "latents": LATENTS, "generator": seeded(), "output_type": "latent"}
    return pipe(LABELS, guidance=guidance, **options)


def led_away(unet, other_output, scale):
    """The unet, whose noise is other + scale (noise - other); its variance stays."""

    def mix(module, args, output):
        noise, variance = output.sample.chunk(2, dim=1)
        other = other_output(*args).chunk(2, dim=1)[0]
        return type(output)(sample=torch.cat([other + scale * (noise - other), variance], dim=1))

    unet.register_forward_hook(mix, with_kwargs=False)
    return unet


@BOTH
def test_classifier_free_guidance(kind):
    plain = dropout_unet()
    expected = draw(pipeline(kind, led_away(dropout_unet(), lambda x, t: plain(x, t).sample, 2.5))).images
    drawn = draw(pipeline(kind, dropout_unet()), ClassifierFreeGuidance(2.5))
    assert torch.allclose(drawn.images, expected, atol=1e-4)
    assert drawn.evaluations == {"unet": 6, "classifier": 0, "backward": 0}


@BOTH
def test_perturbed_attention_guidance(kind, monkeypatch):
    plain = dropout_unet()

    def perturbed(x, t):
        with monkeypatch.context() as patch:
            patch.setattr(F, "scaled_dot_product_attention", lambda query, key, value, **ignored: value)
            return plain(x, t, LABELS).sample

    expected = draw(pipeline(kind, led_away(dropout_unet(), perturbed, 1 + 1.5))).images
    unet = dropout_unet()
    assert torch.allclose(
        draw(pipeline(kind, unet), PerturbedAttentionGuidance(unet, 1.5)).images, expected, atol=1e-4
    )


@BOTH
def test_autoguidance(kind):
    weak = tiny.unet(num_class_embeds=tiny.NUM_CLASSES, base_channels=8)
    unet = dropout_unet()
    expected = draw(pipeline(kind, led_away(dropout_unet(), lambda x, t: weak(x, t, LABELS).sample, 2.0))).images
    assert torch.allclose(draw(pipeline(kind, unet), AutoGuidance(weak, 2.0)).images, expected, atol=1e-4)
    per_image = draw(pipeline(kind, unet), AutoGuidance(weak, [2.0, 1.0])).images
    assert torch.allclose(per_image[0], expected[0], atol=1e-4)
    assert torch.allclose(per_image[1], draw(pipeline(kind, unet)).images[1], atol=1e-4), "1 is off"


def test_perturbed_attention_leaves_the_unet_as_it_was():
    unet = dropout_unet()
    before = draw(pipeline(DDIM, unet)).images
    guidance = PerturbedAttentionGuidance(unet, 1.0)
    assert torch.equal(draw(pipeline(DDIM, unet)).images, before)
    own, perturbed = list(unet.parameters()), list(guidance.perturbed_unet.parameters())
    assert all(one is other for one, other in zip(own, perturbed, strict=True)), "the weights are there once"


def test_mixed_noise_goes_with_gradients_through_the_unet():
    """The graph leads through both predictions."""
    pipe = pipeline(DDIM, dropout_unet())
    slopes = []

    def through(step):
        step = step.differentiable()
        slopes.append(torch.autograd.grad(step.pred_original_sample.square().sum(), step.sample)[0])
        return slopes[-1]

    draw(pipe, ClassifierFreeGuidance(3.0) + through)
    with_mix = slopes[0]
    slopes.clear()
    draw(pipe, through)
    assert not torch.allclose(with_mix, slopes[0], rtol=1e-2)


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("unet", "labels", "guidance", "said"),
    [
        ({"num_class_embeds": 5}, [0, 3], lambda: ClassifierFreeGuidance(2.0), "has not learned to do without a class"),
        ({}, None, lambda: ClassifierFreeGuidance(2.0), "has not learned to do without a class"),
        (
            {"num_class_embeds": 5, "label_dropout": 0.1},
            None,
            lambda: ClassifierFreeGuidance(2.0),
            "`class_labels` are missing",
        ),
        ({}, None, lambda: AutoGuidance(tiny.fresh_unet(in_channels=1, out_channels=2), 2.0), "1 image channels"),
        ({}, None, lambda: AutoGuidance(tiny.fresh_unet(num_class_embeds=5), 2.0), "`class_labels` are missing"),
        ({"num_class_embeds": 5}, [0, 3], lambda: AutoGuidance(tiny.fresh_unet(num_class_embeds=7), 2.0), "7 classes"),
        ({}, None, lambda: AutoGuidance(tiny.fresh_unet(prediction_type="v_prediction"), 2.0), "v_prediction"),
        ({}, None, lambda: AutoGuidance(tiny.fresh_unet(low_res_channels=3), 2.0), "3 low-resolution channels"),
        ({}, None, lambda: AutoGuidance(tiny.fresh_unet(channel_multipliers=(1, 1, 1, 1, 1), sample_size=16), 2.0), "16"),
        ({}, None, lambda: AutoGuidance(tiny.fresh_unet(), [1.0, 2.0, 3.0]), "`scale` must be one number"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_does_not_fit_is_said_before_anything_is_computed(unet, labels, guidance, said):
    pipe = pipeline(DDIM, tiny.fresh_unet(**unet))
    call = {"class_labels": labels, "batch_size": 2, "num_inference_steps": 2, "guidance": guidance()}
    tiny.check_refused(pipe, call, InputError, said)


def test_one_name_of_blocks_is_a_list_of_one():
    unet = tiny.fresh_unet()
    one, several = (PerturbedAttentionGuidance(unet, 1.0, blocks=blocks) for blocks in ("mid_block", ["mid_block"]))
    perturbed = [
        [type(each.processor) for each in guidance.perturbed_unet.modules() if hasattr(each, "processor")]
        for guidance in (one, several)
    ]
    assert perturbed[0] == perturbed[1] and len(set(perturbed[0])) == 2


def test_attention_that_is_not_there():
    with pytest.raises(InputError, match="No attention begins with"):
        PerturbedAttentionGuidance(tiny.fresh_unet(), 1.0, blocks=["up_blocks.9"])


@pytest.mark.parametrize("scale", ["two", [], float("nan"), None])
def test_a_scale_that_is_none(scale):
    with pytest.raises(InputError, match="`scale` must be"):
        ClassifierFreeGuidance(scale)
    with pytest.raises(InputError, match="`scale` must be"):
        PerturbedAttentionGuidance(tiny.fresh_unet(), scale)
