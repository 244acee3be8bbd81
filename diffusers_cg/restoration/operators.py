"""Operators whose singular values are known, so that pseudo-inverses are exact."""

import logging
import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch.nn import functional as F

from diffusers_cg.errors import InputError
from diffusers_cg.restoration.linear_operator import SpectralFunction, SpectralOperator


logger = logging.getLogger(__name__)


class Mask(SpectralOperator):
    """Some pixels are known, the others are not: y is the image with zeros in their place.

    Args:
        known (`torch.Tensor`): 1 or True where a pixel is known; (H, W), (1 or C, H, W) or, one per image, (B, 1 or C, H, W).
    """

    def __init__(self, known: torch.Tensor):
        super().__init__()
        known = torch.as_tensor(known)
        if not 2 <= known.ndim <= 4 or not bool(((known == 0) | (known == 1)).all()):
            raise InputError(
                "`known` must hold 1 where a pixel is known and 0 elsewhere, of shape (H, W), (C, H, W) or (B, C, H, W), got "
                f"{tuple(known.shape)} with values from {known.min().item():g} to {known.max().item():g}."
            )
        with torch.inference_mode(False):  # whose tensors could not take part in a gradient
            self.known = known.bool().clone().reshape(*(1,) * (4 - known.ndim), *known.shape)
        for index, share in enumerate(self.known.float().mean(dim=(1, 2, 3)).tolist()):
            if share == 1:
                logger.warning(
                    f"Mask {index} leaves nothing to restore: all pixels are known, and the image stays as it is."
                )
            elif share == 0:
                logger.warning(
                    f"Mask {index} leaves nothing to go by: no pixel is known, and the image is drawn anew."
                )

    def at(self, images: torch.Tensor) -> torch.Tensor:
        """`known` where the images are, (1 or B, 1 or C, H, W)."""
        try:
            fits = torch.broadcast_shapes(self.known.shape, images.shape) == images.shape
        except RuntimeError:
            fits = False
        if not fits:
            raise InputError(
                f"`known` of a mask is of shape {tuple(self.known.shape)}, but images of {tuple(images.shape)}."
            )
        return self.known.to(images.device)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.where(self.at(images), images, 0.0)

    def adjoint(self, measurement: torch.Tensor) -> torch.Tensor:
        return self.forward(measurement)

    def spectral(self, measurement: torch.Tensor, function: SpectralFunction) -> torch.Tensor:
        return self.forward(measurement) * function(self.at(measurement).to(measurement))

    def proximal(self, images: torch.Tensor, measurement: torch.Tensor, damping: float = 0.0) -> torch.Tensor:
        """Without damping, what is known is put in bit for bit."""
        return torch.where(self.at(images), (measurement + damping * images) / (1 + damping), images)

    def observed(self, measurement: torch.Tensor) -> torch.Tensor:
        return self.forward(measurement)


class BoxDownsampling(SpectralOperator):
    """Means of squares of pixels, (B, C, H / factor, W / factor).

    Args:
        factor (`int`): How many times smaller each side is.
    """

    def __init__(self, factor: int):
        super().__init__()
        self.factor = check_factor(factor)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        check_divides(self.factor, images)
        return F.avg_pool2d(images, self.factor)

    def adjoint(self, measurement: torch.Tensor) -> torch.Tensor:
        rows = measurement.repeat_interleave(self.factor, dim=-2)
        return rows.repeat_interleave(self.factor, dim=-1) / self.factor**2

    def spectral(self, measurement: torch.Tensor, function: SpectralFunction) -> torch.Tensor:
        return measurement * function(measurement.new_tensor(self.factor**-2))


class Grayscale(SpectralOperator):
    """One channel, the weighted sum of the colors, (B, 1, H, W).

    Args:
        weights (sequence of `float`): Of each channel; by default luma, as PIL makes images gray. DDNM's are 1/3 each.
    """

    def __init__(self, weights: Sequence[float] = (0.299, 0.587, 0.114)):
        super().__init__()
        with torch.inference_mode(False):
            self.weights = torch.tensor(weights, dtype=torch.float32).reshape(1, -1, 1, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if images.shape[1] != self.weights.shape[1]:
            raise InputError(
                f"Grayscale has weights of {self.weights.shape[1]} channels, but the images have {images.shape[1]}."
            )
        return (self.weights.to(images) * images).sum(dim=1, keepdim=True)

    def adjoint(self, measurement: torch.Tensor) -> torch.Tensor:
        return self.weights.to(measurement) * measurement

    def spectral(self, measurement: torch.Tensor, function: SpectralFunction) -> torch.Tensor:
        return measurement * function(self.weights.square().sum().to(measurement))


class BicubicDownsampling(SpectralOperator):
    """Bicubic downsampling against aliasing, as PIL's and torch's (`antialias=True`): A x = R_H x R_W^T, R = U S V^T.

    Args:
        factor (`int`): How many times smaller each side is.
    """

    def __init__(self, factor: int):
        super().__init__()
        self.factor = check_factor(factor)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        check_divides(self.factor, images)
        of_rows, of_columns = (bicubic_matrix(side, self.factor)[0].to(images) for side in images.shape[-2:])
        return of_rows @ images @ of_columns.T

    def adjoint(self, measurement: torch.Tensor) -> torch.Tensor:
        sides = (side * self.factor for side in measurement.shape[-2:])
        of_rows, of_columns = (bicubic_matrix(side, self.factor)[0].to(measurement) for side in sides)
        return of_rows.T @ measurement @ of_columns

    def spectral(self, measurement: torch.Tensor, function: SpectralFunction) -> torch.Tensor:
        sides = (side * self.factor for side in measurement.shape[-2:])
        (_, u_rows, s_rows), (_, u_columns, s_columns) = (
            [part.to(measurement) for part in bicubic_matrix(side, self.factor)] for side in sides
        )
        factors = function((s_rows[:, None] * s_columns).square())
        return u_rows @ (factors * (u_rows.T @ measurement @ u_columns)) @ u_columns.T


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def bicubic_matrix(side: int, factor: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """R (side / factor, side), which takes a row of pixels to fewer, and its U and S, float32.

    Keys' cubic kernel with a = -1/2, stretched by the factor; weights at the border add up to one.
    """
    centers = (torch.arange(side // factor, dtype=torch.float64) + 0.5) * factor - 0.5
    d = (centers[:, None] - torch.arange(side, dtype=torch.float64)).abs() / factor
    near, far = 1.5 * d**3 - 2.5 * d**2 + 1, -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
    weights = torch.where(d < 1, near, torch.where(d < 2, far, 0.0))
    weights = weights / weights.sum(dim=1, keepdim=True)
    u, s, _ = torch.linalg.svd(weights, full_matrices=False)
    return weights.float(), u.float(), s.float()


class Blur(SpectralOperator):
    """Each channel convolved with a kernel about its middle pixel; images go on at the opposite border (circular).

    The singular values are the absolute values of the kernel's Fourier transform. Blur takes nearly all of high frequencies,
    and the pseudo-inverse multiplies what noise is in them, be it of rounding to 8 bits, by one over the singular value.

    Args:
        kernel (`torch.Tensor`): (rows, columns), taken as it is.
        rtol (`float`): As in [`SpectralOperator`]; DDNM's by default.
    """

    def __init__(self, kernel: torch.Tensor, rtol: float = 0.03):
        super().__init__()
        kernel = torch.as_tensor(kernel, dtype=torch.float32)
        if kernel.ndim != 2 or not bool(kernel.isfinite().all()) or not bool(kernel.any()):
            raise InputError(
                f"`kernel` must be finite numbers, not all 0, of shape (rows, columns), got {tuple(kernel.shape)}."
            )
        self.kernel = kernel
        self.rtol = rtol

    def transfer(self, images: torch.Tensor) -> torch.Tensor:
        """The kernel's Fourier transform, (H, W / 2 + 1), complex64."""
        device = images.device
        rows, columns = (
            (torch.arange(length, device=device) - length // 2) % side
            for length, side in zip(self.kernel.shape, images.shape[-2:])
        )
        about_origin = torch.zeros(images.shape[-2:], device=device)
        about_origin.index_put_((rows[:, None], columns), self.kernel.to(device), accumulate=True)
        return torch.fft.rfft2(about_origin)

    def multiplied(self, images: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        return torch.fft.irfft2(factors * torch.fft.rfft2(images), s=images.shape[-2:])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.multiplied(images, self.transfer(images))

    def adjoint(self, measurement: torch.Tensor) -> torch.Tensor:
        return self.multiplied(measurement, self.transfer(measurement).conj())

    def spectral(self, measurement: torch.Tensor, function: SpectralFunction) -> torch.Tensor:
        return self.multiplied(measurement, function(self.transfer(measurement).abs().square()))


class GaussianBlur(Blur):
    """Blur by a Gaussian, cut off at four standard deviations.

    Args:
        sigma (`float`): Standard deviation in pixels.
        rtol: as in [`Blur`].
    """

    def __init__(self, sigma: float, rtol: float = 0.03):
        if not 0 < sigma < math.inf:
            raise InputError(f"`sigma` must be a number of pixels above 0, got {sigma!r}.")
        radius = math.ceil(4 * sigma)
        line = torch.exp(-torch.arange(-radius, radius + 1, dtype=torch.float64).square() / (2 * sigma**2))
        line = line / line.sum()
        super().__init__(line[:, None] * line, rtol)
        self.sigma = sigma


class MotionBlur(Blur):
    """Blur by a steady motion along a straight line; other paths are a [`Blur`] by their kernel.

    Args:
        length (`float`): Of the path in pixels.
        angle (`float`): Of the path in degrees; 0 is along the rows, 90 upwards.
        rtol: as in [`Blur`].
    """

    def __init__(self, length: float, angle: float = 0.0, rtol: float = 0.03):
        if not 0 < length < math.inf:
            raise InputError(f"`length` must be a number of pixels above 0, got {length!r}.")
        radius = math.ceil(length / 2) + 1
        way = torch.linspace(-length / 2, length / 2, 32 * radius + 1, dtype=torch.float64)[:, None]
        pixels = torch.arange(-radius, radius + 1)
        of_rows = (1 - (pixels + way * math.sin(math.radians(angle))).abs()).clamp(min=0)  # bilinear, (points, pixels)
        of_columns = (1 - (pixels - way * math.cos(math.radians(angle))).abs()).clamp(min=0)
        super().__init__(of_rows.T @ of_columns / len(way), rtol)
        self.length, self.angle = length, angle


def check_factor(factor: int) -> int:
    """`factor`, a whole number above 1.

    Raises:
        InputError: if it is none.
    """
    if isinstance(factor, bool) or not isinstance(factor, int) or factor < 2:
        raise InputError(f"`factor` must be a whole number of at least 2, got {factor!r}.")
    return factor


def check_divides(factor: int, images: torch.Tensor) -> None:
    """Raises `InputError` unless both sides of the images (B, C, H, W) are multiples of the factor."""
    if any(side % factor for side in images.shape[-2:]):
        raise InputError(
            f"Downsampling by {factor} needs images whose sides are multiples of it, got {tuple(images.shape[-2:])}."
        )
