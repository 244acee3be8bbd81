"""The command `diffusers-cg`: thin; what it calls can be called from Python."""

from diffusers_cg_cli import convert, evaluate, hub, nll, sample, sweep  # noqa: F401 (each adds its commands)
from diffusers_cg_cli.app import app


def main() -> None:
    app()
