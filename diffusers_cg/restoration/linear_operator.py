"""Linear operators on images, y = A x: what methods of restoration ask of them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch

from diffusers_cg.errors import InputError


SpectralFunction = Callable[[torch.Tensor], torch.Tensor]
"""Squared singular values s^2 of an operator -> a factor for each."""


class LinearOperator(ABC):
    """Base of linear operators; a subclass overrides [`forward`], and what else it knows better.

    Images x are (B, C, H, W) in [-1, 1], measurements y = A x of any shape (B, ...), in whatever range A leads to; float32. An
    operator takes each image by itself, and works where its input is.

    Args:
        image_shape (`tuple[int, int, int]`, *optional*): (C, H, W) of the images; needed where the adjoint is not overridden.
    """

    def __init__(self, image_shape: Sequence[int] | None = None):
        self.image_shape = None if image_shape is None else tuple(image_shape)

    @abstractmethod
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """A x."""

    def adjoint(self, measurement: torch.Tensor) -> torch.Tensor:
        """A^T y, (B, C, H, W): by autograd, unless a subclass knows better."""
        if self.image_shape is None:
            raise InputError(
                f"{self.name} has no `adjoint`, and to find it by autograd the images' shape is needed: pass "
                "`image_shape=(channels, height, width)` to its constructor."
            )
        wanted = torch.is_grad_enabled()
        with torch.enable_grad():
            zeros = measurement.new_zeros(len(measurement), *self.image_shape).requires_grad_(True)
            measured = self.forward(zeros)
            if not measured.requires_grad:
                raise InputError(
                    f"{self.name} has no gradient by which to find its adjoint: compute what it measures in PyTorch, with no "
                    "detach(), no_grad() or NumPy in between, or give it an `adjoint`."
                )
            return torch.autograd.grad(measured, zeros, measurement, create_graph=wanted)[0]

    def pseudo_inverse(self, measurement: torch.Tensor, damping: float = 0.0) -> torch.Tensor:
        """(A^T A + damping I)^-1 A^T y = A^T (A A^T + damping I)^-1 y, (B, C, H, W); at 0 the pseudo-inverse A^+ y.

        By conjugate gradients, until the gradient of |A x - y|^2 + damping |x|^2 is 1e-5 of that at x = 0
        ([`conjugate_gradients`]), unless a subclass knows better.
        """
        return conjugate_gradients(self, measurement, damping)

    def proximal(self, images: torch.Tensor, measurement: torch.Tensor, damping: float = 0.0) -> torch.Tensor:
        """argmin_x |y - A x|^2 + damping |x - images|^2, (B, C, H, W); at 0 the nearest image of which A x = y."""
        return images + self.pseudo_inverse(measurement - self.forward(images), damping)

    def observed(self, measurement: torch.Tensor) -> torch.Tensor:
        """The measurement, with zeros where it has entries that the operator does not measure."""
        return measurement

    @property
    def name(self) -> str:
        """What errors call it."""
        return type(self).__name__


class SpectralOperator(LinearOperator):
    """Base of operators whose singular values are known, A = U S V^T: their pseudo-inverse is exact.

    Attributes:
        rtol (`float`): Singular values of at most `rtol` times the largest one count as zero in the pseudo-inverse.
    """

    rtol: float = 1e-3

    @abstractmethod
    def spectral(self, measurement: torch.Tensor, function: SpectralFunction) -> torch.Tensor:
        """f(A A^T) y = U f(S^2) U^T y, of the measurement's shape."""

    def pseudo_inverse(self, measurement: torch.Tensor, damping: float = 0.0) -> torch.Tensor:
        """As of [`LinearOperator`]. A A^+ A x differs from A x by at most `rtol` |A| |x|."""
        if damping > 0:
            return self.adjoint(self.spectral(measurement, lambda s2: 1 / (s2 + damping)))
        return self.adjoint(self.spectral(measurement, lambda s2: self.where_measured(s2, 1 / s2)))

    def where_measured(self, s2: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
        """The factors, 0 where the squared singular values `s2` count as zero."""
        return torch.where(s2 > self.rtol**2 * s2.max(), factor, torch.zeros_like(s2))


class FunctionOperator(LinearOperator):
    """A plain linear function of images, and its adjoint where it is known.

    Args:
        function (callable): x -> A x, (B, C, H, W) -> (B, ...), in PyTorch.
        adjoint_function (callable, *optional*): y -> A^T y; by autograd otherwise.
        image_shape (`tuple[int, int, int]`, *optional*): (C, H, W); needed without `adjoint_function`.
    """

    def __init__(
        self,
        function: Callable[[torch.Tensor], torch.Tensor],
        adjoint_function: Callable[[torch.Tensor], torch.Tensor] | None = None,
        image_shape: Sequence[int] | None = None,
    ):
        super().__init__(image_shape)
        self.function, self.adjoint_function = function, adjoint_function

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.function(images)

    def adjoint(self, measurement: torch.Tensor) -> torch.Tensor:
        return super().adjoint(measurement) if self.adjoint_function is None else self.adjoint_function(measurement)

    @property
    def name(self) -> str:
        return getattr(self.function, "__name__", type(self.function).__name__)


def conjugate_gradients(
    operator: LinearOperator,
    measurement: torch.Tensor,
    damping: float,
    tolerance: float = 1e-5,
    max_iterations: int = 300,
) -> torch.Tensor:
    """(A^T A + damping I)^-1 A^T y, (B, C, H, W), by CGLS (Hestenes and Stiefel, 1952).

    From zero, so that without damping it finds the solution of least norm. Each image stops by itself, and does not depend on
    the others.
    """
    residual, gradient = measurement, operator.adjoint(measurement)  # y - A x;  A^T (y - A x) - damping x
    x, direction = torch.zeros_like(gradient), gradient
    squared = first = squared_norm(gradient)  # (B,)
    for _ in range(max_iterations):
        active = squared > tolerance**2 * first
        if not bool(active.any()):
            break
        measured = operator.forward(direction)
        step = squared / (squared_norm(measured) + damping * squared_norm(direction))
        step = torch.where(active, step, 0.0)
        x = x + per_image_of(step, x) * direction
        residual = residual - per_image_of(step, residual) * measured
        gradient = operator.adjoint(residual) - damping * x
        squared, before = torch.where(active, squared_norm(gradient), squared), squared
        growth = torch.where(active, squared / before, 0.0)
        direction = gradient + per_image_of(growth, direction) * direction
    return x


def squared_norm(tensor: torch.Tensor) -> torch.Tensor:
    """|x|^2 of each image, (B,)."""
    return tensor.flatten(1).square().sum(dim=1)


def per_image_of(numbers: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Numbers (B,) as (B, 1, ...), to broadcast over `like`."""
    return numbers.reshape(-1, *(1,) * (like.ndim - 1))


def check_adjoint(
    operator: LinearOperator, shape: Sequence[int], device: torch.device | str = "cpu", tolerance: float = 1e-3
) -> None:
    """Raises `InputError` unless <A x, y> = <x, A^T y> for random x and y: the adjoint is that of `forward`, and it is linear.

    Args:
        operator (`LinearOperator`).
        shape (sequence of `int`): (B, C, H, W) of images that it takes.
        device: Where.
        tolerance (`float`): How far apart the two may be, as a part of |A x| for y of unit variance; random x and y of a wrong
            adjoint differ by |A x - B^T x|, whatever the size of the images.
    """
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        x = torch.randn(tuple(shape), generator=generator).to(device)
        measured = operator.forward(x)
        y = operator.observed(torch.randn(measured.shape, generator=generator).to(measured))
        adjoint = operator.adjoint(y)
        if adjoint.shape != x.shape:
            raise InputError(
                f"The adjoint of {operator.name} must lead to the images' shape {tuple(x.shape)}, got {tuple(adjoint.shape)}."
            )
        # on the CPU, since some devices have no float64
        x, y, measured, adjoint = (each.cpu().double() for each in (x, y, measured, adjoint))
        of_forward = (measured * y).flatten(1).sum(dim=1)
        of_adjoint = (x * adjoint).flatten(1).sum(dim=1)
        off = (of_forward - of_adjoint).abs() / squared_norm(measured).sqrt().clamp(min=1e-12)
        if not bool((off <= tolerance).all()):
            raise InputError(
                f"The adjoint of {operator.name} does not match its `forward` (or that is not linear): <A x, y> is "
                f"{of_forward[off.argmax()].item():.6g}, but <x, A^T y> {of_adjoint[off.argmax()].item():.6g}, off by "
                f"{off.max().item():.2g} of |A x| where {tolerance:g} is allowed; leave the adjoint out and it is found by "
                "autograd."
            )
