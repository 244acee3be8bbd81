"""ADM and classifier guidance (*Diffusion Models Beat GANs on Image Synthesis*) for the Hugging Face ecosystem."""

from diffusers_cg.models import ADMUNet2DModel, NoisyClassifierModel
__version__ = "0.1.0"
