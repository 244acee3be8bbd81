"""Guidance by a text, through a CLIP model that looks at the clean image."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from diffusers_cg.errors import InputError
from diffusers_cg.guidance.classifier_guidance import evaluating
from diffusers_cg.guidance.clean_image_guidance import CleanImageGuidance, check_channels
from diffusers_cg.guidance.guided_step import GuidedCall, GuidedStep
from diffusers_cg.guidance.transformers_models import processor_of_tensors


class TextGuidance(CleanImageGuidance):
    r"""f = cos(e_image(x_0), e_text(y)), the similarity of *Learning Transferable Visual Models From Natural Language
    Supervision* (Radford et al., 2021), times a scale: about 100 where CLIP's own temperature is meant.

    Args:
        clip (`CLIPModel`): Of `transformers`; not changed.
        processor (`CLIPProcessor`): Its tokenizer and image processor.
        text (`str` or one per image): What is to be seen.
        scale, through_unet: as in [`CleanImageGuidance`].
        num_cutouts (`int`): Random square parts of the image, of at least half its side, that are looked at in place of
            the whole; their similarities are averaged. They are drawn by the call's generator.
    """

    def __init__(
        self,
        clip: nn.Module,
        processor,
        text: str | Sequence[str],
        scale: float | Sequence[float] | torch.Tensor = 100.0,
        through_unet: bool = True,
        num_cutouts: int = 0,
    ):
        super().__init__(scale, through_unet)
        if not hasattr(clip, "get_text_features") or not hasattr(processor, "tokenizer"):
            raise InputError(
                "Text needs a model of texts and images and its processor, as CLIPModel and CLIPProcessor, got "
                f"{type(clip).__name__} and {type(processor).__name__}."
            )
        texts = [text] if isinstance(text, str) else text
        if not isinstance(texts, Sequence) or not texts or not all(isinstance(t, str) and t.strip() for t in texts):
            raise InputError(f"`text` must be a text or one per image, got {text!r}.")
        self.clip = clip
        self.prepare = processor_of_tensors(processor.image_processor)
        self.num_cutouts = num_cutouts
        tokens = processor.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt").to(clip.device)
        with torch.no_grad(), evaluating(clip):
            text_embeds = clip.get_text_features(**tokens).pooler_output
        self.text_embeds = F.normalize(text_embeds.float(), dim=-1)  # (1 or B, D)

    def check(self, call: GuidedCall) -> None:
        super().check(call)
        check_channels("text model", self.prepare, call)
        if len(self.text_embeds) not in (1, call.shape[0]):
            raise InputError(
                f"`text` must be one, or one for each of the {call.shape[0]} images, got {len(self.text_embeds)}."
            )

    def log_likelihood(self, clean_images: torch.Tensor, step: GuidedStep) -> torch.Tensor:
        views = [self._cutouts(clean_images, step) for _ in range(self.num_cutouts)] or [self.prepare(clean_images)]
        text_embeds = self.text_embeds.repeat(len(clean_images) // len(self.text_embeds), 1)
        similarities = []
        for view in views:
            with evaluating(self.clip):
                image_embeds = self.clip.get_image_features(pixel_values=view.to(self.clip.dtype)).pooler_output
            similarities.append((F.normalize(image_embeds.float(), dim=-1) * text_embeds.to(view.device)).sum(dim=-1))
        step.cost["classifier"] += len(views)
        return torch.stack(similarities).mean(dim=0)

    def _cutouts(self, images: torch.Tensor, step: GuidedStep) -> torch.Tensor:
        """A square of each image, of a random side and place, as CLIP takes them."""
        height, width = images.shape[2:]
        uniform = torch.special.ndtr(step.randn((len(step.sample), 3))).tolist()
        cutouts = []
        for i, image in enumerate(images):
            of_side, of_top, of_left = uniform[i % len(uniform)]
            side = round(min(height, width) * (1 + of_side) / 2)
            top, left = round((height - side) * of_top), round((width - side) * of_left)
            cutouts.append(self.prepare(image[None, :, top : top + side, left : left + side]))
        return torch.cat(cutouts)
