"""How a command fails: one sentence and exit status 2 for what a user can put right, a traceback for a bug."""

import functools
import io
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from diffusers_cg_cli.settings import Settings, parse


P, R, S = ParamSpec("P"), TypeVar("R"), TypeVar("S", bound=Settings)


def command(main: Callable[P, R]) -> Callable[P, R]:
    """Wraps a command's main function: what the user, the file system or the Hub is the cause of ends it in a sentence."""

    @functools.wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        if isinstance(sys.stdout, io.TextIOWrapper):
            # as of stderr: not every path can be written; lines stand in a log at once, and before the error that they lead to
            sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)
        try:
            return main(*args, **kwargs)
        except Exception as error:
            sentence = sentence_for(error)
            if sentence is None:
                raise
            sentence = " ".join(sentence.split()).rstrip(".")  # other libraries' take several lines
            print(f"error: {sentence}.", file=sys.stderr, flush=True)
            sys.exit(2)

    return wrapped


def run_script(main: Callable[[S], None], settings_class: type[S], description: str | None = None) -> None:
    """Runs a script's main function with the settings that its command line states."""
    command(lambda: main(parse(settings_class, description=description)))()


def sentence_for(error: Exception) -> str | None:
    """What to tell the user of an error; None for a bug."""
    # here, for they bring torch, which --help does without
    from safetensors import SafetensorError

    from diffusers_cg.errors import InputError, MissingExtraError
    from diffusers_cg.hub.hub_errors import hub_sentence

    if isinstance(error, InputError | MissingExtraError | SafetensorError):  # the last met a full disk
        return str(error)
    from_hub = hub_sentence(error)
    if from_hub is None and isinstance(error, OSError):
        return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
    return from_hub
