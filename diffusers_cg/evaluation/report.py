"""What an evaluation says: metrics, what was measured with what, and what the numbers are worth."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

from diffusers_cg.data.files import read_json
from diffusers_cg.data.text import in_markdown
from diffusers_cg.errors import InputError
from diffusers_cg.evaluation.metrics import metric_names


REPORT_FILE, MARKDOWN_FILE = "report.json", "report.md"


@dataclass(frozen=True)
class SetFacts:
    """A set, as a report names it.

    Args:
        source (`str`): What it was opened from.
        num_images (`int`, *optional*): None for statistics alone, as are the next two.
        shape (list of `int`, *optional*): [H, W, C].
        content_hash (`str`, *optional*): SHA-256 of what the images were read from.
    """

    source: str
    num_images: int | None = None
    shape: list[int] | None = None
    content_hash: str | None = None

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.source}, statistics alone"
        return f"{self.source}, {self.num_images} images of {self.size}"

    @property
    def size(self) -> str:
        height, width, channels = self.shape
        return f"{width}x{height} in {'gray' if channels == 1 else 'color'}"


@dataclass(frozen=True)
class Evaluation:
    """Metrics of samples, and what they are worth.

    Args:
        metrics (`dict`): By the keys of their rows in the table of [`metrics`]; None where one cannot be computed.
        samples, reference ([`SetFacts`]): What was measured.
        extractor, extractor_hash (`str`, *optional*): What it was measured with; None if both sets were statistics, and
            the hash also if the extractor states none.
        warnings (list of `str`): A sentence for each reason why numbers are missing or not comparable with others.
        names (`dict`): What [`name`] calls metrics that are not in the table.
    """

    metrics: dict[str, float | None]
    samples: SetFacts
    reference: SetFacts
    extractor: str | None
    extractor_hash: str | None
    warnings: list[str]
    names: dict[str, str] = field(default_factory=dict, compare=False)

    def name(self, key: str) -> str:
        """What people call a metric; its key where nobody says, as in a report that was loaded."""
        return {**metric_names(self.extractor), **self.names}.get(key, key)

    def to_markdown(self) -> str:
        """A table of the metrics, and the rest in sentences."""
        rows = [
            f"| {in_markdown(self.name(key))} | {'-' if value is None else f'{value:.4f}'} |"
            for key, value in self.metrics.items()
        ]
        extractor = in_markdown(self.extractor)
        extractor_hash = f"hash `{in_markdown(self.extractor_hash)}`" if self.extractor_hash else "no hash"
        facts = [
            f"- Samples: {in_markdown(self.samples)}",
            f"- Reference: {in_markdown(self.reference)}",
            f"- Extractor: {'unknown' if self.extractor is None else f'{extractor}, {extractor_hash}'}",
        ]
        warnings = [f"- Warning: {in_markdown(warning)}" for warning in self.warnings]
        return "\n".join(["| Metric | Value |", "|---|---|", *rows, "", *facts, *warnings, ""])

    def save(self, directory: str | Path) -> None:
        """Writes `report.json` (the fields of this class but the names) and `report.md` into an existing folder."""
        fields = {name: value for name, value in asdict(self).items() if name != "names"}
        (Path(directory) / REPORT_FILE).write_text(json.dumps(fields, indent=2) + "\n")
        (Path(directory) / MARKDOWN_FILE).write_text(self.to_markdown())

    @classmethod
    def load(cls, directory: str | Path) -> "Evaluation":
        """Reads what [`save`] wrote.

        Raises:
            InputError: if there is none, or something else.
        """
        path = Path(directory) / REPORT_FILE
        try:
            return TypeAdapter(cls).validate_python(read_json(path))
        except (OSError, ValueError) as error:  # of pydantic, too, where a value is missing or of another type
            raise InputError(f"{path} is not a report of diffusers-cg evaluate ({error}).") from error
