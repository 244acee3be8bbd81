"""A linear operator by its name: what the command's `--operator NAME OPTION=VALUE ...` means."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_type_hints

from diffusers_cg.errors import InputError
from diffusers_cg.generation.typed_words import nearest, read, stated, typed
from diffusers_cg.restoration import (
    BicubicDownsampling,
    BoxDownsampling,
    GaussianBlur,
    Grayscale,
    LinearOperator,
    MotionBlur,
)


OPERATORS = {
    each.__name__: each for each in (BoxDownsampling, BicubicDownsampling, GaussianBlur, MotionBlur, Grayscale)
}
"""What numbers alone describe."""


@dataclass(frozen=True)
class OperatorChoice:
    """A linear operator, and what it is given.

    Args:
        name (`str`): One of [`OPERATORS`].
        options (`dict`): Arguments of its class.
    """

    name: str
    options: dict[str, Any]

    @classmethod
    def parse(cls, words: Sequence[str]) -> "OperatorChoice":
        """That of a name and of words `OPTION=VALUE`.

        Raises:
            InputError: if there is no such operator, or it does not take an option or its value.
        """
        name, *options = words
        if name not in OPERATORS:
            raise InputError(
                f"There is no operator {name!r}{nearest(name, OPERATORS)}: there are {', '.join(OPERATORS)}."
            )
        parameters = inspect.signature(OPERATORS[name]).parameters
        hints = get_type_hints(OPERATORS[name].__init__)
        fields = {
            word: (hints[word], ... if each.default is each.empty else each.default)
            for word, each in parameters.items()
        }
        values = read(typed(name, fields), stated(name, options), name)
        return cls(name, values.model_dump(exclude_unset=True))

    @property
    def settings(self) -> dict[str, Any]:
        """For `sampling.json`."""
        return {"name": self.name, **self.options}

    def operator(self) -> LinearOperator:
        """The operator itself."""
        return OPERATORS[self.name](**self.options)
