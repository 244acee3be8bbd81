"""One way to declare a setting: a typed field with its help, default and bounds. Flags, files and --help are made of it.

class SampleSettings(Settings):
    seed: NonNegativeInt = 0
    \"""What the images follow from.\"""

settings = SampleSettings(seed=1)     # from Python
settings = parse(SampleSettings)      # from --seed 1, or from --config FILE with a line `seed: 1`
"""

import contextlib
import difflib
import inspect
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args

import tyro
import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, field_validator
from pydantic.fields import FieldInfo
from typing_extensions import NotRequired, TypedDict  # noqa: UP035 (not in Python 3.10)


BASE = "base"  # the one entry of a file that is no setting: the file that it changes
UNSET = ("", "null", "~")

S = TypeVar("S", bound="Settings")


class Settings(BaseModel):
    """Typed values with bounds, checked when they are made.

    A field's default and bounds are those of pydantic, its help is the string below it, and markers of `tyro.conf` say
    where a flag is another than `--name value`. Validators that compare fields raise `ValueError` with a sentence. In
    every value that is a path, a leading `~` is the home folder.

    Raises:
        InputError: if a value is of another type, out of bounds, missing or unknown.
    """

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, protected_namespaces=())

    config: str | None = None
    """YAML file of settings, as they are named here; flags change them."""

    def __init__(self, **values: Any):
        try:
            super().__init__(**values)
        except ValidationError as error:
            name = error.errors()[0]["loc"][:1]  # of the field; of none if fields do not go together
            raise input_error(f"{''.join(f'--{part}: ' for part in name)}{_fault(error)}.") from None

    @field_validator("*")
    @classmethod
    def _expand_home(cls, value: Any) -> Any:
        return [expand_home(item) for item in value] if isinstance(value, list | tuple) else expand_home(value)


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
        files (`Path`, *optional*): Folder of the files that `--config` and `base` find by bare names.

    Raises:
        SystemExit: with status 2, after tyro has said why, if a flag is unknown, missing or of another type.
        InputError: if the file is missing or none, or sets what is no setting; as [`Settings`] for the rest.
    """
    known, _ = _flags(Settings, {}, args=argv, prog=prog, add_help=False, return_unknown_args=True)
    in_file = {}
    if "config" in known:
        in_file = read_file(settings_class, find_file(known["config"], files), files)
    description = description or inspect.getdoc(settings_class)
    return settings_class(**in_file | _flags(settings_class, in_file, args=argv, prog=prog, description=description))


def _flags(settings_class: type[Settings], in_file: dict[str, Any], **options: Any) -> Any:
    """The values that flags state, by name. tyro checks each against its type alone, and the class then checks all."""
    types = {}
    # those that must be stated come first
    for name, field in sorted(settings_class.model_fields.items(), key=lambda item: not item[1].is_required()):
        default = tyro.MISSING if field.is_required() else field.get_default(call_default_factory=True)
        default = in_file.get(name, default)
        words = default if isinstance(default, list | tuple) else [default]
        hint = "" if default is None else f"(default: {' '.join(map(str, words))})"
        kinds = get_args(field.annotation)
        kind = field.annotation
        if type(None) in kinds:  # which no flag says
            kind = Union[tuple(each for each in kinds if each is not type(None))]  # noqa: UP007
        described = " ".join((field.description or "").split())  # tyro keeps the line ends of a docstring
        flag = Annotated[(kind, *field.metadata, tyro.conf.arg(help=described, help_behavior_hint=hint))]
        types[name] = flag if default is tyro.MISSING else NotRequired[flag]
    return tyro.cli(
        TypedDict(settings_class.__name__, types),
        use_underscores=True,
        config=(tyro.conf.PositionalMetavarFromFieldName,),
        **options,
    )


# --------------------------------------------------------------------------------------------------------------- files


def expand_home(value: Any) -> Any:
    """A path whose leading `~` is the home folder: a shell leaves it in `--output_dir=~/x`, and so do files and Python."""
    is_path = isinstance(value, Path) or (isinstance(value, str) and re.match("~[^/]*/", value))
    return type(value)(os.path.expanduser(value)) if is_path else value


def find_file(name: str, files: Path | None = None, beside: Path = Path()) -> Path:
    """The file of a path, seen from the folder `beside`, or of the bare name of one in `files`.

    Raises:
        InputError: if there is none; the nearest name is said.
    """
    path = beside / expand_home(name)
    if path.is_file():
        return path
    if files is None:
        raise input_error(f"There is no file {name}: name a YAML file of settings.")
    installed = sorted(path.stem for path in files.glob("*.yaml"))
    if name in installed:
        return files / f"{name}.yaml"
    raise input_error(
        f"There is no file {name}{_nearest(Path(name).stem, installed)}: name a YAML file, or one of those that come "
        f"with the package ({', '.join(installed)})."
    )


def read_file(
    settings_class: type[Settings], path: Path, files: Path | None = None, seen: tuple[Path, ...] = ()
) -> dict[str, Any]:
    """The settings that a YAML file holds, checked, over those of the file that it names as `base`.

    Every scalar is read as on a command line (`1e-4`, `no`, `007`); an empty one or `null` leaves the default.

    Raises:
        InputError: if a file is missing, no YAML or its own base, or holds anything but settings.
    """
    chain = (*seen, path.resolve())
    if chain[-1] in seen:
        raise input_error(f"{path} is its own {BASE}: {' -> '.join(map(str, chain))}.")
    try:
        stated = yaml.load(path.read_text(), Loader=yaml.BaseLoader)  # which leaves all scalars the strings they are
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise input_error(f"{path} cannot be read as YAML ({' '.join(str(error).split())}).") from error
    if not isinstance(stated, dict):
        raise input_error(f"{path} holds no settings: it must hold lines like `seed: 1`.")
    values = {}
    base = stated.pop(BASE, "")
    if base not in UNSET:
        values = read_file(settings_class, find_file(str(base), files, path.parent), files, chain)
    fields = {name: field for name, field in settings_class.model_fields.items() if name not in Settings.model_fields}
    for name, value in stated.items():
        if name not in fields:
            raise input_error(f"{path}: there is no setting {name}{_nearest(name, [*fields, BASE])}.")
        if value in UNSET:
            values.pop(name, None)
            continue
        try:
            values[name] = _read(fields[name], value)
        except ValidationError as error:
            raise input_error(f"{path}: {name}: {_fault(error)}.") from None
    return values


def _read(field: FieldInfo, value: Any) -> Any:
    """The value of a field that a file states in strings."""
    adapter = TypeAdapter(Annotated[field.annotation, field])
    try:
        return adapter.validate_python(value)
    except ValidationError:
        with contextlib.suppress(ValidationError):
            return adapter.validate_python([value])  # one value is a list of one where several may stand
        with contextlib.suppress(ValidationError):
            return adapter.validate_json(value)  # a number where it must be one of some
        raise


# -------------------------------------------------------------------------------------------------------------- errors


def input_error(sentence: str) -> ValueError:
    """An `InputError`, whose module is imported here alone: it brings torch, which `--help` does without."""
    from diffusers_cg.errors import InputError

    return InputError(sentence)


def _fault(error: ValidationError) -> str:
    """What is wrong with the first value that is."""
    first = error.errors()[0]
    said = first["msg"].removeprefix("Value error, ").rstrip(".").replace("Input should", "must")
    return said if first["type"] in ("value_error", "missing") else f"{said}, got {first['input']!r}"


def _nearest(name: str, names: Iterable[str]) -> str:
    return "".join(f" (the nearest is {near})" for near in difflib.get_close_matches(name, names, n=1))
