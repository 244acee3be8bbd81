"""One way to declare a setting: a typed field with its help, default and bounds, of which flags, files and --help are made.

class SampleSettings(Settings):
    seed: NonNegativeInt = 0
    \"""What the images follow from.\"""

settings = SampleSettings(seed=1)         # from Python
settings = parse(SampleSettings)          # --seed 1
"""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError


BASE = "base"  # the one entry of a file that is no setting: the file that it changes
UNSET = ("", "null", "~")

S = TypeVar("S", bound="Settings")


class Settings(BaseModel):
    """Typed values with bounds, checked when they are made.

    Raises:
        InputError: if a value is of another type, out of bounds, missing or unknown.
    """

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, protected_namespaces=())

    def __init__(self, **values: Any):
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise input_error(_sentence(error)) from None


def parse(
    settings_class: type[S],
    argv: Sequence[str] | None = None,
    prog: str | None = None,
    description: str | None = None,
    files: Path | None = None,
) -> S:
    """Settings from a command line; those that it does not name come from the file of `--config`, then the defaults.

    Args:
        settings_class (`type`): What to parse.
        argv (sequence of `str`, *optional*): The words after the command; those of this process by default.
        prog, description (`str`, *optional*): For `--help`; the class's docstring describes it by default.
        files (`Path`, *optional*): Folder in which `--config` looks for bare names. Without it there is no such flag.

    Raises:
        SystemExit: with status 2, after a sentence, if a flag is unknown or its value cannot be meant.
        InputError: if the file is missing or none, or sets what is no setting.
    """
    default = None
    if files is not None:
        named, _ = tyro.cli(_ConfigFlag, args=argv, add_help=False, return_unknown_args=True)
        if named.config is not None:
            default = _as_default(settings_class, read_file(settings_class, find_file(named.config, files), files))
    return tyro.cli(
        settings_class, args=argv, prog=prog, description=description, default=default, use_underscores=True
    )


class _ConfigFlag(BaseModel):
    config: str | None = None


def _as_default(settings_class: type[S], values: dict[str, Any]) -> S:
    required = {name: tyro.MISSING for name, field in settings_class.model_fields.items() if field.is_required()}
    return settings_class.model_construct(**{**required, **values})


# --------------------------------------------------------------------------------------------------------------- files


def find_file(name: str, files: Path, beside: Path = Path()) -> Path:
    """The file of a path, from the folder `beside`, or of the bare name of one in `files`.

    Raises:
        InputError: if there is none; the nearest name is said.
    """
    if (beside / name).is_file():
        return beside / name
    installed = sorted(path.stem for path in files.glob("*.yaml"))
    if name in installed:
        return files / f"{name}.yaml"
    nearest = difflib.get_close_matches(Path(name).stem, installed, n=1)
    hint = f"did you mean {nearest[0]}? " if nearest else ""
    raise input_error(
        f"There is no file {name}: {hint}Name a YAML file, or one that comes with the package ({', '.join(installed)})."
    )


def read_file(settings_class: type[Settings], path: Path, files: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The settings that a YAML file holds, checked, over those of the file that it names as `base`.

    Every scalar is read as on a command line (`1e-4`, `no`, `007`); an empty one or `null` leaves the default.

    Raises:
        InputError: if a file is missing or no YAML, or holds anything but settings.
    """
    if path in seen:
        raise input_error(f"{path} is its own {BASE}: {' -> '.join(map(str, (*seen, path)))}.")
    try:
        stated = yaml.load(path.read_text(), Loader=yaml.BaseLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise input_error(f"{path} cannot be read as YAML ({' '.join(str(error).split())}).") from error
    if not isinstance(stated, dict):
        raise input_error(f"{path} holds no settings: it must hold lines like `train_batch_size: 32`.")
    base = stated.pop(BASE, None)
    values = {}
    if base is not None:
        values = read_file(settings_class, find_file(base, files, path.parent), files, (*seen, path))
    for name, value in stated.items():
        if name not in settings_class.model_fields:
            nearest = difflib.get_close_matches(name, [*settings_class.model_fields, BASE], n=1)
            hint = f"the nearest is {nearest[0]}" if nearest else "--help lists them"
            raise input_error(f"{path}: there is no setting {name!r} here; {hint}.")
        if isinstance(value, str) and value in UNSET:
            values.pop(name, None)
        else:
            values[name] = _checked(settings_class, name, value, path)
    return values


def _checked(settings_class: type[Settings], name: str, value: Any, path: Path) -> Any:
    field = settings_class.model_fields[name]
    adapter = TypeAdapter(Annotated[field.annotation, *field.metadata, field])
    faults = []
    for candidate in (value, [value]):  # one value is a list of one where several may stand
        try:
            return adapter.validate_python(candidate)
        except ValidationError as error:
            faults.append(_fault(error))
    raise input_error(f"{path}: {name}: {faults[0]}.")


# -------------------------------------------------------------------------------------------------------------- errors


def input_error(sentence: str) -> ValueError:
    """An `InputError`, whose module is imported here alone: it brings torch, which `--help` does without."""
    from diffusers_cg.errors import InputError

    return InputError(sentence)


def _sentence(error: ValidationError) -> str:
    name = ".".join(str(part) for part in error.errors()[0]["loc"])
    return f"--{name}: {_fault(error)}." if name else f"{_fault(error)}."


def _fault(error: ValidationError) -> str:
    first = error.errors()[0]
    said = first["msg"].removeprefix("Value error, ").rstrip(".")
    return said if first["type"] in ("value_error", "missing") else f"{said}, got {first['input']!r}"
