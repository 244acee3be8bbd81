import importlib
import sys

import pytest
from processes import run_function

from diffusers_cg.errors import MissingExtraError, import_extra


def test_an_installed_module_is_imported():
    assert import_extra("json.decoder", "train").JSONDecoder


def test_a_missing_package_is_named_with_its_extra():
    with pytest.raises(MissingExtraError, match=r"no_such_package, .* pip install 'diffusers-cg\[eval\]'"):
        import_extra("no_such_package.part", "eval")


def run_without(package: str, name: str, argv: list[str]):
    """Imports our modules anew where `package` is not installed, and runs a training command."""
    for module in [
        module for module in sys.modules if module.partition(".")[0] in ("diffusers_cg", "diffusers_cg_cli")
    ]:
        del sys.modules[module]
    sys.modules[package] = None  # which cannot be imported
    command = importlib.import_module(f"diffusers_cg.training.{name}")
    command.main(command.parse_args(argv))


@pytest.mark.parametrize(
    ("command", "hidden", "extra"),
    [("export_digits", "sklearn", "train"), ("train_unet --dataset_name {data}", "datasets", "data")],
)
def test_a_command_without_its_extra_says_what_to_install(few_digits, tmp_path, command, hidden, extra):
    name, *flags = command.format(data=few_digits).split()
    argv = [*flags, "--output_dir", str(tmp_path / "output")]
    done = run_function(run_without, hidden, name, argv, log=tmp_path / "log")
    assert done.status == 2, done.output
    assert done.output.strip().splitlines()[-1].startswith(f"error: This needs the package {hidden}")
    assert f"pip install 'diffusers-cg[{extra}]'" in done.output and "Traceback" not in done.output
    assert not (tmp_path / "output").exists()
