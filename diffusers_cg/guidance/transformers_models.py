"""Models of `transformers` that look at images, as differentiable functions of images in [-1, 1]."""

import copy
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from diffusers_cg.errors import InputError
from diffusers_cg.guidance.classifier_guidance import evaluating


MODES = {0: "nearest", 2: "bilinear"}
"""`interpolate`'s names of PIL's filters; Lanczos' and any other is bicubic here."""


def image_classifier(
    model: nn.Module, processor, softplus_beta: float | None = None
) -> Callable[[torch.Tensor], torch.Tensor]:
    """A `transformers` image classifier as a function of images (B, C, H, W) in [-1, 1] to logits, differentiable.

    Args:
        model (`PreTrainedModel`): As of `AutoModelForImageClassification`; not changed.
        processor (`BaseImageProcessor`): As of `AutoImageProcessor`; what it does to images is done to these.
        softplus_beta (`float`, *optional*): Takes Softplus of this sharpness for every ReLU, in a copy of the model: a
            smoother gradient (Ma et al., 2024, take 3).
    """
    num_classes = getattr(getattr(model, "config", None), "num_labels", None)
    if not isinstance(model, nn.Module) or num_classes is None:
        raise InputError(
            f"A model of AutoModelForImageClassification is needed, got {type(model).__name__}: pass any other function of "
            "images to logits to CleanClassifierGuidance as it is."
        )
    if softplus_beta is not None:
        model = with_softplus(model, softplus_beta)
    prepare = processor_of_tensors(processor)

    def classify(images: torch.Tensor) -> torch.Tensor:
        with evaluating(model):
            return model(pixel_values=prepare(images).to(model.dtype)).logits

    classify.num_classes = num_classes
    classify.num_channels = prepare.num_channels
    return classify


def with_softplus(model: nn.Module, beta: float) -> nn.Module:
    """A copy of the model whose every ReLU is a Softplus of this sharpness."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.Softplus(beta=beta))
    return model


def processor_of_tensors(processor) -> Callable[[torch.Tensor], torch.Tensor]:
    """What a `transformers` image processor does to 8-bit images, as a differentiable function of images (B, C, H, W) in [-1, 1].

    It resizes, crops, and normalises each channel; an image of one channel is repeated.
    """
    if not hasattr(processor, "image_mean"):
        raise InputError(
            f"An image processor of transformers is needed, as of AutoImageProcessor, got {type(processor).__name__}."
        )
    mean = torch.tensor(processor.image_mean if processor.do_normalize else [0.0] * len(processor.image_mean))
    std = torch.tensor(processor.image_std if processor.do_normalize else [1.0] * len(processor.image_mean))
    white = 255 * processor.rescale_factor if processor.do_rescale else 255

    def prepare(images: torch.Tensor) -> torch.Tensor:
        if images.shape[1] == 1:
            images = images.expand(-1, len(mean), -1, -1)
        resized, cropped = resized_and_cropped(processor, *images.shape[2:])
        if resized != images.shape[2:]:
            mode = MODES.get(int(processor.resample), "bicubic")
            smooth = {} if mode == "nearest" else {"align_corners": False, "antialias": True}
            images = F.interpolate(images, resized, mode=mode, **smooth).clamp(-1, 1)
        top, left = ((side - kept) // 2 for side, kept in zip(resized, cropped))
        images = images[..., top : top + cropped[0], left : left + cropped[1]]
        by_channel = (-1, 1, 1)
        return (white * (images + 1) / 2 - mean.to(images).reshape(by_channel)) / std.to(images).reshape(by_channel)

    prepare.num_channels = len(mean)
    return prepare


def resized_and_cropped(processor, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Height and width to which a processor resizes an image, and those which it cuts from its middle."""
    size, short = processor.size, processor.size.shortest_edge
    crop_pct = getattr(processor, "crop_pct", None)  # of ConvNeXt's processor, which ResNets have, too
    if not processor.do_resize:
        resized = (height, width)
    elif short is None:
        resized = (size.height, size.width)
    elif crop_pct is not None and short >= 384:
        resized = (short, short)
    else:
        to_short = int(short / crop_pct) if crop_pct is not None else short
        resized = tuple(int(to_short * side / min(height, width)) for side in (height, width))
    if crop_pct is not None and processor.do_resize:
        return resized, (short, short)
    if getattr(processor, "do_center_crop", False):
        return resized, (processor.crop_size.height, processor.crop_size.width)
    return resized, resized
