"""How fast the networks, guided sampling and training are, beside OpenAI's guided-diffusion on the same weights.

    git clone https://github.com/openai/guided-diffusion
    python benchmarks/speed.py --reference guided-diffusion

runs both in one process, one after the other and over again, on random weights (digits: those that ship), and writes under
`benchmarks/`

    results/speed_DEVICE.jsonl    a line per network, number type and measure: all times in seconds, peaks in bytes
    results/speed_DEVICE.md       medians, the smallest and the largest, ratios, and the share of the best rate
    figures/speed_DEVICE.png      the time of a guided step by images at once, and that of a call by its steps

The best rate is that of a matrix product or a large convolution in the same number type, timed in between. In bfloat16 on a CPU
the reference, which has none, computes in float32; on a GPU its own float16 stands against either of ours. Without
`--reference` ours is measured alone. A later call replaces the lines of what it measures, and leaves the others.
"""

import gc
import itertools
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from matplotlib.figure import Figure
from pydantic import PositiveInt
from speed_reference import TIMESTEP, Reference, open_reference
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from tqdm.auto import tqdm

from diffusers_cg import (
    DIGITS,
    ADMUNet2DModel,
    ClassifierGuidedDDIMPipeline,
    ClassifierGuidedDDPMPipeline,
    NoisyClassifierModel,
)
from diffusers_cg.diffusion import training_scheduler
from diffusers_cg.errors import InputError
from diffusers_cg.guidance import classifier_gradient
from diffusers_cg.models import DTYPES
from diffusers_cg.models.presets import PRESETS
from diffusers_cg_cli.command import run_script
from diffusers_cg_cli.settings import Settings


FOLDER = Path(__file__).parent
BATCH_SIZES = {"cpu": {"digits": 8, "64": 2, "256": 1}, "cuda": {"digits": 256, "64": 64, "256": 16}}
NUM_STEPS = 10
PARTS = ("unet", "classifier gradient", "DDPM step", "DDIM step")
CALL = f"{NUM_STEPS} DDIM steps"
torch.backends.cudnn.allow_tf32 = False  # float32 is meant where a table says so


# ------------------------------------------------------------------------------------------------------------- networks


def make_networks(size: str, dtype: torch.dtype = torch.float32) -> tuple[ADMUNet2DModel, NoisyClassifierModel]:
    """Unet and classifier of the digits that ship, or of OpenAI's size with random weights, none of them zero."""
    if size == "digits":
        pipe = ClassifierGuidedDDIMPipeline.from_pretrained(DIGITS, dtype=dtype, solver=None)
        return pipe.unet, pipe.classifier
    torch.manual_seed(0)
    networks = (
        ADMUNet2DModel(**PRESETS[f"{size}x{size}_diffusion"].architecture),
        NoisyClassifierModel(**PRESETS[f"{size}x{size}_classifier"].architecture),
    )
    for parameter in itertools.chain.from_iterable(network.parameters() for network in networks):
        if parameter.device.type != "meta" and not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return tuple(nn.Module.to(network, dtype).eval() for network in networks)


def make_inputs(unet: ADMUNet2DModel, batch_size: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise (B, C, H, W) for the unet, and labels (B,) of its classes, the same in every process."""
    generator = torch.Generator().manual_seed(1)
    sides = [unet.config.sample_size] * 2
    sample = torch.randn(batch_size, unet.config.in_channels, *sides, generator=generator)
    labels = torch.randint(unet.config.num_class_embeds, (batch_size,), generator=generator)
    return sample.to(device), labels.to(device)


class Ours:
    """What is timed of this library; [`Reference`] has the same methods.

    Args:
        unet, classifier: From [`make_networks`], on their device.
        sample (`torch.Tensor`): x_t, (B, C, H, W), float32.
        class_labels (`torch.Tensor`): (B,) int64.
        compile (`str`, *optional*): A mode of `torch.compile`.
    """

    def __init__(
        self,
        unet: ADMUNet2DModel,
        classifier: NoisyClassifierModel,
        sample: torch.Tensor,
        class_labels: torch.Tensor,
        compile: str | None = None,
    ):
        self.sample, self.class_labels = sample, class_labels
        self.timestep = torch.tensor(TIMESTEP, device=sample.device)
        scheduler = training_scheduler()
        self.ddpm = ClassifierGuidedDDPMPipeline(unet, scheduler, classifier)
        self.ddim = ClassifierGuidedDDIMPipeline(unet, scheduler, classifier)
        for pipe in (self.ddpm, self.ddim):
            pipe.set_progress_bar_config(disable=True)
        if compile is not None:
            self.ddpm.compile(mode=compile)  # the networks of both

    @torch.no_grad()
    def unet(self) -> torch.Tensor:
        unet = self.ddim.unet
        return unet(self.sample.to(unet.dtype), self.timestep, self.class_labels).sample

    def classifier_gradient(self) -> torch.Tensor:
        return classifier_gradient(self.ddim.classifier, self.sample, self.timestep, self.class_labels)

    def steps(self, algorithm: Literal["DDPM", "DDIM"], number: int) -> torch.Tensor:
        """x_0 after that many guided steps from `sample`; one is from the middle of the process."""
        pipe = self.ddpm if algorithm == "DDPM" else self.ddim
        steps = {"timesteps": [TIMESTEP]} if number == 1 else {"num_inference_steps": number}
        return pipe(self.class_labels, latents=self.sample, classifier_scale=1.0, output_type="latent", **steps).images


def functions_of(contender: "Ours | Reference") -> dict[str, Callable[[], torch.Tensor]]:
    """What is timed of sampling, by its name."""
    of_steps = (partial(contender.steps, algorithm, 1) for algorithm in ("DDPM", "DDIM"))
    parts = dict(zip(PARTS, (contender.unet, contender.classifier_gradient, *of_steps)))
    return {**parts, CALL: partial(contender.steps, "DDIM", NUM_STEPS)}


# --------------------------------------------------------------------------------------------------------------- timing


def seconds(function: Callable[[], Any], device: str) -> float:
    started = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def interleaved(functions: dict[str, Callable[[], Any]], repeats: int, device: str) -> dict[str, list[float]]:
    """Seconds of each function, one after the other and over again; first rounds are not counted."""
    uncounted = 1 if device == "cpu" else 5  # until CUDA graphs are recorded, and scales of losses found
    times = {name: [] for name in functions}
    rounds = tqdm(range(uncounted + repeats), desc=f"rounds of {', '.join(functions)}", leave=False)
    for number, (name, function) in itertools.product(rounds, functions.items()):
        taken = seconds(function, device)
        if number >= uncounted:
            times[name].append(taken)
    return times


def flops_of_parts(contender: Ours) -> dict[str, int]:
    """Additions and multiplications of matrix products, convolutions and attention, by what is timed of sampling."""
    aten = torch.ops.aten  # its attention on a CPU is what the counter does not know
    attention = {
        aten._scaled_dot_product_flash_attention_for_cpu: lambda query, key, value, *_, **__: sdpa_flop_count(
            query, key, value
        ),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda gradient, query, key, value, *_, **__: (
            sdpa_backward_flop_count(gradient, query, key, value)
        ),
    }
    counter = partial(FlopCounterMode, display=False, custom_mapping=attention)
    with counter() as of_unet:
        contender.unet()
    classifier = contender.ddim.classifier.requires_grad_(False)
    leaf = contender.sample.to(classifier.dtype, copy=True).requires_grad_(True)
    with counter() as of_gradient:  # which cannot count torch.autograd.grad
        classifier(leaf, contender.timestep).logits.sum().backward()
    unet, gradient = of_unet.get_total_flops(), of_gradient.get_total_flops()
    step = unet + gradient
    return dict(zip((*PARTS, CALL), (unet, gradient, step, step, NUM_STEPS * step)))


def rate_functions(dtype: torch.dtype, device: str) -> dict[str, tuple[Callable[[], Any], int]]:
    """A large product, and a large convolution in either layout, with their FLOP."""
    side, channels, size, batch = (2048, 256, 64, 2) if device == "cpu" else (8192, 512, 64, 64)
    matrix = torch.randn(side, side, device=device, dtype=dtype)
    images = torch.randn(batch, channels, size, size, device=device, dtype=dtype)
    convolution = nn.Conv2d(channels, channels, 3, padding=1, device=device, dtype=dtype).requires_grad_(False)
    last = nn.Conv2d(channels, channels, 3, padding=1, device=device, dtype=dtype).requires_grad_(False)
    last = last.to(memory_format=torch.channels_last)
    images_last = images.to(memory_format=torch.channels_last)
    of_convolution = 2 * batch * size**2 * channels**2 * 9
    return {
        "product": (lambda: matrix @ matrix, 2 * side**3),
        "convolution": (lambda: convolution(images), of_convolution),
        "convolution, channels-last": (lambda: last(images_last), of_convolution),
    }


# ------------------------------------------------------------------------------------------------------------- measures


def measure_parts(args: "SpeedSettings", size: str, dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    """Lines of the networks and of guided steps."""
    return measure_sampling(args, size, dtype, PARTS, args.repeats)


def measure_call(args: "SpeedSettings", size: str, dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    """The line of a guided call from noise to images."""
    return measure_sampling(args, size, dtype, (CALL,), max(3, args.repeats // 3))


def measure_sampling(
    args: "SpeedSettings", size: str, dtype: torch.dtype, measures: Sequence[str], repeats: int
) -> Iterator[dict[str, Any]]:
    """Times, and how far the two implementations are apart."""
    torch.compiler.reset()  # which generalizes from the sizes of an earlier network
    batch_size = args.batch_size or BATCH_SIZES[args.device][size]
    unet, classifier = (network.to(args.device) for network in make_networks(size, dtype))
    sample, labels = make_inputs(unet, batch_size, args.device)
    contenders = {}
    if args.reference is not None:
        contenders["reference"] = Reference(args.reference, unet, classifier, sample, labels)
    contenders["ours"] = Ours(unet, classifier, sample, labels)
    counts = flops_of_parts(contenders["ours"])
    for mode in args.compile:
        networks = (network.to(args.device) for network in make_networks(size, dtype))
        contenders[f"ours, compiled ({mode})"] = Ours(*networks, sample, labels, mode)
    functions = {name: functions_of(contender) for name, contender in contenders.items()}

    rates = rate_functions(dtype, args.device)
    for measure in measures:
        latest = {}

        def timed(name: str, measure: str = measure, latest: dict = latest) -> None:
            latest[name] = functions[name][measure]()

        times = interleaved(
            {name: partial(timed, name) for name in functions}
            | {name: function for name, (function, _) in rates.items()},
            repeats,
            args.device,
        )
        best = max(count / min(times.pop(name)) for name, (_, count) in rates.items())
        line = {"measure": measure, "batch_size": batch_size, "seconds": times, "flops": counts[measure]}
        # a single step of ours goes all the way to a clean image
        if args.reference is not None and measure not in ("DDPM step", "DDIM step"):
            theirs, own = latest["reference"].float(), latest["ours"].float()
            line["relative_difference"] = ((theirs - own).abs().max() / theirs.abs().max()).item()
        yield {**line, "best_rate": best}


def training_seconds(
    kind: str, reference: Path | None, size: str, dtype: torch.dtype, device: str, batch_size: int, repeats: int
) -> dict[str, list[float]]:
    """Seconds of training steps; called in a process of its own, since Accelerate takes one precision and device for all."""
    # here, since it takes what the extra `train` brings
    from speed_training import our_training, reference_training

    if device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    precision = {torch.float32: "no", torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]
    with tempfile.TemporaryDirectory() as folder:
        network, step = our_training(kind, f"{size}x{size}", batch_size, precision, Path(folder))
        functions = {"ours": step}
        if reference is not None:
            functions = {"reference": reference_training(reference, kind, network, batch_size, dtype), **functions}
        return interleaved(functions, repeats, device)


def measure_training(args: "SpeedSettings", size: str, dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    """Lines of a training step of unet and classifier: forward, backward, optimizer and average."""
    if dtype == torch.float16 and args.device == "cpu":  # which needs a scaled loss, and that a GPU
        return
    batch_size = args.batch_size or BATCH_SIZES[args.device][size]
    for kind in ("unet", "classifier"):
        call = (kind, args.reference, size, dtype, args.device, batch_size, max(3, args.repeats // 3))
        times = in_own_process(training_seconds, *call)
        yield {"measure": f"training step, {kind}", "batch_size": batch_size, "seconds": times}


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function gives in a new process, which ends with it."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def peak_resident() -> int:
    """Bytes that this process has held at most; `getrusage` counts those of the process that started it, too."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def peak_memory(
    contender: str, reference: Path | None, size: str, dtype: torch.dtype, device: str, batch_size: int
) -> int:
    """Bytes that a guided DDIM step takes at most, weights included; called in a process of its own."""
    before = peak_resident()  # the packages
    if contender == "reference":
        with torch.device("meta"):
            unet, classifier = make_networks(size)
        runner = Reference(reference, unet, classifier, *make_inputs(unet, batch_size, device), dtype=dtype)
    else:
        unet, classifier = (network.to(device) for network in make_networks(size, dtype))
        runner = Ours(unet, classifier, *make_inputs(unet, batch_size, device))
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()  # making the networks took more, perhaps
    runner.steps("DDIM", 1)
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return peak_resident() - before


def measure_memory(args: "SpeedSettings", size: str, dtype: torch.dtype) -> list[dict[str, Any]]:
    batch_size = args.batch_size or BATCH_SIZES[args.device][size]
    peaks = {}
    for contender in ("reference", "ours") if args.reference is not None else ("ours",):
        call = (contender, args.reference, size, dtype, args.device, batch_size)
        peaks[contender] = in_own_process(peak_memory, *call)
    return [{"measure": "peak memory of a guided step", "batch_size": batch_size, "bytes": peaks}]


def measure_loading(args: "SpeedSettings", size: str, dtype: torch.dtype) -> list[dict[str, Any]]:
    """From files to networks that are ready: a saved pipeline, and two `.pt` files; all in the cache of the disk."""
    with tempfile.TemporaryDirectory() as folder:
        unet, classifier = make_networks(size, dtype)
        pipe = ClassifierGuidedDDIMPipeline(unet, training_scheduler(), classifier)
        pipe.save_pretrained(folder)
        functions = {"ours": lambda: ClassifierGuidedDDIMPipeline.from_pretrained(folder, dtype=dtype)}
        if args.reference is not None:
            functions = {"reference": Reference.loading(args.reference, pipe, Path(folder)), **functions}
        del unet, classifier, pipe
        gc.collect()
        return [{"measure": "loading", "seconds": interleaved(functions, 3, args.device)}]


def measure_overhead(args: "SpeedSettings", size: str, dtype: torch.dtype) -> list[dict[str, Any]]:
    """A guided step at batch 1, and of it what the two networks take by themselves."""
    unet, classifier = (network.to(args.device) for network in make_networks(size, dtype))
    ours = Ours(unet, classifier, *make_inputs(unet, 1, args.device))
    classifier.requires_grad_(False)
    number = 25

    def networks() -> None:
        for _ in range(number):
            ours.unet()
            leaf = ours.sample.to(dtype, copy=True).requires_grad_(True)
            logits = classifier(leaf, ours.timestep).logits.log_softmax(dim=1)
            torch.autograd.grad(logits[0, 0], leaf)

    functions = {"networks": networks, "step": partial(ours.steps, "DDIM", number)}
    times = interleaved(functions, args.repeats, args.device)
    per_step = {name: [each / number for each in values] for name, values in times.items()}
    return [{"measure": "guided step at batch 1", "batch_size": 1, "seconds": per_step}]


def measure_growth(args: "SpeedSettings", size: str, dtype: torch.dtype) -> list[dict[str, Any]]:
    """Seconds of a guided call by images at once, and by steps."""
    unet, classifier = (network.to(args.device) for network in make_networks(size, dtype))
    batch_size = args.batch_size or BATCH_SIZES[args.device][size]
    sample, labels = make_inputs(unet, 8 * batch_size, args.device)
    by_images = {
        number: partial(Ours(unet, classifier, sample[:number], labels[:number]).steps, "DDIM", 2)
        for number in (batch_size, 2 * batch_size, 4 * batch_size, 8 * batch_size)
    }
    few = Ours(unet, classifier, sample[:batch_size], labels[:batch_size])
    by_steps = {number: partial(few.steps, "DDIM", number) for number in (2, 5, 10, 20, 40)}
    return [
        {"measure": f"call by {name}", "batch_size": batch_size, "seconds": interleaved(functions, 5, args.device)}
        for name, functions in (("images", by_images), ("steps", by_steps))
    ]


SIZES = ("digits", "64", "256")
MEASURES = {
    "parts": (measure_parts, SIZES),
    "call": (measure_call, SIZES),
    "training": (measure_training, ("64",)),
    "memory": (measure_memory, ("64", "256")),
    "loading": (measure_loading, ("64", "256")),
    "overhead": (measure_overhead, ("digits",)),
    "growth": (measure_growth, ("digits",)),
}
"""What is measured, and of which networks."""


# --------------------------------------------------------------------------------------------------------------- tables


def in_words(values: list[float]) -> str:
    """The median, with the smallest and the largest, in seconds or milliseconds."""
    unit, scale = ("s", 1) if statistics.median(values) >= 1 else ("ms", 1000)
    median, least, most = (f"{scale * each:.3g}" for each in (statistics.median(values), min(values), max(values)))
    return f"{median} {unit} ({least} to {most})"


def rows_of(line: dict[str, Any]) -> Iterator[str]:
    """A line as rows of the table, one for each way in which ours ran."""
    compared = line.get("seconds") or line["bytes"]
    if "bytes" in line:
        shown = {name: f"{peak / 2**30:.2f} GiB" for name, peak in compared.items()}
        typical = compared
    else:
        shown = {name: in_words(values) for name, values in compared.items()}
        typical = {name: statistics.median(values) for name, values in compared.items()}
    cells = [line["model"], line["dtype"], str(line.get("batch_size", "")), line["measure"]]
    own = [name for name in typical if name.startswith("ours")]
    for name in own:
        share = ""
        if line.get("flops"):
            share = f"{line['flops'] / typical[name] / line['best_rate']:.0%} of {line['best_rate'] / 1e9:.0f} GFLOP/s"
        ratio = f"{typical['reference'] / typical[name]:.2f}" if "reference" in typical else ""
        yield f"| {' | '.join([*cells, name.removeprefix('ours, '), shown.get('reference', ''), shown[name], ratio, share])} |"


def table(lines: list[dict[str, Any]]) -> str:
    head = ["network", "number type", "images", "measure", "as", "reference", "ours", "reference / ours", "rate"]
    rows = [f"| {' | '.join(head)} |", f"| {' | '.join('---' for _ in head)} |"]
    for line in lines:
        rows += [] if line["measure"].startswith(("call by", "guided step at")) else rows_of(line)
    for line in lines:
        if line["measure"] == "guided step at batch 1":
            step, networks = (statistics.median(line["seconds"][name]) for name in ("step", "networks"))
            rows.append(
                f"\n{line['model']}, {line['dtype']}, one image: a guided step takes {1000 * step:.1f} ms, of which "
                f"{1 - networks / step:.0%} outside the two networks.\n"
            )
    for line in lines:
        if line.get("relative_difference") is not None:
            rows.append(
                f"{line['model']}, {line['dtype']}, {line['measure']}: the two differ by {line['relative_difference']:.1e} of "
                "the largest value.\n"
            )
    return "\n".join(rows) + "\n"


def plot(lines: list[dict[str, Any]], path: Path) -> None:
    """Seconds of calls by images at once and by steps, with lines from nothing to the last point."""
    growth = [line for line in lines if line["measure"].startswith("call by")]
    if not growth:
        return
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axis, name in zip(figure.subplots(1, 2), ("images", "steps")):
        for line in growth:
            if line["measure"] == f"call by {name}":
                numbers = [int(number) for number in line["seconds"]]
                times = [statistics.median(values) for values in line["seconds"].values()]
                errors = [
                    [time - min(values) for time, values in zip(times, line["seconds"].values())],
                    [max(values) - time for time, values in zip(times, line["seconds"].values())],
                ]
                axis.errorbar(numbers, times, errors, marker="o", capsize=3, label=f"{line['model']}, {line['dtype']}")
                axis.plot([0, numbers[-1]], [0, times[-1]], color="0.6", lw=1, ls="--")
        axis.set(
            xlabel={"images": "images at once (2 steps)", "steps": "steps"}[name], ylabel="seconds of a guided call"
        )
        axis.set(xlim=(0, None), ylim=(0, None))
        axis.grid(alpha=0.3)
        axis.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


# ---------------------------------------------------------------------------------------------------------- the command


class SpeedSettings(Settings):
    reference: Path | None = None
    """A clone of guided-diffusion."""
    models: list[Literal[SIZES]] = list(SIZES)
    dtypes: list[Literal[tuple(DTYPES)]] = ["fp32"]
    measures: list[Literal[tuple(MEASURES)]] = list(MEASURES)
    """Training is measured for 64, memory and loading for 64 and 256, overhead and growth for digits."""
    compile: list[Literal["default", "reduce-overhead", "max-autotune"]] = []
    """Modes of torch.compile to measure beside."""
    device: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() else "cpu"
    batch_size: PositiveInt | None = None
    """In place of 8 digits, 2 images of 64 and 1 of 256 on a CPU, and 256, 64 and 16 on a GPU."""
    repeats: PositiveInt = 9
    """Of each part; a third of it of a whole call and of training, at least 3."""
    output_dir: Path = FOLDER
    """Folder of `results` and `figures`."""


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a file, none where there is no file."""
    return [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []


def main(args: SpeedSettings) -> None:
    if args.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda needs a GPU, and this machine shows none.")
    if args.reference is not None:
        open_reference(args.reference)  # says at once if it is none
    path = args.output_dir / "results" / f"speed_{args.device}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = torch.cuda.get_device_name() if args.device == "cuda" else f"{platform.machine()} CPU"
    if any(line["machine"] != machine for line in read(path)):
        raise InputError(f"{path} holds times of another machine: pass another --output_dir.")
    where = {
        "date": str(date.today()),
        "torch": torch.__version__,
        "machine": machine,
        "threads": torch.get_num_threads(),
    }
    for size, dtype, measure in itertools.product(args.models, args.dtypes, args.measures):
        function, sizes = MEASURES[measure]
        if size not in sizes:
            continue
        for measured in function(args, size, DTYPES[dtype]):
            line = {"model": size, "dtype": dtype, **measured, **where}
            lines = read(path)
            same = ("model", "dtype", "measure")
            lines = [each for each in lines if any(each[name] != line[name] for name in same)] + [line]
            lines.sort(key=lambda line: (SIZES.index(line["model"]), line["dtype"]))
            path.write_text("".join(json.dumps(each) + "\n" for each in lines))
            path.with_suffix(".md").write_text(table(lines))
            plot(lines, args.output_dir / "figures" / f"speed_{args.device}.png")
            print(table([line]), flush=True)
        gc.collect()
    print(f"Look at {path.with_suffix('.md')}.")


if __name__ == "__main__":
    run_script(main, SpeedSettings, __doc__)
