"""Rows of one's own in the table of layouts, from Python and from a file."""

from dataclasses import fields
from pathlib import Path

import yaml

from diffusers_cg.errors import InputError
from diffusers_cg.models.openai_files import PREDICTION_TYPES
from diffusers_cg.models.openai_flags import layout_facts_of_flags
from diffusers_cg.models.presets import CONTINUOUS_COSINE, COSINE, LAYOUTS, LINEAR, Layout


SCHEDULES = (LINEAR, COSINE, CONTINUOUS_COSINE, "scaled_linear", "sigmoid")  # diffusers' names, and one beside them


def register_layout(name: str, layout: Layout) -> None:
    """Adds a row of your own to the table: files of its names, or of its shapes alone, are then loaded by it.

    Args:
        name (`str`): What to call it, as `layout=` of `from_single_file`.
        layout ([`Layout`]): The row.

    Raises:
        InputError: if there is another row, or a file, of that name, or the row contradicts itself.
    """
    if LAYOUTS.get(name, layout) != layout:
        raise InputError(f"There is a layout {name} already: give yours another name.")
    if layout.kind not in ("unet", "classifier"):
        raise InputError(f"Layout {name}: `kind` must be 'unet' or 'classifier', got {layout.kind!r}.")
    if layout.beta_schedule not in SCHEDULES:
        raise InputError(f"Layout {name}: `beta_schedule` must be one of {SCHEDULES}, got {layout.beta_schedule!r}.")
    if layout.prediction_type not in PREDICTION_TYPES:
        raise InputError(
            f"Layout {name}: `prediction_type` must be one of {PREDICTION_TYPES}, got {layout.prediction_type!r}."
        )
    if "sample_size" not in layout.architecture:
        raise InputError(f"Layout {name}: its architecture must state `sample_size`, the side of the image.")
    taken = {file.lower(): other for other, row in LAYOUTS.items() if other != name for file in row.files}
    for file in layout.files:
        if file.lower() in taken:
            raise InputError(f"Layout {name}: files named {file} have the layout {taken[file.lower()]} already.")
    LAYOUTS[name] = layout


def register_layouts(path: str | Path) -> list[str]:
    """Adds the rows of a YAML or JSON file, an entry each: the arguments of [`Layout`] by name.

        my_faces:
          files: [faces_ema]
          architecture: {sample_size: 128, base_channels: 128, layers_per_block: 2, num_attention_heads: 4, ...}
          num_train_timesteps: 500

    The flags that its repository publishes may stand in place of `architecture`:

        my_faces:
          files: [faces_ema]
          flags: {image_size: 128, num_channels: 128, num_res_blocks: 2, num_heads: 4, diffusion_steps: 500, ...}

    Returns:
        Their names.

    Raises:
        OSError, InputError: if there is no such file, or a row is none.
    """
    try:
        rows = yaml.safe_load(Path(path).read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as YAML or JSON ({' '.join(str(error).split())}).") from error
    if not isinstance(rows, dict) or not all(isinstance(row, dict) for row in rows.values()):
        raise InputError(f"{path} holds no layouts: it must hold a name and its arguments for each.")
    known = {field.name for field in fields(Layout)}
    for name, row in rows.items():
        row = {"kind": "unet", **row}
        for part in ("flags", "architecture"):
            if not isinstance(row.get(part, {}), dict):
                raise InputError(
                    f"{path}: `{part}` of the layout {name} must hold names and values, got {row[part]!r}."
                )
        if "flags" in row:
            row = layout_facts_of_flags(row.pop("flags")) | row
        unknown = sorted(set(row) - known)
        if unknown or "architecture" not in row:
            fault = f"has no {unknown[0]}" if unknown else "needs `architecture` or `flags`"
            raise InputError(f"{path}: the layout {name} {fault}; its entries are {', '.join([*known, 'flags'])}.")
        files = row.get("files") or ()
        row["files"] = tuple(map(str, files if isinstance(files, list | tuple) else [files]))
        row["architecture"] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in row["architecture"].items()
        }
        register_layout(str(name), Layout(**row))
    return list(map(str, rows))
