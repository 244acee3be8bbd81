"""What makes calls fast changes no results: compiled networks, the layout of weights; slow number types are said."""

import logging

import pytest
import tiny
import torch
from safetensors.torch import save_file
from tiny import seeded

from diffusers_cg import ADMUNet2DModel, ClassifierGuidedDDIMPipeline, ClassifierGuidedDDPMPipeline
from diffusers_cg.models import warn_of_emulation


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


def test_compiled_networks_are_one_graph_each_and_change_nothing(tmp_path, graphs):
    ddpm = tiny.pipeline(ClassifierGuidedDDPMPipeline, conditional=True, **FEW_LAYERS)
    ddim = ClassifierGuidedDDIMPipeline.from_pipe(ddpm)
    ddim.set_progress_bar_config(disable=True)
    calls = [{}, {"num_inference_steps": 3}, {"classifier_scale": 1.0}, {"classifier_scale": [1.0, 2.0]}]
    calls += [{"labels": (1, 2)}, {"timesteps": [700, 20]}]
    calls = [{"num_inference_steps": None, **call} if "timesteps" in call else call for call in calls]
    latents = tiny.images().requires_grad_(True)

    def results() -> list[torch.Tensor]:
        with ddim.differentiable():
            images = draw(ddim, latents=latents)
        features = ddim.unet.features(tiny.images(), 5, torch.tensor([0, 3]), blocks="mid_block")["mid_block"]
        return [
            *(draw(pipe, **call) for pipe in (ddpm, ddim) for call in calls),
            ddim.invert(tiny.images().clamp(-1, 1) / 2 + 0.5, [0, 3], num_inference_steps=2),
            torch.autograd.grad(images.sum(), latents)[0],  # these two go without the graphs
            features.detach(),
        ]

    before = results()

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    ddpm.compile(backend=backend)
    assert all(map(torch.equal, results(), before))
    assert len(graphs) == 2

    ddim.save_pretrained(tmp_path)
    assert torch.equal(draw(ClassifierGuidedDDIMPipeline.from_pretrained(tmp_path)), before[len(calls)])


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


@pytest.mark.parametrize(
    ("dtype", "is_supported"),
    [(torch.bfloat16, True), (torch.bfloat16, False), (torch.float16, False), (torch.float32, False)],
)
def test_a_number_type_that_the_cpu_emulates_is_said_once(dtype, is_supported, caplog, monkeypatch):
    for name in ("bf16", "fp16"):
        monkeypatch.setattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported", lambda: is_supported)
    warn_of_emulation.cache_clear()
    pipe = tiny.pipeline(ClassifierGuidedDDIMPipeline).to(dtype)
    with caplog.at_level(logging.WARNING, logger="diffusers_cg"):
        draw(pipe)
        draw(pipe)
    said = [record for record in caplog.records if "emulated" in record.getMessage()]
    assert len(said) == (dtype != torch.float32 and not is_supported)
