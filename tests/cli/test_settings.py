"""Settings: declared once, and made from Python, a command line or a file."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import AfterValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from tyro.conf import Positional

from diffusers_cg.errors import InputError
from diffusers_cg_cli.settings import Settings, parse, read_file


def _check_even(value: int) -> int:
    if value % 2:
        raise ValueError(f"it must be even, not {value}")
    return value


class Shared(Settings):
    seed: NonNegativeInt = 0
    """What all follows from."""


class Cake(Shared):
    """Bakes a cake.

    It takes a while.
    """

    output: Path
    """Where to put it."""

    kind: Literal["plain", "marble"] = "plain"
    """The dough."""

    layers: Literal[1, 3, 4] = 1
    """How many."""

    heat: PositiveFloat = 180.0
    """Of the oven."""

    eggs: Annotated[int, AfterValidator(_check_even)] | None = None
    """As many as the recipe says by default."""

    minutes: Annotated[list[PositiveInt], Field(min_length=1)] | None = None
    """Of each step."""

    names: list[str] = ["cake", "pie"]
    """What it is called."""

    icing: bool = True
    """Cover it."""

    vegan: bool | None = None
    """Known by default."""

    @model_validator(mode="after")
    def _check(self) -> "Cake":
        if self.vegan and self.eggs:
            raise ValueError("A vegan cake has no eggs: leave out --vegan or --eggs")
        return self


class Letter(Settings):
    words: Positional[str]
    """What it says."""

    to: Positional[str] = "you"
    """Who gets it."""


OUTPUT = ["--output", "here"]


def stated(*argv, settings_class=Cake, **options):
    """What a command line sets."""
    settings = parse(settings_class, list(map(str, argv)), prog="bake", **options)
    return settings.model_dump(include=settings.model_fields_set)


# -------------------------------------------------------------------------------------------------------- command line


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], {}),
        (["--seed", 3], {"seed": 3}),
        (["--seed=3"], {"seed": 3}),
        (["--minutes", 9, 5, 1, "--kind", "marble"], {"minutes": [9, 5, 1], "kind": "marble"}),
        (["--minutes=9"], {"minutes": [9]}),
        (["--names", "a b", "c", *OUTPUT], {"names": ["a b", "c"]}),
        (["--icing"], {"icing": True}),
        (["--no_icing"], {"icing": False}),
        (["--no-icing", "--vegan"], {"icing": False, "vegan": True}),
        (["--no_vegan"], {"vegan": False}),
        (["--layers", 3, "--heat", "1e2", "--eggs", 4], {"layers": 3, "heat": 100.0, "eggs": 4}),
        (["--seed", 1, "--seed", 2], {"seed": 2}),
    ],
)
def test_flags(argv, expected):
    assert stated(*argv, *OUTPUT) == {"output": Path("here"), **expected}


def test_defaults_are_those_of_the_fields():
    assert parse(Cake, OUTPUT) == Cake(output="here")
    assert Cake(output="here").names == ["cake", "pie"]


def test_underscores_and_hyphens_are_one():
    class Long(Settings):
        one_two_three: int = 0
        four_five: bool = True

    for argv in (["--one_two_three", "1", "--no_four_five"], ["--one-two-three", "1", "--no-four-five"]):
        assert stated(*argv, settings_class=Long) == {"one_two_three": 1, "four_five": False}
    assert stated("--no-four_five", settings_class=Long) == {"four_five": False}


def test_positional_arguments():
    assert stated("hello", settings_class=Letter) == {"words": "hello"}
    assert stated("hello", "me", settings_class=Letter) == {"words": "hello", "to": "me"}


def test_help_states_type_default_and_what_must_be_stated(capsys):
    with pytest.raises(SystemExit) as ended:
        parse(Cake, ["--help"], prog="bake")
    assert ended.value.code == 0
    lines = [" ".join(line.strip("│ ").split()) for line in capsys.readouterr().out.splitlines()]
    shown = " ".join(lines)
    assert "usage: bake" in shown and "Bakes a cake. It takes a while." in " ".join(shown.split())
    assert "--output PATH Where to put it. (required)" in shown
    assert "--seed INT What all follows from. (default: 0)" in shown
    assert "--eggs INT As many as the recipe says by default. --" in shown  # no default to state
    assert "--names [STR [STR ...]] What it is called. (default: cake pie)" in shown
    assert "--icing, --no_icing Cover it. (default: True)" in shown
    assert shown.index("--output PATH") < shown.index("--seed INT")
    with pytest.raises(SystemExit):
        parse(Letter, ["--help"], prog="send", description="Sends a letter.")
    shown = capsys.readouterr().out
    assert "WORDS [TO]" in shown and "Sends a letter." in shown


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "--output PATH"),
        ([*OUTPUT, "--seeed", 1], "--seed"),
        ([*OUTPUT, "--seed", "x"], "Error parsing --seed"),
        ([*OUTPUT, "--seed"], "--seed"),
        ([*OUTPUT, "--kind", "iced"], "invalid choice 'iced' for argument '--kind'"),
        ([*OUTPUT, "--minutes", 1, "x"], "Error parsing --minutes"),
        ([*OUTPUT, "word"], "word"),
        ([*OUTPUT, "--config"], "--config"),
    ],
    ids=str,
)
def test_flags_that_cannot_be_meant(capsys, argv, said):
    with pytest.raises(SystemExit) as ended:
        stated(*argv)
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == "" and said in captured.err


BAD_VALUES = [
    ({"seed": -1}, "--seed: must be greater than or equal to 0, got -1."),
    ({"heat": 0.0}, "--heat: must be greater than 0, got 0.0."),
    ({"minutes": [3, 0]}, "--minutes: must be greater than 0, got 0."),
    ({"eggs": 3}, "--eggs: it must be even, not 3."),
    ({"vegan": True, "eggs": 2}, "A vegan cake has no eggs: leave out --vegan or --eggs."),
]


@pytest.mark.parametrize(("values", "said"), BAD_VALUES, ids=str)
def test_values_out_of_bounds(values, said):
    with pytest.raises(InputError) as raised:
        Cake(output="here", **values)
    assert str(raised.value) == said
    argv = []
    for name, value in values.items():
        argv += [f"--{name}"] if value is True else [f"--{name}", *(value if isinstance(value, list) else [value])]
    with pytest.raises(InputError) as raised:
        stated(*OUTPUT, *argv)
    assert str(raised.value) == said


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "--output: Field required."),
        ({"output": "here", "seeed": 1}, "--seeed: Extra inputs are not permitted, got 1."),
        ({"output": "here", "seed": "many"}, "--seed: must be a valid integer, unable to parse .*, got 'many'."),
        ({"output": "here", "minutes": []}, "--minutes: List should have at least 1 item .*"),
    ],
    ids=str,
)
def test_values_that_cannot_be_meant_in_python(values, said):
    with pytest.raises(InputError, match=said):
        Cake(**values)


class Places(Settings):
    folder: Path | None = None
    """A path."""
    model: str = ""
    """A path, or a name."""
    files: list[str] | None = None
    """Paths, patterns, or addresses."""


def test_the_home_folder_is_meant_by_a_tilde_wherever_a_path_is_stated(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = {
        "folder": tmp_path / "x",
        "model": f"{tmp_path}/y",
        "files": [f"{tmp_path}/*.tar", "https://host/~me/z"],
    }
    argv = ["--folder=~/x", "--model=~/y", "--files", "~/*.tar", "https://host/~me/z"]
    assert stated(*argv, settings_class=Places) == expected
    (tmp_path / "mine.yaml").write_text("folder: ~/x\nmodel: ~/y\nfiles: [~/*.tar, https://host/~me/z]\n")
    (tmp_path / "other.yaml").write_text("base: ~/mine.yaml\n")
    for file in ("mine", "other"):
        in_file = stated(f"--config=~/{file}.yaml", settings_class=Places)
        assert {name: in_file[name] for name in expected} == expected
    values = {"folder": Path("~/x"), "model": "~/y", "files": ["~/*.tar", "https://host/~me/z"]}
    assert Places(**values).model_dump(exclude={"config"}) == expected
    assert Places(folder="~").folder == tmp_path
    assert Places(model="about ~5/10").model == "about ~5/10"


# --------------------------------------------------------------------------------------------------------------- files


@pytest.fixture
def write(tmp_path):
    """Writes a file and returns its path."""

    def write(text, name="mine.yaml"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return write


def test_a_file_sets_what_no_flag_does(write):
    path = write("output: there\nheat: 1e2\nicing: no\nseed: 7\nvegan: yes\n")
    expected = {"config": str(path), "output": Path("there"), "heat": 100.0, "icing": False, "seed": 7, "vegan": True}
    assert stated("--config", path) == expected
    assert stated(f"--config={path}", "--seed", 8, "--icing", "--no_vegan", *OUTPUT) == {
        **expected,
        **{"seed": 8, "icing": True, "vegan": False, "output": Path("here")},
    }
    assert stated("--config", write("words: hello"), settings_class=Letter)["words"] == "hello"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("names: [007, no, 1e-4]", {"names": ["007", "no", "1e-4"]}),
        ("seed: 007", {"seed": 7}),
        ("layers: 3", {"layers": 3}),
        ("minutes: 5", {"minutes": [5]}),
        ("minutes: [5, 6]", {"minutes": [5, 6]}),
        ("minutes:\n- 5\n- 6", {"minutes": [5, 6]}),
        ("names: just one", {"names": ["just one"]}),
        ("kind: marble\nseed: null\nheat:\nvegan: ~", {"kind": "marble"}),
    ],
)
def test_scalars_are_read_as_on_a_command_line(write, text, expected):
    values = stated("--config", write(text), *OUTPUT)
    assert {name: values[name] for name in values if name not in ("config", "output")} == expected
    assert read_file(Cake, write(text)) == expected


def test_a_file_changes_its_base(write, tmp_path):
    write("seed: 1\nheat: 90\neggs: 2\nminutes: [1, 2]", "far/base.yaml")
    write("base: base.yaml\nseed: 2", "far/middle.yaml")  # beside the file that names it
    path = write("base: far/middle.yaml\neggs: null\nminutes: 3")
    assert read_file(Cake, path) == {"seed": 2, "heat": 90.0, "minutes": [3]}


def test_files_that_are_found_by_their_bare_names(write, tmp_path):
    files = write("seed: 1", "files/sponge.yaml").parent
    path = write("base: sponge\nheat: 90")
    assert read_file(Cake, path, files) == {"seed": 1, "heat": 90.0}
    assert stated("--config", "sponge", *OUTPUT, files=files)["seed"] == 1
    with pytest.raises(
        InputError, match=r"no file spong \(the nearest is sponge\): name a YAML file, or .*\(sponge\)\.$"
    ):
        stated("--config", "spong", *OUTPUT, files=files)
    with pytest.raises(InputError, match=r"^There is no file sponge: name a YAML file of settings\.$"):
        stated("--config", "sponge", *OUTPUT)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sed: 1", "{path}: there is no setting sed (the nearest is seed)."),
        ("qqqq: 1", "{path}: there is no setting qqqq."),
        ("config: other.yaml", "{path}: there is no setting config."),
        ("bas: other.yaml", "{path}: there is no setting bas (the nearest is base)."),
        ("seed: many", "{path}: seed: must be a valid integer, unable to parse string as an integer, got 'many'."),
        ("seed: -1", "{path}: seed: must be greater than or equal to 0, got '-1'."),
        ("seed: [1, 2]", "{path}: seed: must be a valid integer, got ['1', '2']."),
        ("kind: iced", "{path}: kind: must be 'plain' or 'marble', got 'iced'."),
        ("layers: 2", "{path}: layers: must be 1, 3 or 4, got '2'."),
        ("icing: perhaps", "{path}: icing: must be a valid boolean, unable to interpret input, got 'perhaps'."),
        ("eggs: 3", "{path}: eggs: it must be even, not 3."),
        ("minutes: {a: 1}", "{path}: minutes: must be a valid list, got {{'a': '1'}}."),
        ("base: mine.yaml", "{path} is its own base: {path} -> {path}."),
        ("base: nowhere", "There is no file nowhere: name a YAML file of settings."),
        ("just words", "{path} holds no settings: it must hold lines like `seed: 1`."),
        ("", "{path} holds no settings: it must hold lines like `seed: 1`."),
    ],
    ids=str,
)
def test_what_a_file_cannot_say(write, text, said):
    path = write(text)
    with pytest.raises(InputError) as raised:
        stated("--config", path, *OUTPUT)
    assert str(raised.value) == said.format(path=path)


def test_files_that_are_no_yaml(write, tmp_path):
    with pytest.raises(InputError, match=r"mine\.yaml cannot be read as YAML \(.*\)\.$"):
        read_file(Cake, write("a: [1"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"binary\.yaml cannot be read as YAML \(.*\)\.$"):
        read_file(Cake, tmp_path / "binary.yaml")


def test_files_in_a_circle(write):
    write("base: mine.yaml", "other.yaml")
    path = write("base: other.yaml")
    with pytest.raises(InputError, match=rf"^{path} is its own base: {path} -> .*other\.yaml -> {path}\.$"):
        read_file(Cake, path)
