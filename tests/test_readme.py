"""What the README shows is what works: its Python runs, and the flags and numbers that it names exist."""

import importlib
import json
import re
import shlex
from pathlib import Path

import pytest
from reference import DATA

from diffusers_cg_cli import COMMANDS as CLI_COMMANDS
from diffusers_cg_cli.settings import parse


ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [
    command.replace("\\\n", " ")
    for block in re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    for command in re.findall(r"(?:[^\n\\]|\\\n)+", block)
]


def test_python_that_needs_no_other_files_runs_in_order(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # all but those that need OpenAI's files or a trained pipeline
    runnable = [block for block in PYTHON if not re.search(r"adm-256|\.pt\"|seven.png", block)]
    assert len(runnable) >= 4
    names = {}
    for block in runnable:
        # fewer steps, to be quick
        exec(re.sub(r"num_inference_steps=\d+", "num_inference_steps=2", block), names)
        if "images" in names:
            assert names.pop("images")[0].size == (16, 16)
    assert (tmp_path / "my-pipeline" / "model_index.json").is_file()


@pytest.mark.parametrize("command", [command for command in COMMANDS if "training/" in command])
def test_training_commands_parse(command):
    words = shlex.split(command)
    (script,) = [word for word in words if word.startswith("training/")]
    module = importlib.import_module(f"diffusers_cg.training.{Path(script).stem}")
    module.parse_args(words[words.index(script) + 1 :])


@pytest.mark.parametrize("command", [line for line in COMMANDS if re.search(r"diffusers[-_]cg ", line)])
def test_commands_parse(command):
    """Their values, too: a number out of bounds or a choice that there is not would be refused."""
    words = shlex.split(command, comments=True)
    (start,) = [number for number, word in enumerate(words) if word in ("diffusers-cg", "diffusers_cg")]
    settings_class, _ = CLI_COMMANDS[words[start + 1]]
    parse(settings_class, words[start + 2 :])


def test_parameters_in_the_table_are_those_of_the_checkpoints():
    rows = re.findall(r"^\| (`[^|]+`) \| ([\d,]+) \|", README, flags=re.MULTILINE)
    stated = {name: int(count.replace(",", "")) for names, count in rows for name in re.findall(r"`(\w+)`", names)}
    manifests = {path.stem: json.loads(path.read_text())["parameters"] for path in (DATA / "manifests").iterdir()}
    assert stated == manifests


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (ROOT / target).exists(), target
