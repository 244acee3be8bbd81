"""The command `diffusers-cg`: thin; what it calls can be called from Python."""

import sys
from collections.abc import Callable, Sequence
from inspect import getdoc
from typing import Any, Literal

import tyro
from typing_extensions import TypedDict
from tyro.conf import Positional

from diffusers_cg_cli import convert, demo, edit, evaluate, inpaint, inspect, nll, push, restore, sample, sweep
from diffusers_cg_cli.command import command
from diffusers_cg_cli.settings import Settings, parse


COMMANDS: dict[str, tuple[type[Settings], Callable[[Any], None]]] = {
    "convert": (convert.ConvertSettings, convert.run),
    "inspect": (inspect.InspectSettings, inspect.run),
    "sample": (sample.SampleSettings, sample.run),
    "edit": (edit.EditSettings, edit.run),
    "inpaint": (inpaint.InpaintSettings, inpaint.run),
    "restore": (restore.RestoreSettings, restore.run),
    "sweep": (sweep.SweepSettings, sweep.run),
    "evaluate": (evaluate.EvaluateSettings, evaluate.run),
    "nll": (nll.NLLSettings, nll.run),
    "push": (push.PushSettings, push.run),
    "demo": (demo.DemoSettings, demo.run),
}


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command that the first word names, with the settings that the others state."""
    words = list(sys.argv[1:] if argv is None else argv)
    lines = [f"  {name:9} {getdoc(kind).splitlines()[0]}" for name, (kind, _) in COMMANDS.items()]
    name = tyro.cli(
        TypedDict("Group", {"command": Positional[Literal[tuple(COMMANDS)]]}),
        prog="diffusers-cg",
        description="\n".join(
            ["ADM and classifier guidance on diffusers. COMMAND --help lists the flags of one.", "", *lines]
        ),
        args=words[:1],
    )["command"]
    settings_class, run = COMMANDS[name]
    run(parse(settings_class, words[1:], prog=f"diffusers-cg {name}"))
