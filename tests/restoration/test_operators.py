"""Operators: adjoints, pseudo-inverses and proximal points, against each other and against dense matrices."""

import logging

import pytest
import torch
from tiny import images
from torch.nn import functional as F

from diffusers_cg.errors import InputError
from diffusers_cg.restoration import (
    BicubicDownsampling,
    Blur,
    BoxDownsampling,
    FunctionOperator,
    GaussianBlur,
    Grayscale,
    LinearOperator,
    Mask,
    MotionBlur,
    check_adjoint,
)


SHAPE = (3, 12, 8)
KNOWN = images(2, 1, SHAPE[1:], seed=3) > 0
OPERATORS = {
    "mask": Mask(KNOWN[0, 0]),
    "mask per image": Mask(KNOWN),
    "box": BoxDownsampling(4),
    "bicubic": BicubicDownsampling(2),
    "gaussian": GaussianBlur(0.9, rtol=1e-3),
    "motion": MotionBlur(5, angle=30, rtol=1e-3),
    "kernel": Blur(torch.rand(4, 3, generator=torch.Generator().manual_seed(0)) / 6, rtol=1e-3),
    "gray": Grayscale(),
}
EVERY_OPERATOR = pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS.keys())
X, Y_SEED = images(2, *SHAPE[:1], SHAPE[1:], seed=1), 2


def measurements(operator):
    return torch.randn(operator.forward(X).shape, generator=torch.Generator().manual_seed(Y_SEED))


def of_function(operator):
    """The same operator, of which nothing is known but what it does."""
    return FunctionOperator(operator.forward, image_shape=SHAPE)


def close(actual, expected, tolerance=1e-5):
    return torch.allclose(actual, expected, rtol=tolerance, atol=tolerance)


@EVERY_OPERATOR
def test_the_adjoint_is_that_of_forward(operator):
    check_adjoint(operator, X.shape)
    y = measurements(operator)
    assert close(operator.adjoint(y), of_function(operator).adjoint(y))


@EVERY_OPERATOR
def test_pseudo_inverse(operator):
    """A A^+ A = A, A^+ A A^+ = A^+, and A^+ A is symmetric."""
    y = operator.forward(X)
    inverse = operator.pseudo_inverse(y)
    assert close(operator.forward(inverse), y, 1e-4)
    assert close(operator.pseudo_inverse(operator.forward(inverse)), inverse, 1e-3)
    other = images(2, 3, SHAPE[1:], seed=5)
    product = (inverse * other).sum(), (X * operator.pseudo_inverse(operator.forward(other))).sum()
    assert product[0].item() == pytest.approx(product[1].item(), rel=1e-3, abs=1e-2)


@EVERY_OPERATOR
@pytest.mark.parametrize("damping", [0.05, 2.0])
def test_the_proximal_point_solves_its_equation(operator, damping):
    """A^T (A x - y) + damping (x - images) = 0."""
    y = operator.observed(measurements(operator))
    x = operator.proximal(X, y, damping)
    assert close(operator.adjoint(operator.forward(x) - y) + damping * (x - X), torch.zeros_like(x))


@EVERY_OPERATOR
def test_conjugate_gradients_come_to_the_same(operator):
    y = operator.observed(measurements(operator))
    assert close(of_function(operator).pseudo_inverse(y, 0.05), operator.pseudo_inverse(y, 0.05), 1e-3)
    if not isinstance(operator, Blur):  # of which the smallest singular values take more iterations
        assert close(of_function(operator).pseudo_inverse(y), operator.pseudo_inverse(y), 1e-3)


@pytest.mark.parametrize("name", [name for name in OPERATORS if name != "mask per image"])
@pytest.mark.parametrize("known", [True, False])
def test_an_image_does_not_depend_on_the_others(name, known):
    operator = OPERATORS[name]
    operator = operator if known else of_function(operator)
    far_off = torch.cat([X[:1], 1000 * X[1:]])
    for damping in (0.0, 0.1):
        alone, both = (operator.pseudo_inverse(operator.forward(x), damping) for x in (X[:1], far_off))
        assert close(both[:1], alone)


@EVERY_OPERATOR
def test_functions_of_the_singular_values(operator):
    """f(A A^T) y: with f(s^2) = s^4 it is A A^T A A^T y."""
    y = operator.observed(measurements(operator))
    twice = operator.forward(operator.adjoint(operator.forward(operator.adjoint(y))))
    assert close(operator.spectral(y, lambda s2: s2**2), twice)


@pytest.mark.parametrize("factor", [2, 4])
def test_bicubic_downsampling_is_that_of_torch(factor):
    x = images(2, 3, (24, 16))
    theirs = F.interpolate(x, scale_factor=1 / factor, mode="bicubic", antialias=True)
    assert close(BicubicDownsampling(factor).forward(x), theirs)


def test_blur_is_a_circular_convolution():
    x, kernel = images(1, 1, (9, 9)), OPERATORS["kernel"].kernel
    blurred = Blur(kernel).forward(x)
    expected = sum(kernel[i, j] * x.roll((i - 2, j - 1), dims=(-2, -1)) for i in range(4) for j in range(3))
    assert close(blurred, expected)


def test_gaussian_blur_spreads_by_sigma():
    kernel = GaussianBlur(1.5).kernel.double()
    places = torch.arange(len(kernel), dtype=torch.float64) - len(kernel) // 2
    assert kernel.sum().item() == pytest.approx(1)
    assert (kernel.sum(dim=0) * places**2).sum().sqrt().item() == pytest.approx(1.5, rel=0.01)


def test_motion_blur_goes_along_its_angle():
    level, up = MotionBlur(5, 0).kernel, MotionBlur(5, 90).kernel
    assert close(level.T, up) and level.sum().item() == pytest.approx(1, rel=1e-5)
    middle = len(level) // 2
    assert close(level[middle].sum(), torch.tensor(1.0)) and (level[middle, middle - 2 : middle + 3] > 0.15).all()
    slanted = MotionBlur(5, 45).kernel
    assert slanted[middle - 1, middle + 1] > 5 * slanted[middle - 1, middle - 1], "up is up"


def test_grayscale_is_that_of_pil():
    assert close(Grayscale().forward(torch.tensor([1.0, 0.0, 0.0]).reshape(1, 3, 1, 1)), torch.tensor(0.299))


def test_a_mask_takes_the_known_bit_for_bit():
    operator, y = OPERATORS["mask"], images(2, 3, SHAPE[1:], seed=8)
    x = operator.proximal(1e6 * X, y)
    assert torch.equal(x[:, :, KNOWN[0, 0]], y[:, :, KNOWN[0, 0]])
    assert torch.equal(x[:, :, ~KNOWN[0, 0]], 1e6 * X[:, :, ~KNOWN[0, 0]])
    y[:, :, ~KNOWN[0, 0]] = torch.nan
    assert operator.observed(y).isfinite().all()


def test_a_full_or_an_empty_mask_is_said(caplog):
    with caplog.at_level(logging.WARNING):
        Mask(torch.ones(4, 4))
        Mask(torch.zeros(2, 1, 4, 4))
        Mask(KNOWN)
    assert [record.message.split(" leaves")[0] for record in caplog.records] == ["Mask 0", "Mask 0", "Mask 1"]


class Skewed(LinearOperator):
    """Its adjoint is nearly right."""

    def forward(self, images):
        return images.roll(1, dims=-1)

    def adjoint(self, measurement):
        return measurement.roll(1, dims=-1)


@pytest.mark.parametrize("side", [4, 128])
@pytest.mark.parametrize(
    "operator",
    [
        Skewed(),
        FunctionOperator(lambda x: 2 * x, lambda y: 2.01 * y),
        FunctionOperator(lambda x: x.square(), image_shape=(1, 4, 4)),
        FunctionOperator(lambda x: x + 0.01, lambda y: y),
    ],
    ids=["another", "scaled", "not linear", "affine"],
)
def test_a_wrong_adjoint_is_refused(operator, side):
    operator.image_shape = (1, side, side)
    with pytest.raises(InputError, match=r"does not match its `forward`.*off by .* of \|A x\|"):
        check_adjoint(operator, (2, 1, side, side))


@pytest.mark.parametrize("make", [lambda: Mask(torch.ones(20, 20)), lambda: BicubicDownsampling(5), Grayscale])
def test_operators_of_inference_mode_have_gradients_after_it(make):
    with torch.inference_mode():
        operator = make()
        operator.forward(images(1, 3, 20))
    clean = images(1, 3, 20).requires_grad_(True)
    operator.forward(clean).square().sum().backward()
    assert clean.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: FunctionOperator(torch.Tensor.detach, image_shape=(1, 4, 4)).adjoint(images(1, 1, 4)),
            "no gradient by which",
        ),
        (lambda: Mask(torch.full((4, 4), 0.5)), "must hold 1 where"),
        (lambda: Mask(torch.ones(4, 6)).forward(images(1, 1, 4)), "of shape"),
        (lambda: BoxDownsampling(1), "whole number of at least 2"),
        (lambda: BoxDownsampling(3).forward(images(1, 1, 4)), "multiples"),
        (lambda: BicubicDownsampling(3).forward(images(1, 1, 4)), "multiples"),
        (lambda: Grayscale().forward(images(1, 1, 4)), "weights of 3 channels"),
        (lambda: GaussianBlur(0), "above 0"),
        (lambda: MotionBlur(-1), "above 0"),
        (lambda: Blur(torch.zeros(3, 3)), "not all 0"),
        (lambda: FunctionOperator(lambda x: x).adjoint(images(1)), "image_shape"),
        (lambda: check_adjoint(FunctionOperator(lambda x: x, lambda y: y[:1]), (2, 1, 4, 4)), "images' shape"),
    ],
)
def test_bad_input(make, said):
    with pytest.raises(InputError, match=said) as refused:
        make()
    assert str(refused.value).endswith(".")
