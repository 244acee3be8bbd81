"""diffusers' memory savers: images guided by a gradient are those without them."""

import pytest
import tiny
import torch
from accelerate import cpu_offload_with_hook
from tiny import seeded

from diffusers_cg import ClassifierGuidedDDIMPipeline
from diffusers_cg.errors import InputError


CPU = torch.device("cpu")


def offload(model, **options):
    model.enable_group_offload(onload_device=CPU, offload_device=CPU, **options)


def cast(model):
    model.enable_layerwise_casting(
        storage_dtype=torch.float64, compute_dtype=torch.float32
    )  # wider: nothing is rounded


SAVERS = {
    "layerwise casting": lambda model, path: cast(model),
    "leaves": lambda model, path: offload(model, offload_type="leaf_level"),
    "leaves to disk": lambda model, path: offload(model, offload_type="leaf_level", offload_to_disk_path=path),
    "blocks to disk": lambda model, path: offload(
        model, offload_type="block_level", num_blocks_per_group=1, offload_to_disk_path=path
    ),
    "gradient checkpointing": lambda model, path: model.enable_gradient_checkpointing(),
}


def through_unet(step):
    step = step.differentiable()
    return -torch.autograd.grad(step.pred_original_sample.square().sum(), step.sample)[0]


def draw(pipe):
    options = {"num_inference_steps": 2, "classifier_scale": 2.0, "guidance": through_unet, "generator": seeded()}
    return pipe([0, 3], output_type="latent", **options).images


@pytest.fixture(scope="module")
def plain():
    return draw(tiny.pipeline(ClassifierGuidedDDIMPipeline))


@pytest.mark.parametrize("saver", SAVERS)
def test_gradients_are_those_without_a_saver(plain, saver, tmp_path):
    pipe = tiny.pipeline(ClassifierGuidedDDIMPipeline)
    for name in ("unet", "classifier"):
        SAVERS[saver](getattr(pipe, name), str(tmp_path / name))
    assert torch.allclose(draw(pipe), plain, atol=1e-4)


def test_compiled_beside_weights_that_are_moved():
    pipe = tiny.pipeline(ClassifierGuidedDDIMPipeline, channel_multipliers=(1,), attention_resolutions=(8,))
    plain = draw(pipe)
    for network in (pipe.unet, pipe.classifier):  # as enable_model_cpu_offload does where there is a GPU
        cpu_offload_with_hook(network, CPU)
    pipe.compile(backend="eager")
    assert torch.allclose(draw(pipe), plain, atol=1e-4)
    torch.compiler.reset()


@pytest.mark.parametrize("saver", ["layerwise casting", "leaves to disk"])
def test_checkpointing_beside_another_saver_is_refused(saver, tmp_path):
    pipe = tiny.pipeline(ClassifierGuidedDDIMPipeline)
    SAVERS[saver](pipe.classifier, str(tmp_path))
    pipe.classifier.enable_gradient_checkpointing()
    with pytest.raises(InputError, match="NoisyClassifierModel cannot be had with gradient checkpointing"):
        draw(pipe)
