"""A parser whose flags may also stand in a file: the recipe that `--config` names."""

import argparse
import difflib
import sys
from pathlib import Path
from typing import Any

import yaml

from diffusers_cg.errors import InputError


RECIPES = Path(__file__).parent / "recipes"
BASE = "base"  # the one setting of a recipe that is no flag
UNSET = ("", "null", "~")
NOT_GIVEN = object()


def installed_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


class FlagsFormatter(argparse.RawDescriptionHelpFormatter):
    """Help that ends in the default, where there is one to state."""

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.nargs == 0 and not isinstance(action, argparse.BooleanOptionalAction):
            return action.help
        if action.default in (None, argparse.SUPPRESS) or "default" in action.help:
            return action.help
        default = {True: "yes", False: "no"}[action.default] if isinstance(action.default, bool) else action.default
        if isinstance(default, list):
            default = " ".join(map(str, default))
        return f"{action.help} [{default}]"


class RecipeParser(argparse.ArgumentParser):
    """An argument parser with one more flag, `--config`, for a YAML file that sets any of the others.

    A recipe holds flags without their dashes: `true` or `false` for a switch, a list where the flag takes several
    values, nothing or `null` to leave the default. Values are read as if typed, so that a flag's type and choices hold
    for both; what is typed has the last word. `base: NAME` starts from another recipe, which the rest of the file
    changes. A recipe is named by its path, or by the bare name of one that comes with the package.

    What is parsed also holds `given`, the names of the flags that were typed or stand in the recipe, and `typed`, the words
    of the command line.
    """

    def __init__(self, **options):
        super().__init__(formatter_class=FlagsFormatter, allow_abbrev=False, **options)
        self.add_argument(
            "--config",
            metavar="RECIPE",
            help="YAML file of flags, which those on the command line override, or the name of one that comes with "
            f"the package: {', '.join(installed_recipes())}.",
        )

    def parse_args(self, argv: list[str] | None = None, namespace: argparse.Namespace | None = None):
        argv = sys.argv[1:] if argv is None else [str(word) for word in argv]
        first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        first.add_argument("--config")
        config = first.parse_known_args(argv)[0].config
        try:
            words = [] if config is None else self._recipe_words(config)
        except InputError as error:
            self.exit(2, f"error: {error}\n")
        args = super().parse_args([*words, *argv], namespace)
        blank = argparse.Namespace(**{action.dest: NOT_GIVEN for action in self._actions})
        given = vars(super().parse_args([*words, *argv], blank))
        args.given = sorted(name for name, value in given.items() if value is not NOT_GIVEN)
        args.typed = argv
        return args

    def _recipe_words(self, config: str) -> list[str]:
        """The recipe as words of a command line.

        Raises:
            InputError: if the file is missing or no recipe, or sets what this script has not, or to what cannot be.
        """
        flags = {action.dest: action for action in self._actions if action.dest not in ("help", "config")}
        words = []
        for name, (value, path) in read_recipe(find_recipe(config)).items():
            if name not in flags:
                nearest = difflib.get_close_matches(name, [*flags, BASE], n=1)
                hint = f"the nearest is {nearest[0]}" if nearest else "--help lists them"
                raise InputError(f"{path}: {Path(self.prog).name} has no setting {name!r}; {hint}.")
            if value not in UNSET:
                words += self._flag_words(path, flags[name], value)
        return words

    def _flag_words(self, path: Path, action: argparse.Action, value: Any) -> list[str]:
        name = action.option_strings[0]
        if action.nargs == 0:
            if value not in ("true", "false"):
                raise InputError(f"{path}: {action.dest} must be true or false, got {value!r}.")
            negative = [option for option in action.option_strings if option.startswith("--no-")]
            return [name] if value == "true" else negative
        takes_several = action.nargs in ("+", "*")
        values = value if takes_several and isinstance(value, list) else [value]
        if not all(isinstance(one, str) for one in values):
            wanted = "one value or a list of them" if takes_several else "one value"
            raise InputError(f"{path}: {action.dest} must be {wanted}, got {value!r}.")
        try:
            self._get_values(action, values)
        except argparse.ArgumentError as error:
            raise InputError(f"{path}: {action.dest} has an {error.message}.") from error
        return [name, *values] if takes_several else [f"{name}={values[0]}"]


def find_recipe(config: str, beside: Path = Path()) -> Path:
    """The file of a recipe named by its path (from the folder `beside`) or by a bare name.

    Raises:
        InputError: if there is none.
    """
    path = beside / config
    if path.is_file():
        return path
    installed = RECIPES / f"{config}.yaml"
    if installed.is_file():
        return installed
    nearest = difflib.get_close_matches(Path(config).stem, installed_recipes(), n=1)
    hint = f"did you mean {nearest[0]}? " if nearest else ""
    raise InputError(
        f"There is no recipe {config}: {hint}Name a YAML file, or one that comes with the package "
        f"({', '.join(installed_recipes())})."
    )


def read_recipe(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, tuple[Any, Path]]:
    """The settings of a file and its bases: by name the value, a string as typed or a list of them, and its file.

    Raises:
        InputError: if a file is missing, is no YAML, or holds anything but settings.
    """
    if path in seen:
        raise InputError(f"{path} is its own {BASE}: {' -> '.join(map(str, (*seen, path)))}.")
    try:
        # every scalar stays a string: 1e-4, no and 007 mean what they mean on a command line
        settings = yaml.load(path.read_text(), Loader=yaml.BaseLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as YAML ({' '.join(str(error).split())}).") from error
    if not isinstance(settings, dict):
        raise InputError(f"{path} is no recipe: it must hold lines like `train_batch_size: 32`.")
    base = settings.pop(BASE, None)
    inherited = {} if base is None else read_recipe(find_recipe(str(base), path.parent), (*seen, path))
    return inherited | {name: (value, path) for name, value in settings.items()}
