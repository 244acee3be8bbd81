"""The gradient that guides: of log p(y | x_t) at x_t, per image, in float32."""

import copy

import pytest
import tiny
import torch

from diffusers_cg.guidance import ClassifierGuidance, GuidedStep, classifier_gradient


SAMPLE = tiny.images(4)
TIMESTEPS = torch.tensor([0, 10, 500, 999])
LABELS = torch.tensor([0, 3, 1, 4])

every_pooling = pytest.mark.parametrize("pool", ["attention", "adaptive", "spatial", "spatial_v2"])


def log_probability(classifier, sample):
    log_probs = classifier(sample, TIMESTEPS).logits.log_softmax(dim=-1)
    return log_probs[torch.arange(len(LABELS)), LABELS]


@every_pooling
def test_gradient_is_that_of_autograd(pool):
    classifier = tiny.classifier(pool=pool)
    sample = SAMPLE.clone().requires_grad_(True)
    (expected,) = torch.autograd.grad(log_probability(classifier, sample).sum(), sample)
    gradient = classifier_gradient(classifier, SAMPLE, TIMESTEPS, LABELS)
    assert gradient.dtype == torch.float32 and not gradient.requires_grad
    assert torch.allclose(gradient, expected, rtol=1e-5, atol=1e-7)


@every_pooling
@torch.no_grad()
def test_gradient_is_the_slope(pool):
    """Central differences along random directions, in float64."""
    classifier = tiny.classifier(pool=pool)
    gradient = classifier_gradient(classifier, SAMPLE, TIMESTEPS, LABELS).double()
    exact, step = copy.deepcopy(classifier).double(), 1e-6
    for seed in (1, 2, 3):
        direction = tiny.images(4, seed=seed).double()
        ahead, behind = (log_probability(exact, SAMPLE.double() + sign * step * direction) for sign in (1, -1))
        slope = (ahead - behind) / (2 * step)
        assert torch.allclose((gradient * direction).sum(dim=(1, 2, 3)), slope, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_also_from_a_classifier_in_half_precision(dtype):
    expected = classifier_gradient(tiny.classifier(), SAMPLE, TIMESTEPS, LABELS)
    gradient = classifier_gradient(tiny.classifier().to(dtype), SAMPLE, TIMESTEPS, LABELS)
    assert gradient.dtype == torch.float32
    assert (gradient - expected).norm() / expected.norm() < 0.1


@pytest.mark.parametrize("shift", [10.0, 14.0])
def test_a_sure_classifier_has_a_gradient_in_float16_too(shift):
    """Some 1e-5 to 1e-8 of that of an unsure one, below what float16 knows; entropy-driven scales bring it back."""
    classifier = tiny.classifier()
    with torch.no_grad():
        classifier.head[2].to_out.bias[LABELS[0]] += shift
    sample, timesteps, labels = SAMPLE[:1], TIMESTEPS[:1], LABELS[:1]
    expected = classifier_gradient(classifier, sample, timesteps, labels)
    gradient = classifier_gradient(classifier.half(), sample, timesteps, labels)
    assert 0 < expected.norm() < 1e-4
    assert (gradient - expected).norm() / expected.norm() < 0.02


def test_the_classifier_is_left_as_it_was():
    """Asked without dropout; its mode, module by module, and its parameters are the owner's."""
    classifier = tiny.classifier(dropout=0.5).train()
    classifier.head.eval()
    classifier.conv_in.weight.requires_grad_(False)
    modes = [module.training for module in classifier.modules()]
    wanting = [parameter.requires_grad for parameter in classifier.parameters()]
    gradient = classifier_gradient(classifier, SAMPLE, TIMESTEPS, LABELS)
    assert torch.equal(gradient, classifier_gradient(classifier.eval(), SAMPLE, TIMESTEPS, LABELS))
    classifier.train()
    classifier.head.eval()
    step = GuidedStep(SAMPLE, 0, torch.tensor([10]), None, None, None, None)
    ClassifierGuidance(classifier, LABELS, scale=2.0)(step)
    assert [module.training for module in classifier.modules()] == modes
    assert [parameter.requires_grad for parameter in classifier.parameters()] == wanting
    assert all(parameter.grad is None for parameter in classifier.parameters())


@pytest.mark.parametrize("scale", [2.0, [0.0, 1.0, 2.0, 3.0]], ids=["one", "per image"])
def test_labels_and_scale_belong_to_the_guidance(scale):
    classifier = tiny.classifier()
    step = GuidedStep(SAMPLE, 0, torch.tensor([10]), None, None, None, None)
    expected = torch.tensor(scale).reshape(-1, 1, 1, 1) * classifier_gradient(classifier, SAMPLE, 10, LABELS)
    for labels in (LABELS, LABELS.tolist()):
        assert torch.equal(ClassifierGuidance(classifier, labels, scale)(step), expected)
    one_label = ClassifierGuidance(classifier, 3, scale)(step)
    assert torch.equal(one_label, ClassifierGuidance(classifier, [3] * 4, scale)(step))


@pytest.mark.parametrize("sharpness", [1e2, 1e3, 1e5])
def test_an_entropy_driven_scale_of_a_classifier_that_is_sure(sharpness):
    """Whose entropy is next to nothing, or nothing."""
    classifier = tiny.classifier()
    classifier.register_forward_hook(lambda _, args, output: type(output)(logits=sharpness * output.logits))
    step = GuidedStep(SAMPLE, 0, torch.tensor([10]), None, None, None, None)
    sure = classifier(SAMPLE, torch.tensor([10])).logits.argmax(dim=1)
    gradient = ClassifierGuidance(classifier, sure, entropy_driven=True)(step)
    assert gradient.isfinite().all() and gradient.abs().max() < 10 * sharpness


@every_pooling
def test_images_do_not_influence_each_other(pool):
    classifier = tiny.classifier(pool=pool)
    together = classifier_gradient(classifier, SAMPLE, TIMESTEPS, LABELS)
    for i in range(4):
        alone = classifier_gradient(classifier, SAMPLE[i : i + 1], TIMESTEPS[i : i + 1], LABELS[i : i + 1])
        assert torch.allclose(alone[0], together[i], rtol=1e-4, atol=1e-6)


def test_the_sample_and_the_grad_mode_are_left_as_they_were():
    classifier = tiny.classifier()
    expected = classifier_gradient(classifier, SAMPLE, TIMESTEPS, LABELS)
    with torch.no_grad():
        assert torch.equal(classifier_gradient(classifier, SAMPLE, TIMESTEPS, LABELS), expected)
        assert not torch.is_grad_enabled()
    assert not SAMPLE.requires_grad
    sample = SAMPLE.clone().requires_grad_(True)
    assert torch.equal(classifier_gradient(classifier, sample, TIMESTEPS, LABELS), expected) and sample.grad is None


def test_timestep_of_any_form():
    classifier = tiny.classifier()
    expected = classifier_gradient(classifier, SAMPLE, torch.tensor([10] * 4), LABELS)
    for timestep in (10, torch.tensor(10), torch.tensor([10])):
        assert torch.equal(classifier_gradient(classifier, SAMPLE, timestep, LABELS), expected)
    assert not torch.allclose(classifier_gradient(classifier, SAMPLE, 900, LABELS), expected, rtol=1e-2)
