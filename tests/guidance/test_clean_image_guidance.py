"""Guidance by what is seen in the clean image: energies, classifiers of transformers, texts through CLIP."""

import copy
import math

import numpy as np
import pytest
import tiny
import torch
from diffusers import DPMSolverMultistepScheduler
from tiny import seeded
from torch import nn

from diffusers_cg import ClassifierGuidance, ClassifierGuidedDDIMPipeline, ClassifierGuidedDDPMPipeline
from diffusers_cg.errors import InputError
from diffusers_cg.guidance import (
    CleanClassifierGuidance,
    EnergyGuidance,
    TextGuidance,
    TrainingFreeGuidance,
    image_classifier,
)
from diffusers_cg.guidance.transformers_models import processor_of_tensors


transformers = pytest.importorskip("transformers")

DDPM, DDIM = ClassifierGuidedDDPMPipeline, ClassifierGuidedDDIMPipeline
BOTH = pytest.mark.parametrize("kind", [DDPM, DDIM], ids=["ddpm", "ddim"])
LATENTS = tiny.images(2, seed=5)
LABELS = torch.tensor([0, 3])


@pytest.fixture(scope="module")
def pipe():
    return tiny.pipeline(DDIM, with_classifier=False)


def draw(pipe, guidance=None, labels=LABELS, **options):
    options = {
        "timesteps": [900, 500, 40],
        "latents": LATENTS,
        "generator": seeded(),
        "output_type": "latent",
    } | options
    return pipe(labels, guidance=guidance, **options)


# -------------------------------------------------------------------------------------------------------- transformers


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A small classifier of 32x32 images and its processor, saved and loaded as a user's."""
    folder = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=5, num_channels=3
    )
    transformers.ResNetForImageClassification(config).save_pretrained(folder)
    transformers.ConvNextImageProcessorPil(size={"shortest_edge": 32}, crop_pct=0.875).save_pretrained(folder)
    model = transformers.AutoModelForImageClassification.from_pretrained(folder)
    return model, transformers.AutoImageProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A small CLIP and its processor, saved and loaded as a user's."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={**small, "vocab_size": 10, "max_position_embeddings": 8, "eos_token_id": 1, "bos_token_id": 0},
        vision_config={**small, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    transformers.CLIPModel(config).save_pretrained(folder)
    words = ["<|startoftext|>", "<|endoftext|>", "a</w>", "red</w>", "bird</w>", "r", "e", "d", "b", "i"]
    tokenizer = transformers.CLIPTokenizer(
        vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=8
    )
    processor = transformers.CLIPProcessor(
        transformers.CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=16), tokenizer
    )
    processor.save_pretrained(folder)
    return transformers.CLIPModel.from_pretrained(folder), transformers.CLIPProcessor.from_pretrained(folder)


PROCESSORS = {
    "vit": lambda: transformers.ViTImageProcessorPil(size={"height": 24, "width": 20}),
    "resnet": lambda: transformers.ConvNextImageProcessorPil(size={"shortest_edge": 28}, crop_pct=0.875),
    "resnet large": lambda: transformers.ConvNextImageProcessorPil(size={"shortest_edge": 384}, crop_pct=0.875),
    "clip": lambda: transformers.CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size=16),
    "as they are": lambda: transformers.ViTImageProcessorPil(do_resize=False, do_normalize=False),
}


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("size", [(16, 16), (40, 28)], ids=["square", "high"])
def test_images_are_prepared_as_the_processor_does(name, size):
    processor = PROCESSORS[name]()
    smooth = nn.functional.interpolate(tiny.images(2, size=4), size, mode="bicubic").clamp(-1, 1)
    bits = ((smooth + 1) * 127.5).round().to(torch.uint8)
    arrays = [np.ascontiguousarray(image.permute(1, 2, 0)) for image in bits]
    expected = processor(images=arrays, return_tensors="pt")["pixel_values"]
    images = (bits.float() / 127.5 - 1).requires_grad_(True)
    prepared = processor_of_tensors(processor)(images)
    assert prepared.shape == expected.shape
    assert (prepared - expected).abs().max() < 0.1 and (prepared - expected).abs().mean() < 0.01  # theirs has 8 bits
    assert torch.autograd.grad(prepared.square().sum(), images)[0].abs().sum() > 0


def test_an_image_of_one_channel_is_repeated(classifier):
    classify = image_classifier(*classifier)
    gray = tiny.images(2, channels=1).clamp(-1, 1)
    assert torch.equal(classify(gray), classify(gray.expand(-1, 3, -1, -1)))


@BOTH
def test_a_classifier_of_transformers_guides_to_its_labels(kind, classifier):
    """The more, the higher the scale; it is left as it was."""
    pipe = tiny.pipeline(kind, with_classifier=False)
    model, processor = classifier
    model.train()
    before = copy.deepcopy(model.state_dict())
    classify = image_classifier(model, processor)

    def log_probability(scale):
        drawn = draw(pipe, CleanClassifierGuidance(classify, scale=scale), timesteps=[500, 200, 40])
        return classify(drawn.images.clamp(-1, 1)).log_softmax(dim=1)[[0, 1], LABELS].mean(), drawn.evaluations

    (low, _), (high, evaluations) = log_probability(0.0), log_probability(300.0)
    assert high > low + 0.01
    assert evaluations == {"unet": 3, "classifier": 3, "backward": 3}
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.eval()


def test_softplus_is_smooth_where_relu_is_not(classifier):
    """And nearly the same function, the sharper the nearer."""
    model, processor = classifier
    images = tiny.images(2).clamp(-1, 1)
    logits = {beta: image_classifier(model, processor, beta)(images) for beta in (None, 3.0, 300.0)}
    assert torch.allclose(logits[300.0], logits[None], atol=1e-2)
    assert not torch.allclose(logits[3.0], logits[None], atol=1e-2)
    assert any(isinstance(module, nn.ReLU) for module in model.modules()), "in a copy"


def test_temperatures(pipe):
    """tau_1 z_y - log sum_j exp(tau_2 z_j): of logits that are linear in the image."""
    weights = tiny.images(5, seed=2)
    taken = []

    def classify(images):
        taken.append(images.detach())
        return torch.einsum("bchw,kchw->bk", images, weights)

    guidance = CleanClassifierGuidance(classify, joint_temperature=2.0, marginal_temperature=0.5, scale=[1.0, 3.0])
    gradients = []

    def watch(step):
        gradients.append(guidance(step))
        return gradients[-1]

    draw(pipe, watch, timesteps=[500])
    probabilities = (0.5 * torch.einsum("bchw,kchw->bk", taken[0], weights)).softmax(dim=1)
    expected = 2.0 * weights[LABELS] - 0.5 * torch.einsum("bk,kchw->bchw", probabilities, weights)
    assert torch.allclose(gradients[0], torch.tensor([1.0, 3.0]).reshape(-1, 1, 1, 1) * expected, atol=1e-4)


@BOTH
@pytest.mark.parametrize("num_cutouts", [0, 2])
def test_a_text_guides(kind, clip, num_cutouts):
    pipe = tiny.pipeline(kind, with_classifier=False)
    guidance = TextGuidance(*clip, "a red bird", num_cutouts=num_cutouts)
    drawn, again = (draw(pipe, guidance, labels=None, batch_size=2) for _ in range(2))
    assert torch.equal(drawn.images, again.images), "cutouts are drawn by the call's generator"
    assert drawn.evaluations == {"unet": 3, "classifier": 3 * max(num_cutouts, 1), "backward": 3}
    plain = draw(pipe, None, labels=None, batch_size=2)
    assert not torch.allclose(drawn.images, plain.images, atol=1e-3)
    if not num_cutouts:
        similarity = TextGuidance(*clip, "a red bird").log_likelihood
        step = Step(2)
        assert similarity(drawn.images.clamp(-1, 1), step).mean() > similarity(plain.images.clamp(-1, 1), step).mean()


class Step:
    """What `log_likelihood` looks at of a step."""

    def __init__(self, batch_size):
        self.sample, self.cost = torch.zeros(batch_size, 3, 8, 8), {"classifier": 0, "backward": 0}


def test_the_similarity_is_clips_own(clip):
    """As `transformers` computes it from words and prepared images."""
    model, processor = clip
    images = tiny.images(2).clamp(-1, 1)
    guidance = TextGuidance(model, processor, ["a bird", "a red bird"])
    tokens = processor.tokenizer(["a bird", "a red bird"], padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**tokens, pixel_values=guidance.prepare(images))
        expected = outputs.logits_per_image.diagonal() / model.logit_scale.exp()
        assert torch.allclose(guidance.log_likelihood(images, Step(2)), expected, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------- energies


@BOTH
def test_an_energy_is_led_down(kind):
    """Of the clean image, and of the timestep if it wants it."""
    pipe, times = tiny.pipeline(kind, with_classifier=False), []

    def brightness(clean_images, t):
        times.append(int(t))
        return -clean_images.mean(dim=(1, 2, 3))

    drawn = draw(pipe, EnergyGuidance(brightness, scale=300.0), labels=None, batch_size=2)
    assert times == [900, 500, 40]
    assert drawn.images.mean() > draw(pipe, None, labels=None, batch_size=2).images.mean() + 0.01
    without = draw(pipe, EnergyGuidance(lambda images: brightness(images, 0), scale=300.0), labels=None, batch_size=2)
    assert torch.equal(without.images, drawn.images)
    off = draw(pipe, EnergyGuidance(brightness, scale=0.0), labels=None, batch_size=2)
    assert torch.equal(off.images, draw(pipe, None, labels=None, batch_size=2).images)


def test_an_energy_may_be_a_network(pipe):
    class Energy(nn.Module):
        def forward(self, images):
            return images.square().sum(dim=(1, 2, 3))

    same = EnergyGuidance(lambda images: images.square().sum(dim=(1, 2, 3)))
    assert torch.equal(draw(pipe, EnergyGuidance(Energy())).images, draw(pipe, same).images)


# ------------------------------------------------------------------------------------------------------------ bad input


def energy_of_shape(*shape):
    return EnergyGuidance(lambda images: images.new_zeros(shape).requires_grad_(True))


@pytest.mark.parametrize(
    ("guidance", "said"),
    [
        (energy_of_shape(), "judge each image by one number"),
        (energy_of_shape(3), "judge each image by one number"),
        (EnergyGuidance(lambda images: float(images.sum())), "judge each image by one number"),
        (EnergyGuidance(lambda images: images.detach().sum(dim=(1, 2, 3))), "has no gradient"),
        (TrainingFreeGuidance(lambda images: images.sum(), rho=1.0), "judge each image by one number"),
    ],
)
def test_an_energy_that_is_none(pipe, guidance, said):
    with pytest.raises(InputError, match=said):
        draw(pipe, guidance)


def test_what_does_not_fit_is_said_before_anything_is_computed(pipe, classifier, clip):
    classify = image_classifier(*classifier)
    four = tiny.pipeline(DDIM, with_classifier=False, in_channels=4, out_channels=8)
    wrong = [
        (pipe, CleanClassifierGuidance(classify), None, "`class_labels` are missing"),
        (pipe, CleanClassifierGuidance(classify), [0, 5], "0..4"),
        (pipe, CleanClassifierGuidance(classify, [0, 1, 2]), [0, 3], "one for each of the 2 images"),
        (four, CleanClassifierGuidance(classify, 1), [0, 3], "3 channels, but the samples have 4"),
        (four, TextGuidance(*clip, "a bird"), [0, 3], "3 channels, but the samples have 4"),
        (pipe, TextGuidance(*clip, ["a bird"] * 3), [0, 3], "`text` must be one, or one for each of the 2 images"),
        (pipe, EnergyGuidance(lambda images: images.sum(), scale=[1.0] * 3), [0, 3], "`scale` must be one number"),
        (pipe, TrainingFreeGuidance(CleanClassifierGuidance(classify), rho=1.0), None, "`class_labels` are missing"),
    ]
    for one, guidance, labels, said in wrong:
        call = {
            "class_labels": labels,
            "batch_size": 2,
            "num_inference_steps": 2,
            "guidance": guidance,
            "output_type": "np",
        }
        tiny.check_refused(one, call, InputError, said)


@pytest.mark.parametrize("num_recurrences", [1, 2])
def test_training_free_guidance_needs_steps_that_can_be_taken_again(num_recurrences):
    pipe = tiny.pipeline(DDIM, scheduler=DPMSolverMultistepScheduler(), with_classifier=False)
    free = TrainingFreeGuidance(lambda images: images.sum(dim=(1, 2, 3)), rho=1.0, num_recurrences=num_recurrences)
    call = {"batch_size": 2, "num_inference_steps": 4, "guidance": free}
    tiny.check_refused(pipe, call, InputError, "DPMSolverMultistepScheduler cannot take the steps")


@pytest.mark.parametrize(
    ("classify", "said"),
    [
        (lambda images: images.mean(dim=(1, 2, 3)), r"logits of shape \(2, number of classes\), got \(2,\)"),
        (lambda images: {"logits": images}, "got dict: image_classifier makes such a function"),
        (lambda images: images.flatten(1)[:, :2], r"must lie in 0..1, got \[0, 3\]"),
    ],
)
def test_logits_that_are_none(classify, said):
    pipe = tiny.pipeline(DDIM, with_classifier=False)
    with pytest.raises(InputError, match=said):
        draw(pipe, CleanClassifierGuidance(classify))


def test_what_cannot_be_made(classifier, clip):
    model, processor = classifier
    for make, said in [
        (lambda: TextGuidance(model, processor, "a bird"), "Text needs a model of texts and images"),
        (lambda: TextGuidance(None, None, "a bird"), "Text needs a model of texts and images"),
        (lambda: TextGuidance(*clip, ""), "`text` must be"),
        (lambda: TextGuidance(*clip, 3), "`text` must be"),
        (lambda: image_classifier(nn.Linear(2, 2), processor), "AutoModelForImageClassification"),
        (lambda: image_classifier(model, None), "An image processor"),
        (lambda: CleanClassifierGuidance("microsoft/resnet-50"), "`classify` must be a function"),
        (lambda: CleanClassifierGuidance(len, 0.5), "`class_labels` must be whole numbers"),
        (lambda: EnergyGuidance(3.0), "`energy` must be a function"),
        (lambda: TrainingFreeGuidance(len, rho=-1.0), "must be at least 0"),
        (lambda: TrainingFreeGuidance(len, rho_schedule="linear"), "`rho_schedule` and `mu_schedule` must be"),
        (lambda: TrainingFreeGuidance(3), "`target` must be"),
        (lambda: TrainingFreeGuidance(0.5 * EnergyGuidance(len)), "goes around TrainingFreeGuidance itself"),
        (lambda: ClassifierGuidance(model), "one that never saw noise guides by CleanClassifierGuidance"),
        (lambda: EnergyGuidance(len, scale=math.inf), "`scale` must be a finite number"),
    ]:
        with pytest.raises(InputError, match=said):
            make()
