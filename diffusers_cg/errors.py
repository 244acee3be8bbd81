"""How a command fails: one sentence, exit status 2, no traceback."""

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec

from safetensors import SafetensorError

from diffusers_cg.extras import MissingExtraError
from diffusers_cg.hub.hub_errors import hub_sentence


P = ParamSpec("P")


class UserError(Exception):
    """Something that the person at the keyboard can put right. Its text is one clear sentence."""


@contextmanager
def user_errors() -> Iterator[None]:
    """Turns a Python error, raised on what the user passed, into a [`UserError`]."""
    try:
        yield
    except (ValueError, TypeError, NotImplementedError) as error:
        raise UserError(str(error)) from error


def command(main: Callable[P, None]) -> Callable[P, None]:
    """Wraps a command's main function: user errors and those of the file system end it with exit status 2."""

    @functools.wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            main(*args, **kwargs)
        except MissingExtraError as error:
            sys.exit(_report(str(error)))
        except UserError as error:
            # from a process that loads images, it comes wrapped in that process's traceback
            sys.exit(_report(str(error).rpartition("UserError: ")[2].strip()))
        except OSError as error:
            sys.exit(_report(hub_sentence(error) or file_sentence(error)))
        except SafetensorError as error:  # met the full disk
            sys.exit(_report(str(error)))
        except Exception as error:
            sentence = hub_sentence(error)
            if sentence is None:
                raise
            sys.exit(_report(sentence))

    return wrapped


def file_sentence(error: OSError) -> str:
    """What the file system has against a path."""
    return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"


def _report(sentence: str) -> int:
    sentence = " ".join(sentence.split()).rstrip(".")  # other libraries' take several lines
    print(f"error: {sentence}.", file=sys.stderr, flush=True)
    return 2
