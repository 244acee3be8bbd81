"""guided-diffusion behind the methods of `speed.py`: its networks, its gradient as its scripts compute it, its samplers."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from diffusers_cg import ADMUNet2DModel, NoisyClassifierModel
from diffusers_cg.errors import InputError
from diffusers_cg.pipelines import ClassifierGuidedPipeline


TIMESTEP = 500  # of what is timed at one time
MODULES = ("unet", "script_util", "fp16_util", "nn")


def open_reference(path: Path) -> SimpleNamespace:
    """The modules of a clone that need nothing but PyTorch and NumPy."""
    if not (path / "guided_diffusion").is_dir():
        raise InputError(f"{path} is no clone of guided-diffusion: it has no folder guided_diffusion.")
    if str(path) not in sys.path:
        sys.path.insert(0, str(path))
    return SimpleNamespace(**{name: importlib.import_module(f"guided_diffusion.{name}") for name in MODULES})


def make_network(reference: SimpleNamespace, network: ADMUNet2DModel | NoisyClassifierModel) -> nn.Module:
    """The reference's network of the same architecture, without its weights."""
    config = network.config
    options = {
        "image_size": config.sample_size,
        "in_channels": config.in_channels,
        "model_channels": config.base_channels,
        "num_res_blocks": config.layers_per_block,
        "attention_resolutions": tuple(config.sample_size // side for side in config.attention_resolutions),
        "channel_mult": tuple(config.channel_multipliers),
        "dropout": config.dropout,
        "num_heads": config.num_attention_heads or 1,
        "num_head_channels": config.attention_head_dim or -1,
        "use_scale_shift_norm": True,
        "resblock_updown": True,
        "use_new_attention_order": config.get("_new_attention_order", False),
    }
    if "num_classes" in config:
        return reference.unet.EncoderUNetModel(out_channels=config.num_classes, pool=config.pool, **options)
    return reference.unet.UNetModel(out_channels=config.out_channels, num_classes=config.num_class_embeds, **options)


class Reference:
    """What is timed of guided-diffusion.

    Args:
        path (`Path`): A clone of its repository.
        unet, classifier: Ours, whose architecture and weights are taken over; without weights (on the meta device) they are
            random.
        sample (`torch.Tensor`): x_t, (B, C, H, W), float32.
        class_labels (`torch.Tensor`): (B,) int64.
        dtype (`torch.dtype`, *optional*): Half precision makes its own float16 on a GPU; that of `unet` otherwise.
    """

    def __init__(
        self,
        path: Path,
        unet: ADMUNet2DModel,
        classifier: NoisyClassifierModel,
        sample: torch.Tensor,
        class_labels: torch.Tensor,
        dtype: torch.dtype | None = None,
    ):
        reference = open_reference(path)
        self.sample, self.class_labels = sample, class_labels
        networks = []
        for own in (unet, classifier):
            network = make_network(reference, own)
            if own.device.type != "meta":
                network.load_state_dict({name: weight.float() for name, weight in own.to_openai_state_dict().items()})
            network = network.to(sample.device)
            if (dtype or own.dtype) != torch.float32 and sample.device.type == "cuda":
                network.convert_to_fp16()
                network.dtype = torch.float16
            networks.append(network.eval())
        self.network, self.classifier = networks
        diffusion = {"learn_sigma": unet.predicts_variance}
        self.diffusions = {
            number: reference.script_util.create_gaussian_diffusion(
                **diffusion, timestep_respacing="" if number is None else number
            )
            for number in (None, "ddim10")
        }

    def guide(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The gradient as its `classifier_sample.py` computes it, at scale 1."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            log_probs = F.log_softmax(self.classifier(leaf, t), dim=-1)
            return torch.autograd.grad(log_probs[range(len(y)), y].sum(), leaf)[0]

    def times(self, timestep: int) -> torch.Tensor:
        return torch.full((len(self.sample),), timestep, device=self.sample.device)

    @torch.no_grad()
    def unet(self) -> torch.Tensor:
        return self.network(self.sample, self.times(TIMESTEP), self.class_labels)

    def classifier_gradient(self) -> torch.Tensor:
        return self.guide(self.sample, self.times(TIMESTEP), self.class_labels)

    @torch.no_grad()
    def steps(self, algorithm: Literal["DDPM", "DDIM"], number: int) -> torch.Tensor:
        options = {"clip_denoised": True, "cond_fn": self.guide, "model_kwargs": {"y": self.class_labels}}
        if number == 1:
            diffusion = self.diffusions[None]
            step = diffusion.p_sample if algorithm == "DDPM" else diffusion.ddim_sample
            return step(self.network, self.sample, self.times(TIMESTEP), **options)["sample"]
        sample = self.diffusions[f"ddim{number}"].ddim_sample_loop
        return sample(self.network, self.sample.shape, noise=self.sample, device=self.sample.device, **options)

    @staticmethod
    def loading(path: Path, pipe: ClassifierGuidedPipeline, folder: Path) -> Callable[[], list[nn.Module]]:
        """Writes two `.pt` files of the networks into a folder; what is returned reads them, as its scripts do."""
        reference = open_reference(path)
        own = {"unet": pipe.unet, "classifier": pipe.classifier}
        meta = {}
        for name, network in own.items():
            torch.save(network.to_openai_state_dict(), folder / f"{name}.pt")
            with torch.device("meta"):
                meta[name] = type(network).from_config(network.config)

        def load() -> list[nn.Module]:
            networks = []
            for name, network in meta.items():
                network = make_network(reference, network)
                network.load_state_dict(torch.load(folder / f"{name}.pt", map_location="cpu"))
                networks.append(network)
            return networks

        return load
