"""Guidance against numbers that public repositories computed on small networks; see `tests/data/published_guidance.md`."""

import json
import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from reference import DATA, reference_classifier, reference_unet, rule_state_dict
from safetensors.torch import load_file
from torch import nn

from diffusers_cg import ClassifierGuidance, ClassifierGuidedDDIMPipeline, ClassifierGuidedDDPMPipeline
from diffusers_cg.guidance import CleanClassifierGuidance, Guidance, TrainingFreeGuidance


PUBLISHED = json.loads((DATA / "published_guidance.json").read_text())
CASES = PUBLISHED["cases"]
NUMBERS = load_file(DATA / "published_guidance.safetensors")
START, NOISE = NUMBERS["steps.x"], NUMBERS["steps.noise"]
LABELS = [4, 9]
WHOLE = {name: case for name, case in CASES.items() if case.get("method") == "tfg"}


@pytest.fixture(scope="module")
def networks():
    unets = {name: reference_unet(name) for name in ("new_order_heads_by_width", "unconditional_dropout")}
    classifier = reference_classifier("attention")
    classifier.register_forward_hook(lambda _, args, output: type(output)(logits=8 * output.logits))
    return unets, classifier


def clean_classifier(activation):
    layer = {"relu": nn.ReLU(), "softplus": nn.Softplus(beta=3.0)}[activation]
    convolutions = [nn.Conv2d(3, 16, 3, padding=1), layer, nn.Conv2d(16, 32, 3, stride=2, padding=1), layer]
    net = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10))
    net.load_state_dict(rule_state_dict(PUBLISHED["clean_classifier"]["shapes"]))
    return lambda images: 4 * net.eval()(images)


def log_likelihood(activation="relu"):
    classify = clean_classifier(activation)

    def f(images):
        labels = torch.tensor(LABELS).repeat(len(images) // 2)
        return classify(images).log_softmax(dim=1).gather(1, labels[:, None])[:, 0]

    return f


class Recorder(Guidance):
    """Keeps what another guidance gives, by timestep."""

    def __init__(self, guidance):
        self.guidance, self.gradients, self.shifts, self.steps = guidance, {}, {}, {}

    def __call__(self, step):
        self.steps[int(step.timestep)] = step
        self.gradients[int(step.timestep)] = self.guidance(step)
        return self.gradients[int(step.timestep)]

    def shift(self, step):
        self.shifts[int(step.timestep)] = self.guidance.shift(step)
        return self.shifts[int(step.timestep)]

    def recurrences(self, step):
        return self.guidance.recurrences(step)


def sample_published(case, unet, guidance, timesteps, prepare_draws):
    """The samples after each step of a case, (steps, 2, 3, 16, 16); single steps start from `START` each."""
    ancestral = case.get("sampler", "ddpm" if "activation" in case and "method" not in case else "ddim") == "ddpm"
    clip = {"clip_sample": case.get("clip_x0", True)}
    if ancestral:
        pipe = ClassifierGuidedDDPMPipeline(unet, DDPMScheduler(variance_type="learned_range", **clip))
    else:
        pipe = ClassifierGuidedDDIMPipeline(unet, DDIMScheduler(timestep_spacing="leading", **clip))
    pipe.set_progress_bar_config(disable=True)
    generator, drawn = torch.Generator(), {}
    single = case.get("inputs") is not None
    generator.manual_seed(case.get("seed", 100))
    latents = START if single else torch.randn(START.shape, generator=generator)
    prepare_draws(generator, "begin")

    def on_step_end(pipe, index, timestep, tensors):
        drawn[int(timestep)] = tensors["latents"]
        prepare_draws(generator, "step")
        return {"latents": START} if single else {}

    eta = {} if ancestral else {"eta": case.get("eta", 0.0)}
    pipe(
        LABELS, timesteps=timesteps, guidance=guidance, generator=generator, latents=latents, callback_on_step_end=on_step_end,
        output_type="latent", **eta,
    )  # fmt: skip
    return torch.stack([drawn[t] for t in case["timesteps"]])


def respaced(case):
    """All timesteps of the case's process."""
    number = int(case["respacing"].removeprefix("ddim")) if isinstance(case["respacing"], str) else case["respacing"]
    if str(case["respacing"]).startswith("ddim"):
        return list(range(0, 1000, 1000 // number))[::-1]
    return [round(999 * i / (number - 1)) for i in range(number)][::-1]


def close(actual, expected, tolerance=1e-4):
    return torch.allclose(actual, expected, rtol=tolerance, atol=tolerance)


# ------------------------------------------------------------------------------------------------------------- ED-DPM


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("ed_dpm")])
def test_entropy_driven_scale(networks, name):
    case, (unets, classifier) = CASES[name], networks
    guidance = Recorder(ClassifierGuidance(classifier, scale=case["classifier_scale"], entropy_driven=True))

    def prepare_draws(generator, when):
        if name.endswith("_steps"):
            generator.manual_seed(100)
            torch.randn(START.shape, generator=generator)  # the noise of the step is the second draw

    samples = sample_published(case, unets[case["unet"]], guidance, respaced(case), prepare_draws)
    assert close(samples, NUMBERS[f"{name}.sample"])
    if f"{name}.gradient" in NUMBERS:
        scale = case["classifier_scale"] * NUMBERS[f"{name}.entropy_scale"].reshape(-1, 2, 1, 1, 1)
        gradients = torch.stack([guidance.gradients[t] for t in case["timesteps"]])
        assert close(gradients, scale * NUMBERS[f"{name}.gradient"])


# -------------------------------------------------------------------------------------------------------------- EluCD


@pytest.mark.parametrize("activation", ["relu", "softplus"])
def test_clean_classifier(networks, activation):
    """The gradient, and the whole step: but for the maximal variance, which the code takes of one element for all images."""
    name = f"elucd.{activation}_steps"
    case, (unets, _) = CASES[name], networks
    options = {"joint_temperature": 1.0, "marginal_temperature": 0.5, "scale": case["classifier_scale"]}
    plain = CleanClassifierGuidance(clean_classifier(activation), **options)
    guidance = Recorder(CleanClassifierGuidance(clean_classifier(activation), sine=case["gamma_factor"], **options))

    def prepare_draws(generator, when):
        generator.manual_seed(100)
        torch.randn(START.shape, generator=generator)

    samples = sample_published(case, unets[case["unet"]], guidance, respaced(case), prepare_draws)
    largest = 0.0
    for t in sorted(guidance.steps, reverse=True):
        step = guidance.steps[t]
        largest = torch.maximum(step.variance.amax(dim=(1, 2, 3), keepdim=True), torch.as_tensor(largest))
        if t not in case["timesteps"]:
            continue
        k, remaining = case["timesteps"].index(t), step.num_steps - 1 - step.index
        assert remaining == case["step_indices"][k]
        expected = NUMBERS[f"{name}.guidance"][k]
        assert close(step.pred_original_sample, NUMBERS["elucd.steps.predicted_clean"][k])
        assert close(plain(step), expected)
        sine = case["gamma_factor"] * math.sin(math.pi * remaining / step.num_steps)
        assert sine * case["max_variance"][k] == pytest.approx(case["added_variance"][k], abs=1e-6)
        other_maximum = sine * (largest - case["max_variance"][k]) * expected
        assert close(samples[k], NUMBERS[f"{name}.sample"][k] + other_maximum)


# ------------------------------------------------------------------------------------------ training-free guidance


def unused_recurrence(generator, when):
    """Their code draws once more at the end of a step than it adds noise back."""
    if when == "step":
        torch.randn(START.shape, generator=generator)


def of_seed(seed):
    return lambda generator, when: generator.manual_seed(seed)


def settings(case, **changed):
    names = ("rho", "mu", "sigma", "rho_schedule", "mu_schedule", "sigma_schedule")
    names = {name: name for name in names if name in case} | {
        "num_samples": "eps_bsz",
        "num_iterations": "iter_steps",
        "num_recurrences": "recur_steps",
    }
    return {ours: case[theirs] for ours, theirs in names.items() if theirs in case} | changed


@pytest.mark.parametrize("name", WHOLE)
def test_training_free_guidance(networks, name):
    case, unet = CASES[name], networks[0]["unconditional_dropout"]
    free = TrainingFreeGuidance(log_likelihood(), **settings(case))
    prepare_draws = of_seed(case["seed"]) if case.get("inputs") else unused_recurrence
    samples = sample_published(case, unet, free, case["schedule_timesteps"], prepare_draws)
    compared = slice(0, 3) if name == "tfg.all" else slice(None)  # they draw no noise of DDIM in the last step
    assert close(samples[compared], NUMBERS[f"{name}.sample"][compared])


def alphas(case):
    pairs = zip(case["alpha_prod_ts"], case["alpha_prod_t_prevs"])
    return {t: at / before for t, (at, before) in zip(case["schedule_timesteps"], pairs)}


def weighted_by_step(weights, *args, **options):
    """Special cases have other weights by step: here they are given."""

    class Free(TrainingFreeGuidance):
        def shift(self, step):
            self.rho = weights.get(int(step.timestep), 0.0)
            return super().shift(step)

    return Recorder(Free(*args, rho=1.0, rho_schedule="constant", **options))


@pytest.mark.parametrize("method", ["dps", "freedom", "lgd", "mpgd"])
def test_special_cases_of_training_free_guidance(networks, method):
    """Their codes do not clip the predicted image on its way through the unet, or not the noise that goes with it."""
    name, f = f"tfg.{method}_steps", log_likelihood()
    case, unet = CASES[name], networks[0]["unconditional_dropout"]
    strength, schedule = case["guidance_strength"], case["schedule_timesteps"]
    roots = {t: alpha**0.5 for t, alpha in alphas(case).items()}  # which the unified form divides by
    expected, prepare_draws = NUMBERS[f"{name}.sample"], of_seed(case["seed"])
    if method == "mpgd":
        free = Recorder(TrainingFreeGuidance(f, mu=strength, mu_schedule="constant"))
        sample_published(case, unet, free, schedule, prepare_draws)
        steps = [free.steps[t] for t in case["timesteps"]]
        deterministic = [
            step.alpha_prod_t_prev.sqrt() * step.pred_original_sample
            + (1 - step.alpha_prod_t_prev).sqrt() * step.noise
            for step in steps
        ]
        samples = torch.stack([x + free.shifts[t] for x, t in zip(deterministic, case["timesteps"])])
        assert close(samples, expected)
        return
    case = {**case, "clip_x0": False}
    if method == "lgd":

        def after_the_noise_of_ddim(generator, when):
            generator.manual_seed(case["seed"])
            torch.randn(START.shape, generator=generator)

        weights = {t: strength * root / 3 for t, root in roots.items()}
        free = weighted_by_step(weights, f, sigma=1.0, num_samples=3)
        sample_published(case, unet, free, schedule, after_the_noise_of_ddim)
        shifts = torch.stack([free.shifts[t] for t in case["timesteps"]])
        assert close(shifts[:2], strength * NUMBERS[f"{name}.guidance"][:2])
        return
    if method == "dps":  # the gradient is divided by |log p|
        weights = {t: strength * root for t, root in roots.items()}
        free = weighted_by_step(weights, lambda images: -(-f(images)).log())
    else:
        weights = {t: rho * roots[t] for t, rho in zip(case["timesteps"], case["rho_of_step"])}
        free = weighted_by_step(weights, f, num_recurrences=case["recur_steps"])
    samples = sample_published(case, unet, free, schedule, prepare_draws)
    assert close(samples[:2], expected[:2]), "the last step of theirs draws no noise of DDIM"
