"""What README and docs/ show is what works: their Python runs, and the flags, numbers and links that they name exist."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
import tiny
import torch

from diffusers_cg import DIGITS, ClassifierGuidedDDPMPipeline
from diffusers_cg.generation import GuidanceFile
from diffusers_cg_cli import COMMANDS as CLI_COMMANDS
from diffusers_cg_cli.settings import parse


ROOT = Path(__file__).parents[1]
PAGES = {str(path.relative_to(ROOT)): path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
NEEDS_FILES = r"adm-256|\.pt\"|import deepinv"  # OpenAI's; or a package that not every PyTorch goes with
GUIDANCE = "docs/guidance.md"  # whose networks are made up, under the names that the page gives


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


COMMANDS = [
    command.replace("\\\n", " ")
    for page in PAGES.values()
    for block in blocks(page, "bash")
    for command in re.findall(r"(?:[^\n\\]|\\\n)+", block)
]


@pytest.mark.parametrize("page", [page for page, path in PAGES.items() if page != GUIDANCE and blocks(path, "python")])
def test_python_that_needs_no_other_files_runs_in_order(page, hub, own_layouts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runnable = [block for block in blocks(PAGES[page], "python") if not re.search(NEEDS_FILES, block)]
    assert runnable
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


@pytest.fixture
def named_networks(tmp_path, monkeypatch):
    """A working directory in which the names of networks are folders of tiny ones, with weights made up."""
    transformers = pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    classes = {"num_class_embeds": 300, "sample_size": 16, "attention_resolutions": (8,)}
    unet = tiny.unet(label_dropout=0.1, **classes)
    scheduler = tiny.pipeline(ClassifierGuidedDDPMPipeline).scheduler
    classifier = tiny.classifier(num_classes=300, sample_size=16, attention_resolutions=(8,))
    ClassifierGuidedDDPMPipeline(unet, scheduler, classifier).save_pretrained("adm-256")
    ClassifierGuidedDDPMPipeline(tiny.unet(channel_multipliers=(1, 1), **classes), scheduler).save_pretrained(
        "adm-256-weak"
    )

    name = "microsoft/resnet-50"
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], num_labels=300)
    transformers.ResNetForImageClassification(config).save_pretrained(name)
    transformers.ConvNextImageProcessorPil(size={"shortest_edge": 16}, crop_pct=0.875).save_pretrained(name)

    name = "openai/clip-vit-base-patch32"
    width = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    text = {**width, "vocab_size": 32, "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 1}
    vision = {**width, "image_size": 8, "patch_size": 4}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=4)
    transformers.CLIPModel(config).save_pretrained(name)
    letters = [f"{letter}{end}" for letter in "abdeir" for end in ("", "</w>")]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters]
    tokenizer = transformers.CLIPTokenizer(vocab={token: number for number, token in enumerate(tokens)}, merges=[])
    images = transformers.CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    transformers.CLIPProcessor(images, tokenizer).save_pretrained(name)


def test_python_and_files_of_the_guidance_page_guide(named_networks, capsys):
    names = {}
    for block in blocks(PAGES[GUIDANCE], "python"):
        exec(re.sub(r'num_inference_steps(=|": )\d+', r"num_inference_steps\g<1>2", block), names)
        if "images" in names:
            assert names.pop("images")[0].size == (16, 16)
    pipe = names["pipe"]
    files = blocks(PAGES[GUIDANCE], "yaml")
    assert len(files) == 2
    for text in files:
        Path("my-guidance.yaml").write_text(text)
        guided = pipe(guidance=GuidanceFile("my-guidance.yaml").load(pipe), eta=0.0, **names["call"])
        assert guided.evaluations["backward"] > 0 and guided.images[0].size == (16, 16)


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
