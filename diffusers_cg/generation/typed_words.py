"""Words that a user wrote for the arguments of a class, as values of their types."""

import types
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, Union, get_args, get_origin

import torch
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from diffusers_cg.errors import InputError


class Typed(BaseModel):
    """Base of what is read from words: of the types that its fields have, and nothing beside them."""

    model_config = ConfigDict(
        extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True, ser_json_inf_nan="strings"
    )


def typed(name: str, fields: dict[str, tuple[Any, Any]], base: type[Typed] = Typed) -> type[Typed]:
    """A class of these fields, (type, default or `...`) by name."""
    return create_model(name, __base__=base, **fields)


def stated(name: str, options: Iterable[str]) -> dict[str, Any]:
    """Words `OPTION=VALUE` that follow a name, by option, for [`read`].

    Raises:
        InputError: if one is another.
    """
    words = {}
    for option in options:
        word, sign, value = option.partition("=")
        if not sign:
            raise InputError(f"An option of {name} is a word, = and a value, as in word=2, got {option!r}.")
        try:
            words[word] = yaml.load(value, Loader=yaml.BaseLoader)
        except yaml.YAMLError as error:
            raise InputError(f"{name}: {word}: {value!r} is no value as YAML writes it.") from error
    return words


def read(kind: type[Typed], words: dict[str, Any], where: str) -> Typed:
    """The values that words mean.

    Args:
        kind (`type`): What is read.
        words (`dict`): As they stand: strings, lists and dictionaries of them.
        where (`str`): What the sentence begins with if they mean none.

    Raises:
        InputError: if a word is unknown (the nearest one is said), missing, or of another type.
    """
    for word in words:
        if word not in kind.model_fields:
            raise InputError(
                f"{where} takes no {word!r}{nearest(word, kind.model_fields)}: it takes {', '.join(kind.model_fields)}."
            )
    try:
        return kind(**words)
    except ValidationError as error:
        first = error.errors()[0]
        word = str(first["loc"][0])
        if first["type"] == "missing":
            raise InputError(f"{where} needs {word!r}.") from None
        said = first["msg"].removeprefix("Value error, ").replace("Input should", "must")
        raise InputError(f"{where}: {word}: {said}, got {first['input']!r}.") from None


def of_one_image(annotation: Any) -> Any:
    """The type of an argument that may be one for all images or one per image, where it is one for all."""
    if get_origin(annotation) not in (Union, types.UnionType):
        return annotation
    kinds = [kind for kind in get_args(annotation) if isinstance(kind, type) and kind is not torch.Tensor]
    return Union[tuple(kind for kind in kinds if get_origin(kind) is None)]  # noqa: UP007


def nearest(word: str, words: Iterable[str]) -> str:
    """The known word that is meant, to be said after the one that is not known; nothing if none is near."""
    return "".join(f" (the nearest is {near})" for near in get_close_matches(str(word), list(words), n=1))
