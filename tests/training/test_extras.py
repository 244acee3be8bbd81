import subprocess
import sys

import pytest

from diffusers_cg.errors import MissingExtraError, import_extra


def test_an_installed_module_is_imported():
    assert import_extra("json.decoder", "train").JSONDecoder


def test_a_missing_package_is_named_with_its_extra():
    with pytest.raises(MissingExtraError, match=r"no_such_package, .* pip install 'diffusers-cg\[eval\]'"):
        import_extra("no_such_package.part", "eval")


@pytest.mark.parametrize(
    ("command", "hidden", "extra"),
    [("export_digits", "sklearn", "train"), ("train_unet --dataset_name {data}", "datasets", "data")],
)
def test_a_command_without_its_extra_says_what_to_install(few_digits, tmp_path, command, hidden, extra):
    name, *flags = command.format(data=few_digits).split()
    # a module set to None cannot be imported, as one that is not installed
    script = f"""
import importlib, sys
sys.modules[{hidden!r}] = None
command = importlib.import_module("diffusers_cg.training.{name}")
command.main(command.parse_args({[*flags, "--output_dir", str(tmp_path / "output")]!r}))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith(f"error: This needs the package {hidden}")
    assert f"pip install 'diffusers-cg[{extra}]'" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "output").exists()
