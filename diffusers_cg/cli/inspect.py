"""`diffusers-cg inspect`: what a checkpoint is, and how that is known."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from diffusers_cg_cli.convert import CheckpointSettings, facts_of


if TYPE_CHECKING:
    from diffusers_cg.models.openai_files import Examined


ORIGINS = {
    "shapes": "certain, from names and shapes",
    "name": "known, from the file's name",
    "configuration": "stated, by its config.json",
    "stated": "stated, by you",
    "assumed": "assumed, from the shapes of {layout}",
}


class InspectSettings(CheckpointSettings):
    """Says what a checkpoint is, without reading its weights: its kind, layout, flags and schedule, and how sure that is."""

    file: Positional[Path]
    """The checkpoint: a file, a folder or a repository, as for convert."""


def run(settings: InspectSettings) -> None:
    from diffusers_cg.models.hub_formats import path_or_download
    from diffusers_cg.models.openai_files import examine
    from diffusers_cg.models.own_layouts import register_layouts

    if settings.layouts is not None:
        register_layouts(settings.layouts)
    print("\n".join(describe(examine(path_or_download(settings.file), **facts_of(settings)))))


def describe(examined: "Examined") -> list[str]:
    """Lines for a person."""
    from diffusers_cg.models.openai_flags import flags_of_facts

    recognised, layout = examined.recognised, examined.layout
    specs = examined.parameters.specs.values()
    dtypes = sorted({str(spec.dtype).removeprefix("torch.") for spec in specs})
    found = recognised.arguments
    if "sample_size" in examined.facts:
        found = recognised.arguments_at(examined.facts["sample_size"])
        origin = examined.origins["sample_size"]
        found = {key: value for key, value in found.items() if origin == "shapes" or key != "sample_size"}
    by_origin: dict[str, dict[str, Any]] = {"shapes": dict(found)}
    for name, value in examined.facts.items():
        by_origin.setdefault(examined.origins[name], {})[name] = value
    facts = {**examined.facts, **found}
    if layout is not None and layout.low_res_size is not None:
        facts["low_res_size"] = layout.low_res_size

    named = "none that is known"
    if layout is not None:
        how = {"name": "by its name", "stated": "as you state", "assumed": "by its shapes alone"}
        named = f"{examined.layout_name}, {how[examined.origins['layout']]}"
    lines = [
        f"file: {examined.where}",
        f"kind: {recognised.kind}{_details(recognised.kind, found)}",
        f"layout: {named}",
        f"parameters: {sum(spec.numel() for spec in specs):,} in {' and '.join(dtypes)}",
    ]
    prefix, left_out = getattr(examined.parameters, "prefix", ""), getattr(examined.parameters, "left_out", 0)
    if prefix:
        lines.append(f"taken from: {prefix.rstrip('.')} ({left_out} other tensors beside it)")
    if layout is not None and layout.source:
        lines.append(f"source: {layout.source}; license: {layout.license}")
    if layout is not None and layout.note:
        lines.append(f"note: {layout.note}")
    lines.append(f"OpenAI's flags: {_flags(flags_of_facts(recognised.kind, facts))}")
    for origin, says in ORIGINS.items():
        if by_origin.get(origin):
            said = ", ".join(f"{name}={value!r}" for name, value in by_origin[origin].items())
            lines.append(f"{says.format(layout=examined.layout_name)}: {said}")
    if examined.missing:
        lines.append(f"not told by anything, pass: {'; '.join(examined.missing)}")
    if layout is None and "beta_schedule" not in examined.facts:
        lines.append("not told by anything, assumed by convert: num_train_timesteps, beta_schedule, prediction_type")
    return [*lines, *(f"note: {note}" for note in examined.notes)]


def _details(kind: str, found: dict[str, Any]) -> str:
    if kind == "classifier":
        return f" of {found['num_classes']:,} classes"
    classes = f"{found['num_class_embeds']:,} classes" if found["num_class_embeds"] else "unconditional"
    upsamples = ", upsampling" if found["low_res_channels"] else ""
    learned = "learned" if found["out_channels"] == 2 * found["in_channels"] else "fixed"
    return f"{upsamples}, {classes}, {learned} variance"


def _flags(flags: dict[str, Any]) -> str:
    return " ".join(f"--{name} {value}" for name, value in flags.items())
