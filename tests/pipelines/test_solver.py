"""The solver of a saved pipeline: what is drawn by it, and what takes the steps of DDIM nevertheless."""

import json

import pytest
import tiny
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    LCMScheduler,
    UniPCMultistepScheduler,
)
from processes import run_here
from tiny import seeded

from diffusers_cg import (
    DIGITS,
    ClassifierGuidedDDIMPipeline,
    ClassifierGuidedDDPMPipeline,
    ClassifierGuidedInpaintPipeline,
    ClassifierGuidedSuperResolutionPipeline,
)
from diffusers_cg.errors import InputError
from diffusers_cg.generation import SavedPipeline, SchedulerChoice
from diffusers_cg.restoration import BoxDownsampling


DDPM, DDIM = ClassifierGuidedDDPMPipeline, ClassifierGuidedDDIMPipeline
STEPS = {"ddpm_num_inference_steps": 4, "ddim_num_inference_steps": 5, "solver_num_inference_steps": 3}
IMAGES = tiny.images().clamp(-1, 1) / 2 + 0.5


def with_solver(kind, solver, **of_networks):
    """A tiny pipeline, with that solver on its own noise schedule."""
    parts = tiny.pipeline(kind, **of_networks)
    solver = solver.from_config(parts.scheduler.config, algorithm_type="sde-dpmsolver++", timestep_spacing="leading")
    pipe = kind(**parts.components | {"solver": solver}, **parts.parameters | STEPS)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    root = tmp_path_factory.mktemp("saved")
    with_solver(DDPM, DPMSolverMultistepScheduler, conditional=True).save_pretrained(root / "model")
    of_half = {"sample_size": 4, "attention_resolutions": (2,)}
    with_solver(DDPM, DPMSolverMultistepScheduler, conditional=True, **of_half).save_pretrained(root / "low")
    upsampler = with_solver(
        ClassifierGuidedSuperResolutionPipeline, DPMSolverMultistepScheduler, conditional=True, low_res_size=4
    )
    upsampler.save_pretrained(root / "up")
    return root


def load(saved, kind=DDIM, **options):
    pipe = kind.from_pretrained(saved / "model", **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, **options):
    return pipe([0, 3], **{"generator": seeded(), "output_type": "latent", **options})


@pytest.fixture(scope="module")
def pipe(saved):
    return load(saved)


@pytest.fixture(scope="module")
def by_ddim(saved):
    return load(saved, solver=None)


def test_digits_are_drawn_by_the_best_solver_found_and_ddim_is_one_argument_away():
    pipe, paper = DDIM.from_pretrained(DIGITS), DDIM.from_pretrained(DIGITS, solver=None)
    solver = DPMSolverMultistepScheduler.from_config(paper.scheduler.config, algorithm_type="sde-dpmsolver++")
    for each in (pipe, paper):
        each.set_progress_bar_config(disable=True)
    drawn, by_ddim = draw(pipe), draw(paper)
    assert (drawn.evaluations["unet"], by_ddim.evaluations["unet"]) == (8, 25)
    assert torch.equal(draw(pipe, eta=0.0).images, by_ddim.images)
    paper.scheduler = solver
    assert torch.equal(draw(paper, num_inference_steps=8).images, drawn.images)
    assert type(DDPM.from_pretrained(DIGITS).scheduler) is DDPMScheduler


def test_each_kind_of_steps_has_its_saved_number(pipe, by_ddim, saved):
    assert draw(pipe).evaluations["unet"] == 3
    assert draw(by_ddim).evaluations["unet"] == draw(pipe, eta=0.5).evaluations["unet"] == 5
    assert draw(load(saved, DDPM)).evaluations["unet"] == 4


def test_eta_takes_the_steps_of_ddim(pipe, by_ddim):
    assert torch.equal(draw(by_ddim).images, draw(by_ddim, eta=0.0).images)
    for eta in (0.0, 0.7):
        assert torch.equal(draw(pipe, eta=eta).images, draw(by_ddim, eta=eta).images)
    assert not torch.equal(draw(pipe, num_inference_steps=5).images, draw(by_ddim).images)


@pytest.mark.parametrize("edited", ["edit", "invert", "ddnm", "diffpir", "pigdm", "dps", "gradient", "purify"])
def test_what_ddim_defines_takes_its_steps_whatever_the_scheduler(edited, pipe, by_ddim):
    def result(pipe):
        output = {"output_type": "latent", "generator": seeded()}
        if edited == "edit":
            options = {"source_labels": 1, "classifier_scale": 3.0, "num_inversion_steps": 4, **output}
            return pipe.edit(IMAGES, [0, 3], **options).images
        if edited == "invert":
            return pipe.invert(IMAGES, [0, 3])
        if edited == "gradient":
            latents = tiny.images().requires_grad_()
            with pipe.differentiable():
                images = draw(pipe, latents=latents).images
            return torch.autograd.grad(images.square().sum(), latents)[0]
        if edited == "purify":
            image = IMAGES.clone().requires_grad_()
            purified = pipe.purify(image, 0.5, [0, 3], generator=seeded())
            assert torch.equal(purified.detach(), pipe.purify(IMAGES, 0.5, [0, 3], generator=seeded()))
            return torch.autograd.grad(purified.square().sum(), image)[0]
        return pipe.restore(
            IMAGES[:, :, ::2, ::2], BoxDownsampling(2), edited, class_labels=[0, 3], num_inference_steps=3, **output
        ).images

    assert torch.equal(result(pipe), result(by_ddim))


def test_what_the_two_ways_through_ddim_leave(pipe):
    latents = pipe.invert(IMAGES, [0, 3], num_inference_steps=5)
    decoded = draw(pipe, latents=latents, num_inference_steps=5, eta=0.0, classifier_scale=0.0).images
    assert torch.equal(decoded, draw(pipe, latents=latents, eta=0.0, classifier_scale=0.0, generator=seeded(1)).images)


@pytest.mark.parametrize("kind", [DDPM, DDIM, ClassifierGuidedInpaintPipeline], ids=lambda kind: kind.__name__)
def test_every_pipeline_keeps_it(kind, saved, pipe, by_ddim, tmp_path):
    one = load(saved, kind)
    steps = one.scheduler
    one.save_pretrained(tmp_path / "model")
    assert one.scheduler is steps
    loaded = [load(tmp_path), load(tmp_path, solver=None), load(tmp_path, DDPM), DDIM.from_pipe(one)]
    loaded[-1].set_progress_bar_config(disable=True)
    for each, expected in zip(loaded, (pipe, by_ddim, load(saved, DDPM), pipe)):
        assert torch.equal(draw(each).images, draw(expected).images)


def test_a_scheduler_that_is_assigned_draws(pipe, saved):
    assigned = load(saved)
    assigned.scheduler = UniPCMultistepScheduler.from_config(assigned.scheduler.config)
    assert not torch.equal(draw(assigned).images, draw(pipe).images)
    assigned.scheduler = DDPMScheduler.from_config(assigned.scheduler.config)
    assert torch.equal(draw(assigned).images, draw(pipe).images)


@pytest.mark.parametrize(
    ("solver", "said"),
    [
        (DDPMScheduler(), "`solver` must be what steps on guided noise .*, got a DDPMScheduler"),
        (LCMScheduler(), "LCMScheduler cannot step on guided noise"),
        (DDIMScheduler(500), "a DDIMScheduler, is of another noise schedule"),
        (UniPCMultistepScheduler(beta_schedule="squaredcos_cap_v2"), "is of another noise schedule"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_solvers_that_are_refused(solver, said):
    parts = tiny.pipeline(DDPM, scheduler=DDPMScheduler(variance_type="learned_range")).components
    with pytest.raises(InputError, match=said):
        DDPM(**parts | {"solver": solver})


# --------------------------------------------------------------------------------------------------------- commands


def sample(saved, output, *flags, model="low"):
    result = run_here("sample", "--model", saved / model, "--output", output, "--num_samples", 2, *flags)
    assert result.status == 0, result.output
    return json.loads((output / "sampling.json").read_text())


def test_samplers_of_the_command_line(saved, tmp_path):
    drawn = sample(saved, tmp_path / "solver", "--sampler", "solver", "--upsampler", saved / "up")
    for stage in ("base", "upsampler"):
        assert drawn["evaluations"][stage]["unet"] == drawn[stage]["num_inference_steps"] == 3
    for i, flags in enumerate((["--sampler", "ddim"], ["--scheduler", "DDIMScheduler"])):
        by_ddim = sample(saved, tmp_path / f"ddim {i}", *flags)
        assert by_ddim["base"]["num_inference_steps"] == by_ddim["evaluations"]["base"]["unet"] == 5
    assert sample(saved, tmp_path / "ddpm")["evaluations"]["base"]["unet"] == 4


def test_a_model_without_a_solver_is_named(tmp_path):
    tiny.pipeline(DDPM).save_pretrained(tmp_path / "plain")
    flags = ["--model", tmp_path / "plain", "--sampler", "solver", "--output", tmp_path / "out"]
    result = run_here("sample", *flags)
    assert result.status == 2 and f"No solver is saved in {tmp_path / 'plain'}" in result.output
    assert not (tmp_path / "out").exists()


def test_another_scheduler_has_none_of_the_options_of_the_solver(saved):
    choice = SchedulerChoice.parse(["DPMSolverMultistepScheduler"])
    chosen = SavedPipeline(str(saved / "model"), "ddim", scheduler=choice).load().scheduler
    assert chosen.config.algorithm_type == "dpmsolver++" and chosen.config.timestep_spacing == "leading"
