"""Model cards: what a person should know before using a folder of weights.

A card is metadata and sections. Every section of ours stands between comments that nobody sees on the page,

    <!-- diffusers-cg: samples 1a2b3c4d -->
    ...
    <!-- diffusers-cg: end samples -->

with a hash of what we wrote. When a card is written again, a section is replaced only where the hash still fits: what a
person has edited, added around it or deleted stays as they left it.
"""

import hashlib
import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffusers import ModelMixin
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from diffusers_cg.data.text import in_markdown
from diffusers_cg.evaluation.report import Evaluation
from diffusers_cg.models.adm_trunk import height_and_width
from diffusers_cg.pipelines import (
    ClassifierGuidedInpaintPipeline,
    ClassifierGuidedPipeline,
    ClassifierGuidedSuperResolutionPipeline,
)


CARD_FILE = "README.md"
SAMPLES_FILE = "samples.png"
TAGS = ["diffusion", "adm", "classifier-guidance", "diffusers-cg"]
OPENAI_DATASET = "imagenet-1k"
WRITTEN_ONCE = ("about", "limits", "origin")  # by whoever knew where the weights come from
BY_DIFFUSERS = "This model card has been automatically generated"

Sections = dict[str, str]

DEVICE = 'device = "cuda" if torch.cuda.is_available() else "cpu"'

SAMPLE_SNIPPET = """import torch
from diffusers_cg import {pipeline}

{device}
pipe = {pipeline}.from_pretrained({path}).to(device)
images = pipe({call}, generator=torch.manual_seed(0)).images"""

UPSAMPLE_SNIPPET = """import torch
from diffusers_cg import {pipeline}

{device}
pipe = {pipeline}.from_pretrained({path}).to(device)
low = torch.rand(1, {low_res_shape})  # in place of your image, in [0, 1]; PIL images do, too
images = pipe(image=low, {call}, generator=torch.manual_seed(0)).images"""

CLASSIFIER_SNIPPET = """import torch
from diffusers_cg import NoisyClassifierModel
from diffusers_cg.guidance import classifier_gradient

classifier = NoisyClassifierModel.from_pretrained({path})
noisy_images = torch.randn(1, {shape})  # x_t of a diffusion model whose clean images span [-1, 1]
logits = classifier(noisy_images, 500).logits
gradient = classifier_gradient(classifier, noisy_images, 500, torch.tensor([0]))  # of log p(y = 0 | x_t)"""

WITH_CODE_SNIPPET = """from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained({path}, custom_pipeline={path}, trust_remote_code=True)"""

LIMITS = """## Intended use and limits

The weights are for work on generative models of the images that they were trained on, whose biases and gaps they
reproduce.{guidance} Samples can resemble training images, and carry no mark that they are generated."""

GUIDANCE_LIMIT = " Guidance trades diversity for fidelity: at a high scale the samples of a class look alike."

OPENAI_LIMITS = """## Intended use

OpenAI released these weights for research on generative models: to study what such models can do, how they fail, and
what their samples reveal. They are not meant for deployment, in a product or a service, and were not evaluated for it.

## Limits

- The models were trained on {data}, and reproduce its biases and gaps.{people}
- Guidance trades diversity for fidelity: at a high scale the samples of a class look alike.
- Samples can resemble training images, and carry no mark that they are generated."""

OPENAI_ORIGIN = """## Origin

*Diffusion Models Beat GANs on Image Synthesis* (Dhariwal and Nichol, 2021, arXiv 2105.05233), converted from
{files} of https://github.com/openai/guided-diffusion by diffusers-cg. The weights are unchanged{dtype}."""


# ------------------------------------------------------------------------------------------------- sections and metadata


def write_section(name: str, text: str) -> str:
    """A section between its comments."""
    text = text.strip().encode("utf-8", "backslashreplace").decode()
    return f"<!-- diffusers-cg: {name} {_hash(text)} -->\n{text}\n<!-- diffusers-cg: end {name} -->"


def update_card(card: ModelCard | None, data: ModelCardData, sections: Sections) -> ModelCard:
    """A card with our metadata and sections, and everything that people did to it.

    Args:
        card (`ModelCard`, *optional*): What is there; None, or one that diffusers wrote, for nothing.
        data (`ModelCardData`): Ours. Where a person said otherwise, they are right; tags, datasets and results unite.
        sections (`dict[str, str]`): Text by name, in the order of a new card; empty where there is nothing to say yet.
    """
    if card is None or BY_DIFFUSERS in card.text:
        body = "\n\n".join(write_section(name, text) for name, text in sections.items())
        return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n")

    text = card.text
    for name, new in sections.items():
        pattern = rf"<!-- diffusers-cg: {name} (\w+) -->\n(.*?)\n?<!-- diffusers-cg: end {name} -->"
        found = re.search(pattern, text, flags=re.DOTALL)
        if found and found[1] == _hash(found[2]) and name not in WRITTEN_ONCE:
            text = text[: found.start()] + write_section(name, new) + text[found.end() :]
    return ModelCard(f"---\n{merge_data(card.data, data).to_yaml()}\n---\n{text}")


def merge_data(theirs: ModelCardData, ours: ModelCardData) -> ModelCardData:
    """Metadata of a card that a person may have edited, and what we know now."""
    merged = {**ours.to_dict(), **theirs.to_dict()}
    for name in ("tags", "datasets"):
        united = dict.fromkeys([*_as_list(theirs.get(name)), *_as_list(ours.get(name))])
        if united:
            merged[name] = list(united)
    merged.pop("model-index", None)
    measured = ours.eval_results or []
    kept = [old for old in theirs.eval_results or [] if not any(new.is_equal_except_value(old) for new in measured)]
    if kept or measured:
        merged |= {"model_name": theirs.get("model_name") or ours.model_name, "eval_results": [*kept, *measured]}
    return ModelCardData(**merged)


def _as_list(value: str | Sequence[str] | None) -> list[str]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [str(value)]


def _hash(text: str) -> str:
    return hashlib.sha256(text.strip().encode()).hexdigest()[:8]


# ---------------------------------------------------------------------------------------------------- what a card says


def describe(
    model: ClassifierGuidedPipeline | ModelMixin,
    path: str,
    with_code: bool = False,
    samples: bool = False,
    training: dict[str, Any] | None = None,
    evaluation: Evaluation | None = None,
    **known: str | list[str],
) -> tuple[ModelCardData, Sections]:
    """Metadata and sections for a pipeline, or for a classifier alone.

    Args:
        model: What is published.
        path (`str`): Where it will be: a name on the Hub, or a folder.
        with_code (`bool`): Whether its code is published beside it.
        samples (`bool`): Whether `samples.png` is.
        training (`dict`, *optional*): `training.json` of a training script: facts of a run by the network's name.
        evaluation ([`Evaluation`], *optional*): Of its samples.
        known (`dict`): What only a person knows: `license`, `datasets`, `base_model`.
    """
    is_pipeline = isinstance(model, ClassifierGuidedPipeline)
    guided = is_pipeline and model.classifier is not None
    sections = {
        "about": f"# {in_markdown(path.rpartition('/')[2])}\n\n{_about(model)}",
        "samples": f"![Samples, a class per column]({SAMPLES_FILE})" if samples else "",
        "use": _use(model, path, with_code),
        "classes": _classes(model.class_names if is_pipeline else model.config.class_names),
        "training": _training(training),
        "evaluation": _evaluation(evaluation),
        "limits": LIMITS.format(guidance=GUIDANCE_LIMIT if guided else ""),
        "origin": "",
    }
    if not is_pipeline:
        tag = "image-classification"
    elif isinstance(model, ClassifierGuidedSuperResolutionPipeline):
        tag = "image-to-image"
    else:
        tag = "unconditional-image-generation"
    results = _eval_results(evaluation, tag)
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag=tag,
        tags=TAGS,
        **({"model_name": path.rpartition("/")[2], "eval_results": results} if results else {}),
        **known,
    )
    return data, sections


def _about(model: ClassifierGuidedPipeline | ModelMixin) -> str:
    if not isinstance(model, ClassifierGuidedPipeline):
        channels, (height, width) = model.config.in_channels, height_and_width(model.config.sample_size)
        return (
            f"A classifier of noisy images, {height}x{width} with {_count(channels, 'channel')}, into "
            f"{_count(model.config.num_classes, 'class')}, for guiding a diffusion model of the same images "
            "(*Diffusion Models Beat GANs on Image Synthesis*, section 4)."
        )
    channels, height, width = model.sample_shape
    kind = "a class-conditional" if model.unet.config.num_class_embeds else "an unconditional"
    if isinstance(model, ClassifierGuidedSuperResolutionPipeline):
        _, low_height, low_width = model.low_res_shape
        kind += f" diffusion model that upsamples images of {low_height}x{low_width}"
    else:
        kind += " diffusion model"
    guide = "" if model.classifier is None else ", and the classifier of noisy images that guides it"
    classes = f" It knows {_count(model.num_classes, 'class')}." if model.num_classes else ""
    if model.is_conditional and not model.needs_class:
        classes += " Trained with labels left out at times, the unet predicts without a class, too."
    return (
        f"ADM (*Diffusion Models Beat GANs on Image Synthesis*): {kind}, to {height}x{width} with "
        f"{_count(channels, 'channel')}{guide}.{classes}"
    )


def _use(model: ClassifierGuidedPipeline | ModelMixin, path: str, with_code: bool) -> str:
    if not isinstance(model, ClassifierGuidedPipeline):
        shape = ", ".join(map(str, (model.config.in_channels, *height_and_width(model.config.sample_size))))
        snippet = CLASSIFIER_SNIPPET.format(path=_quoted(path), shape=shape)
    else:
        needs_labels = model.is_conditional or model.classifier is not None
        upsamples = isinstance(model, ClassifierGuidedSuperResolutionPipeline)
        inpaints = isinstance(model, ClassifierGuidedInpaintPipeline)
        label = min(207, model.num_classes - 1) if model.num_classes else 0
        call = f"class_labels=[{label}]" if needs_labels else "" if upsamples else "batch_size=1"
        snippet = (UPSAMPLE_SNIPPET if upsamples else SAMPLE_SNIPPET).format(
            device=DEVICE,
            pipeline="ClassifierGuidedDDPMPipeline" if inpaints else type(model).__name__,  # which any folder serves
            path=_quoted(path),
            call=call,
            low_res_shape=", ".join(map(str, model.low_res_shape)) if upsamples else "",
        )
        snippet = snippet.replace("low, , ", "low, ")
    text = f"## Use\n\nWith diffusers-cg installed:\n\n```python\n{snippet}\n```"
    if with_code:
        snippet = WITH_CODE_SNIPPET.format(path=_quoted(path))
        text += f"\n\nWith diffusers alone, which then runs the code in this repository:\n\n```python\n{snippet}\n```"
    return text


def _quoted(text: str) -> str:
    """A string of Python, in double quotes."""
    return json.dumps(text, ensure_ascii=False)


def _classes(class_names: Sequence[str] | None) -> str:
    if class_names is None:
        return ""
    rows = "\n".join(f"| {label} | {in_markdown(name)} |" for label, name in enumerate(class_names))
    return f"## Classes\n\n| label | class |\n| --- | --- |\n{rows}"


def _training(training: dict[str, Any] | None) -> str:
    """A part for each network that was trained: its facts, and the flags that make it again."""
    parts = []
    for network, run in (training or {}).items():
        stated = {name.replace("_", " "): value for name, value in run.items() if name != "arguments"}
        facts = [f"- {in_markdown(name)}: {in_markdown(value)}" for name, value in stated.items()]
        parts += [f"### {in_markdown(network)}", "\n".join(facts)]
        if run.get("arguments"):
            command = shlex.join(run["arguments"]).replace("<!--", "<! --")  # which might end the section
            fence = "`" * max(3, 1 + max(map(len, re.findall("`+", command)), default=0))
            parts.append(f"{fence}\n{command}\n{fence}")
    return "\n\n".join(["## Training", *parts]) if parts else ""


def _evaluation(evaluation: Evaluation | None) -> str:
    if evaluation is None:
        return ""
    # of the paths here, the names alone mean something elsewhere
    sets = {name: getattr(evaluation, name) for name in ("samples", "reference")}
    named = {name: replace(each, source=Path(each.source).name) for name, each in sets.items()}
    return f"## Evaluation\n\n{replace(evaluation, **named).to_markdown()}"


def _eval_results(evaluation: Evaluation | None, task: str) -> list[EvalResult]:
    """The metrics of a report as the Hub's `model-index` lists them."""
    if evaluation is None:
        return []
    reference = Path(evaluation.reference.source).stem
    return [
        EvalResult(
            task_type=task,
            dataset_type=reference,
            dataset_name=reference,
            metric_type=evaluation.name(key).lower().replace(" ", "_"),
            metric_name=evaluation.name(key),
            metric_value=round(value, 4),
        )
        for key, value in evaluation.metrics.items()
        if value is not None
    ]


def _count(number: int, noun: str) -> str:
    plural = {"class": "classes"}.get(noun, f"{noun}s")
    return f"{number:,} {noun if number == 1 else plural}"


# ------------------------------------------------------------------------------------------------- OpenAI's checkpoints


def write_openai_model_card(
    directory: Path,
    pipe: ClassifierGuidedPipeline,
    unet_file: str,
    classifier_file: str | None,
    dtype: str,
    name: str,
) -> None:
    """Writes `README.md`, the card of a pipeline that was converted from released checkpoints, into `directory`.

    Args:
        directory (`Path`): Where the pipeline was saved.
        pipe ([`ClassifierGuidedPipeline`]): The pipeline.
        unet_file, classifier_file (`str`): Names of the original files.
        dtype (`str`): `"fp32"`, or the precision that the weights were rounded to.
        name (`str`): What the snippet calls the folder.
    """
    on_lsun = unet_file.startswith("lsun")
    data, sections = describe(pipe, name, license="mit", datasets=[] if on_lsun else [OPENAI_DATASET])
    kind = "A diffusion model"
    if isinstance(pipe, ClassifierGuidedSuperResolutionPipeline):
        kind = f"An upsampling model (from {pipe.config.low_res_size} pixels)"
    guide = "without a classifier" if classifier_file is None else "with the classifier of noisy images that guides it"
    sections |= {
        "about": f"# ADM, {in_markdown(Path(unet_file).stem)}\n\n{kind} of OpenAI's guided-diffusion, {guide}.",
        "limits": OPENAI_LIMITS.format(
            data="a part of LSUN" if on_lsun else "ImageNet-1k",
            people="" if on_lsun else " Faces and people, who are seldom its subject, come out distorted.",
        ),
        "origin": OPENAI_ORIGIN.format(
            files=" and ".join(in_markdown(file) for file in (unet_file, classifier_file) if file),
            dtype="" if dtype == "fp32" else f", but rounded to {dtype}",
        ),
    }
    update_card(None, data, sections).save(directory / CARD_FILE)
