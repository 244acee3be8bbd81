"""The command line that the commands join."""

import typer
from typer.core import TyperCommand


app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


class ManyValues(TyperCommand):
    """A command whose repeatable flags also take their values in a row: `--classes 1 2` for `--classes 1 --classes 2`."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        repeatable = {flag for param in self.params if getattr(param, "multiple", False) for flag in param.opts}
        spelled, flag = [], None
        for arg in args:
            if arg.startswith("-"):
                flag = arg if arg in repeatable else None
            if flag is None:
                spelled.append(arg)
            elif arg != flag:
                spelled += [flag, arg]
        return super().parse_args(ctx, spelled)


@app.callback()
def diffusers_cg() -> None:
    """ADM and classifier guidance on diffusers."""
