"""What was measured of images: linear operators, their adjoints and pseudo-inverses."""

from diffusers_cg.restoration.linear_operator import FunctionOperator, LinearOperator, SpectralOperator, check_adjoint
from diffusers_cg.restoration.operators import (
    BicubicDownsampling,
    Blur,
    BoxDownsampling,
    GaussianBlur,
    Grayscale,
    Mask,
    MotionBlur,
)


__all__ = [
    "BicubicDownsampling",
    "Blur",
    "BoxDownsampling",
    "FunctionOperator",
    "GaussianBlur",
    "Grayscale",
    "LinearOperator",
    "Mask",
    "MotionBlur",
    "SpectralOperator",
    "check_adjoint",
]
