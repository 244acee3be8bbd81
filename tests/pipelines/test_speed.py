"""What makes calls fast changes no results: compiled networks, the layout of weights; slow number types are said."""

import logging

import pytest
import tiny
import torch
from safetensors.torch import save_file
from tiny import seeded

from diffusers_cg import ADMUNet2DModel, ClassifierGuidedDDIMPipeline, ClassifierGuidedDDPMPipeline
from diffusers_cg.models import warn_of_emulation


EVERY_KIND = pytest.mark.parametrize(
    "kind", [ClassifierGuidedDDPMPipeline, ClassifierGuidedDDIMPipeline], ids=lambda kind: kind.algorithm
)
FEW_LAYERS = {"channel_multipliers": (1,), "attention_resolutions": (8,)}  # which compile in half the time


def draw(pipe, labels=(0, 3), **options) -> torch.Tensor:
    options = {"num_inference_steps": 2, "classifier_scale": 3.0, "output_type": "latent", **options}
    return pipe(list(labels), generator=seeded(), **options).images


@pytest.fixture
def graphs():
    """The graphs that a backend of torch.compile has been given; it runs them as they are."""
    torch.compiler.reset()
    graphs = []
    yield graphs
    torch.compiler.reset()


@EVERY_KIND
def test_compiled_networks_give_the_same_images_in_one_graph_each(kind, graphs):
    pipe = tiny.pipeline(kind, conditional=True, **FEW_LAYERS)
    calls = [{}, {"num_inference_steps": 3}, {"classifier_scale": 1.0}, {"classifier_scale": [1.0, 2.0]}]
    calls += [{"labels": (1, 2)}, {"timesteps": [700, 20]}]
    calls = [{"num_inference_steps": None, **call} if "timesteps" in call else call for call in calls]
    before = [draw(pipe, **call) for call in calls]

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    pipe.compile(backend=backend)
    for call, images in zip(calls, before):
        assert torch.equal(draw(pipe, **call), images), call
    assert len(graphs) == 2


def test_gradients_and_features_go_without_compiled_networks(graphs):
    pipe = tiny.pipeline(ClassifierGuidedDDIMPipeline, conditional=True, **FEW_LAYERS)
    latents = tiny.images().requires_grad_(True)

    def gradient():
        with pipe.differentiable():
            images = draw(pipe, latents=latents)
        return torch.autograd.grad(images.sum(), latents)[0]

    def features():
        return pipe.unet.features(tiny.images(), 5, torch.tensor([0, 3]), blocks="mid_block")["mid_block"]

    before = gradient(), features().detach()
    pipe.compile(backend="aot_eager")
    draw(pipe)
    assert torch.equal(gradient(), before[0])
    assert torch.equal(features(), before[1])


def test_a_compiled_pipeline_is_saved_as_it_was(tmp_path, graphs):
    pipe = tiny.pipeline(ClassifierGuidedDDIMPipeline, conditional=True, **FEW_LAYERS)
    images = draw(pipe)
    pipe.compile(backend="eager")
    draw(pipe)
    pipe.save_pretrained(tmp_path)
    assert torch.equal(draw(ClassifierGuidedDDIMPipeline.from_pretrained(tmp_path)), images)


@pytest.mark.parametrize("base_channels, is_last", [(64, True), (32, False)])
def test_weights_lie_as_the_kernels_take_them_wherever_a_network_comes_from(tmp_path, base_channels, is_last):
    new = tiny.unet(base_channels=base_channels, norm_num_groups=32)
    new.save_pretrained(tmp_path)
    save_file(new.to_openai_state_dict(), tmp_path / "openai.safetensors")  # which takes contiguous tensors alone
    converted = ADMUNet2DModel.from_single_file(
        tmp_path / "openai.safetensors",
        sample_size=new.config.sample_size,
        attention_head_dim=new.config.attention_head_dim,
        new_attention_order=False,
        num_train_timesteps=1000,
        beta_schedule="linear",
        rescale_timesteps=False,
        prediction_type="epsilon",
    )
    for unet in (new, ADMUNet2DModel.from_pretrained(tmp_path), converted):
        weight = unet.down_blocks[0].resnets[0].conv1.weight
        assert weight.is_contiguous(memory_format=torch.channels_last) is is_last
        assert weight.is_contiguous() is not is_last


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_number_type_that_the_cpu_emulates_is_said_once(dtype, caplog):
    supported = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported(),
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported(),
    }
    warn_of_emulation.cache_clear()
    pipe = tiny.pipeline(ClassifierGuidedDDIMPipeline).to(dtype)
    with caplog.at_level(logging.WARNING, logger="diffusers_cg"):
        draw(pipe)
        draw(pipe)
    said = [record for record in caplog.records if "emulated" in record.getMessage()]
    assert len(said) == (not supported.get(dtype, True))
