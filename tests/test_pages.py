"""What README and docs/ show is what works: their Python runs, and the flags, numbers and links that they name exist."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
import torch

from diffusers_cg import DIGITS, ClassifierGuidedDDPMPipeline
from diffusers_cg_cli import COMMANDS as CLI_COMMANDS
from diffusers_cg_cli.settings import parse


ROOT = Path(__file__).parents[1]
PAGES = {str(path.relative_to(ROOT)): path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
NEEDS_FILES = r"adm-256|\.pt\""  # OpenAI's


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


COMMANDS = [
    command.replace("\\\n", " ")
    for page in PAGES.values()
    for block in blocks(page, "bash")
    for command in re.findall(r"(?:[^\n\\]|\\\n)+", block)
]


@pytest.mark.parametrize("page", PAGES)
def test_python_that_needs_no_other_files_runs_in_order(page, hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runnable = [block for block in blocks(PAGES[page], "python") if not re.search(NEEDS_FILES, block)]
    names = {}
    for block in runnable:
        # fewer steps, to be quick
        exec(re.sub(r"num_inference_steps=\d+", "num_inference_steps=2", block), names)
        if "images" in names:
            assert names.pop("images")[0].size == (16, 16)
    if page == "README.md":
        assert len(runnable) >= 5
        assert (tmp_path / "my-pipeline" / "model_index.json").is_file()


def test_the_guidance_of_the_readme_guides():
    """Its energy pulls the mean brightness of the images to the value that it names."""
    (example,) = [block for block in blocks(PAGES["README.md"], "python") if "def dark" in block]
    names = {"torch": torch}
    exec(example.partition("pipe = ")[0], names)
    pipe = ClassifierGuidedDDPMPipeline.from_pretrained(DIGITS)
    pipe.set_progress_bar_config(disable=True)
    options = {"class_labels": [3, 7] * 2, "num_inference_steps": 40, "classifier_scale": 0.0, "output_type": "latent"}
    pulled, left = (
        (pipe(guidance=each, generator=torch.manual_seed(0), **options).images.mean(dim=(1, 2, 3)) + 0.6).abs().mean()
        for each in (names["dark"], None)
    )
    assert pulled < 0.5 * left


@pytest.mark.parametrize("command", [command for command in COMMANDS if re.search(r"\btraining/\w+\.py", command)])
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


@pytest.mark.parametrize("page", [*PAGES, "benchmarks/README.md"])
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!http)([^)#]+)", (ROOT / page).read_text()):
        assert ((ROOT / page).parent / target).exists(), target
