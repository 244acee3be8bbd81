"""Cards: what they say, that the Hub takes them, that their code runs, and that people may edit them."""

import json
import os
import re
import warnings
from dataclasses import replace

import pytest
import tiny
import yaml
from huggingface_hub import ModelCard, ModelCardData
from PIL import Image
from processes import run_here

from diffusers_cg import ClassifierGuidedDDPMPipeline, ClassifierGuidedSuperResolutionPipeline
from diffusers_cg.evaluation.report import Evaluation, SetFacts
from diffusers_cg.hub.model_card import update_card


CLASS_NAMES = ["owl", "hen", "cat", "dog", "bee"]
METRICS = {"fid": 12.345678, "sfid": None, "inception_score": 9.5, "precision": 0.75, "recall": 0.5}
REPORT = Evaluation(
    METRICS,
    SetFacts("samples.npz", 50000, [8, 8, 3]),
    SetFacts("refs/VIRTUAL_imagenet256_labeled.npz"),
    *("inception", "abc"),
    ["Few samples."],
)
TRAINING = {"unet": {"steps": 600, "seed": 7, "hardware": "8 x H100", "arguments": ["--resolution", "64"]}}
# steps that a test has time for, in place of the saved ones
QUICK = {"ddpm_num_inference_steps": 2, "ddim_num_inference_steps": 1}


def save(folder, pipeline_class=ClassifierGuidedDDPMPipeline, **changed):
    pipe = tiny.pipeline(pipeline_class, **changed)
    pipe.register_to_config(**QUICK)
    pipe.save_pretrained(folder)


@pytest.fixture
def card(hub, tmp_path):
    """Pushes what is in the folder, and returns the card on the Hub."""

    def card(*argv):
        result = run_here("push", str(tmp_path), "me/model", *argv)
        assert result.status == 0, result.output
        return ModelCard(hub.files("me/model")["README.md"].decode())

    return card


def sections(card):
    return dict(re.findall(r"<!-- diffusers-cg: (\w+) \w{8} -->\n(.*?)\n<!-- diffusers-cg: end", card.text, re.DOTALL))


def snippets(card):
    return re.findall(r"```python\n(.*?)```", card.text, flags=re.DOTALL)


def test_what_a_card_says(card, tmp_path):
    save(tmp_path, conditional=True, class_names=CLASS_NAMES)
    replace(REPORT, metrics={**REPORT.metrics, "my_metric": 0.25}).save(tmp_path)
    (tmp_path / "training.json").write_text(json.dumps(TRAINING))
    of = card("--license", "mit", "--datasets", "me/birds", "cifar10", "--base_model", "me/base")
    of.validate()
    data = of.data
    assert (data.library_name, data.pipeline_tag) == ("diffusers", "unconditional-image-generation")
    assert (data.license, data.datasets, data.base_model) == ("mit", ["me/birds", "cifar10"], "me/base")
    assert "classifier-guidance" in data.tags
    metrics = {result.metric_type: result.metric_value for result in data.eval_results}
    assert metrics == {"fid": 12.3457, "inception_score": 9.5, "precision": 0.75, "recall": 0.5, "my_metric": 0.25}
    assert {result.dataset_name for result in data.eval_results} == {"VIRTUAL_imagenet256_labeled"}

    said = sections(of)
    assert "class-conditional diffusion model, to 8x8 with 3 channels, and the classifier" in said["about"]
    assert "(samples.png)" in said["samples"]
    assert "| 4 | bee |" in said["classes"]
    assert "- steps: 600" in said["training"] and "- hardware: 8 x H100" in said["training"]
    assert "--resolution 64" in said["training"]
    assert "| FID | 12.3457 |" in said["evaluation"] and "Few samples." in said["evaluation"]
    assert "bias" in said["limits"] and "Guidance trades" in said["limits"]


HOSTILE = [
    *(
        "| a *b* <script>alert(1)</script>",
        r"back\slash \| `code` [x](y) $z$",
        "two\nlines\n---\n# head",
        "---",
        ": yes",
    ),
    *("_a_ b_c ~~d~~ &amp;", "x" * 3000, "\N{OWL} \N{HEBREW LETTER ALEF}\u202e", "<!-- diffusers-cg: end classes -->"),
    os.fsdecode(b"caf\xe9"),
]


@pytest.mark.parametrize("names", [HOSTILE[:5], HOSTILE[5:]], ids=["markup", "characters"])
def test_whatever_users_write_reads_as_they_wrote_it(card, tmp_path, names):
    """Rendered, a class's cell holds its name alone; and what is pushed again is found again."""
    markdown = pytest.importorskip("markdown_it").MarkdownIt("commonmark").enable("table").enable("strikethrough")
    run = {**{name: name for name in names}, "arguments": ["--class_names", *names, "```\n# head"]}
    (tmp_path / "training.json").write_text(json.dumps({"unet": run}))
    facts = SetFacts(f"/x/{HOSTILE[0]}"), SetFacts(HOSTILE[2])
    replace(REPORT, samples=facts[0], reference=facts[1], extractor="|a:<b>", warnings=HOSTILE[:4]).save(tmp_path)
    save(tmp_path, conditional=True, class_names=names)
    first = card("--base_model", "me/: yes", "--datasets", *HOSTILE[:5])
    first.validate()
    assert first.data.base_model == "me/: yes" and first.data.datasets == HOSTILE[:5]
    assert {result.dataset_name for result in first.data.eval_results} == {"two\nlines\n---\n# head"}
    assert card().content == first.content
    tokens = markdown.parse(first.text)
    plain = [
        "".join(part.content for part in token.children if part.type not in ("html_inline", "softbreak"))
        for token in tokens
        if token.type == "inline"
    ]
    assert not [part for token in tokens for part in token.children or () if part.type == "html_inline"]
    for name in names:
        assert " ".join(name.split()).encode("utf-8", "backslashreplace").decode() in plain
    heads = [tokens[at + 1].content for at, token in enumerate(tokens) if token.type == "heading_open"]
    assert heads == ["model", "Use", "Classes", "Training", "unet", "Evaluation", "Intended use and limits"]
    compile(snippets(first)[0], "snippet", "exec")


def test_what_is_not_known_is_left_out(card, tmp_path):
    save(tmp_path, with_classifier=False)
    of = card()
    of.validate()
    said = sections(of)
    assert not (said["classes"] or said["training"] or said["evaluation"])
    assert "an unconditional diffusion model" in said["about"] and "Guidance" not in said["limits"]
    assert of.data.to_dict().keys() == {"library_name", "pipeline_tag", "tags"}


@pytest.mark.parametrize("kind", ["conditional", "unconditional, guided", "unguided", "upsampler", "classifier"])
def test_snippets_run_as_pasted(card, tmp_path, kind):
    if kind == "classifier":
        tiny.classifier().save_pretrained(tmp_path)
    elif kind == "upsampler":
        save(tmp_path, ClassifierGuidedSuperResolutionPipeline, conditional=True, low_res_size=4)
    else:
        save(tmp_path, conditional=kind == "conditional", with_classifier=kind != "unguided")
    code = snippets(card(*(["--with_code"] if kind == "conditional" else [])))
    assert len(code) == (2 if kind == "conditional" else 1)
    names = {}
    for snippet in code:
        exec(snippet, names)
    if kind == "classifier":
        assert names["gradient"].shape == (1, 3, 8, 8)
    else:
        assert [image.size for image in names["images"]] == [(8, 8)]
        assert type(names["pipe"]).__module__.startswith("diffusers_cg.")


def test_cards_that_people_edited_are_updated(card, hub, tmp_path):
    save(tmp_path, conditional=True)
    first = card()
    edited = first.content.replace("ADM (*Diffusion", "My birds. ADM (*Diffusion")
    edited = edited.replace("## Use\n", "## How I use it\n")
    edited = re.sub(r"<!-- diffusers-cg: samples.*?end samples -->", "", edited, flags=re.DOTALL)
    edited = edited.replace("tags:\n", "license: cc-by-4.0\ntags:\n- birds\n") + "\n## Thanks\n\nTo the birds.\n"
    hub.put("me/model", {"README.md": edited.encode()})

    REPORT.save(tmp_path)
    second = card("--license", "mit")
    second.validate()
    said = sections(second)
    assert said["about"].count("My birds.") == 1
    assert "## How I use it" in said["use"]
    assert "samples" not in said
    assert "12.3457" in said["evaluation"]  # a section that nobody touched
    assert second.text.endswith("## Thanks\n\nTo the birds.\n")
    assert second.data.license == "cc-by-4.0" and second.data.tags[0] == "birds" and "adm" in second.data.tags

    replace(REPORT, metrics={"fid": 3.5}).save(tmp_path)
    third = card()
    fid = {result.metric_type: result.metric_value for result in third.data.eval_results}["fid"]
    assert fid == 3.5 and len(third.data.eval_results) == 4
    assert card().content == third.content  # and pushing once more changes nothing


def test_a_card_that_a_person_wrote_keeps_its_text(card, hub, tmp_path):
    save(tmp_path)
    hub.put("me/model", {"README.md": b"---\npipeline_tag: text-to-image\n---\n# Mine\n"})
    of = card()
    assert of.text.strip() == "# Mine"
    assert of.data.pipeline_tag == "text-to-image" and of.data.library_name == "diffusers"


def test_the_card_of_the_folder_counts_where_the_hub_has_none(card, tmp_path, caplog):
    save(tmp_path)
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    of = card()
    assert of.text.strip() == "# Mine" and of.data.license == "mit"
    assert card().content == of.content
    (tmp_path / "README.md").write_text("# Mine, later\n")
    assert card().content == of.content
    (said,) = [record.message for record in caplog.records if record.name.startswith("diffusers_cg")]
    assert said == f"The card of me/model goes before {tmp_path / 'README.md'}, which stays here: edit it on the Hub."


def test_a_picture_of_ones_own(card, hub, tmp_path):
    save(tmp_path / "model")
    grid = tmp_path / "mine.png"
    Image.new("RGB", (3, 5)).save(grid)
    result = run_here("push", str(tmp_path / "model"), "me/model", "--grid", str(grid))
    assert result.status == 0, result.output
    assert hub.files("me/model")["samples.png"] == grid.read_bytes()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--grid", "{folder}/model_index.json"], "cannot be read as a picture"),
        (["--report", "{folder}/nowhere"], "diffusers-cg evaluate"),
        (["--report", "{folder}"], "is not a report of diffusers-cg evaluate"),
        (["--license", "beer"], '"license" must be one of'),
    ],
)
def test_refusals(hub, tmp_path, argv, said):
    save(tmp_path)
    if "{folder}" in argv:
        (tmp_path / "report.json").write_text("{")
    argv = [arg.format(folder=tmp_path) for arg in argv]
    result = run_here("push", str(tmp_path), "me/model", *argv)
    line = result.output.strip().splitlines()[-1]
    assert result.status == 2 and line.startswith("error: ") and said in line, result.output
    if argv[0] == "--license":  # which the Hub refuses
        assert hub.files("me/model") == {}
    else:
        assert ("model", "me/model") not in hub.repos


def test_metadata_of_a_card_without_any():
    card = update_card(ModelCard("# Mine\n"), ModelCardData(tags=["adm"]), {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert yaml.safe_load(card.data.to_yaml()) == {"tags": ["adm"]}
    assert card.text.strip() == "# Mine"
