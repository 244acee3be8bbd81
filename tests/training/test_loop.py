"""The loop under strain: several processes, steps that are not finite, other precisions, compilation."""

import json
import shutil
import signal

import pytest
import torch
from conftest import TINY
from gradients import BAD_DRAW, STEPS, TOTAL, record
from processes import Signal, as_torchrun, run_function, run_together
from safetensors.torch import load_file
from torch._dynamo.utils import counters

from diffusers_cg.training import train_unet


# steps in bf16 and compilation are slow on a CPU
SMALL = {
    **{"resolution": 8, "base_channels": 8, "norm_num_groups": 4, "channel_multipliers": (1,)},
    **{"attention_resolutions": (), "attention_head_dim": 4},
}


def weights(folder):
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


# --------------------------------------------------------------------------------------------------- several processes


def record_together(num_processes, *args, logs, signals=None):
    """A training of tests/training/gradients.py; `signals` by the rank that sends one to itself."""
    if num_processes == 1:  # of no group
        ended = [run_function(record, *args, log=logs / "log0")]
    else:
        ended = run_together(as_torchrun, record, *args, num_processes=num_processes, logs=logs, signals=signals)
    for process in ended:
        assert process.status == 0, process.output


@pytest.fixture(scope="module")
def checkpoint(few_digits, tmp_path_factory):
    """`(name, number of processes, batch size) -> the last checkpoint` of a training of tests/training/gradients.py."""
    root = tmp_path_factory.mktemp("gradients")

    def checkpoint(name, num_processes, batch_size):
        folder = root / f"{name}_{num_processes}_{batch_size}"
        if not folder.exists():
            record_together(num_processes, few_digits, folder, name, batch_size, logs=root)
        return folder / f"checkpoint-{STEPS}"

    return checkpoint


@pytest.fixture(scope="module")
def recorded(checkpoint):
    """`(name, number of processes, batch size, rank) -> steps` of tests/training/gradients.py."""

    def recorded(name, num_processes=1, batch_size=TOTAL, rank=0):
        return torch.load(checkpoint(name, num_processes, batch_size).parent / f"{rank}.pt", weights_only=True)

    return recorded


@pytest.mark.parametrize(
    ("name", "num_processes", "batch_size"),
    [
        ("uniform", 1, TOTAL // 2),
        ("loss_second_moment", 2, TOTAL // 2),
        ("loss_second_moment", 2, TOTAL // 4),
        ("bad", 2, TOTAL // 2),
    ],
)
def test_gradients_do_not_depend_on_how_the_batch_is_split(recorded, name, num_processes, batch_size):
    whole = recorded(name)
    assert len(whole) == (STEPS - 1 if name == "bad" else STEPS)
    for rank in range(num_processes):
        split = recorded(name, num_processes, batch_size, rank)
        assert len(split) == len(whole)
        for one, other in zip(whole, split):
            error = (one["gradient"] - other["gradient"]).norm() / one["gradient"].norm()
            print(f"relative error {error:.1e}")
            assert error < 1e-5
            for key in one.keys() - {"gradient"}:
                assert torch.allclose(one[key], other[key], rtol=1e-5)


def test_another_sampler_gives_other_gradients(recorded):
    uniform, weighted = recorded("uniform")[0]["gradient"], recorded("loss_second_moment")[0]["gradient"]
    assert (uniform - weighted).norm() > 0.01 * uniform.norm()


def test_ranks_hold_the_same_sampler_to_the_last_bit(recorded):
    first, second = (recorded("loss_second_moment", 2, TOTAL // 2, rank) for rank in range(2))
    for one, other in zip(first, second):
        assert torch.equal(one["losses"], other["losses"]) and torch.equal(one["counts"], other["counts"])
    assert not torch.equal(first[0]["losses"], first[-1]["losses"])


def test_a_signal_to_one_process_stops_all_after_the_same_step(few_digits, recorded, tmp_path):
    stop = Signal(signal.SIGUSR1, ".png", count=TOTAL // 2 + 1)  # in the first steps
    what = (few_digits, tmp_path / "output", "uniform", TOTAL // 2)
    record_together(2, *what, logs=tmp_path, signals={1: stop})
    (checkpoint,) = (tmp_path / "output").glob("checkpoint-*")
    step = json.loads((checkpoint / "training_state.json").read_text())["global_step"]
    assert 1 <= step < STEPS
    whole = recorded("uniform")
    for rank in range(2):
        steps = torch.load(tmp_path / "output" / f"{rank}.pt", weights_only=True)
        assert len(steps) == step
        for one, other in zip(whole, steps):
            assert (one["gradient"] - other["gradient"]).norm() < 1e-5 * one["gradient"].norm()
        assert (checkpoint / f"random_states_{rank}.pkl").is_file()
    assert f"Stopped at step {step}; go on with" in (tmp_path / "log0").read_text()


# -------------------------------------------------------------------------------------------- steps that are not finite


def test_a_skipped_step_leaves_everything_but_the_count(recorded):
    good, bad = recorded("loss_second_moment"), recorded("bad")
    assert BAD_DRAW // TOTAL == 1
    assert torch.equal(good[0]["gradient"], bad[0]["gradient"])
    # the third step finds weights and sampler as the first one left them
    assert torch.equal(bad[1]["counts"], good[1]["counts"]) and torch.equal(bad[1]["losses"], good[1]["losses"])
    assert bad[2]["counts"].sum() - bad[1]["counts"].sum() == TOTAL


@pytest.mark.parametrize("batch_size", [TOTAL, TOTAL // 2])
def test_gradients_that_overflow_in_fp16_skip_the_step_and_lower_the_scale(recorded, checkpoint, batch_size):
    plain, half = recorded("uniform"), recorded("overflow", 1, batch_size)
    assert len(half) == STEPS - 1
    for one, other in zip(plain[1:], half):
        error = (one["gradient"] - other["gradient"]).norm() / one["gradient"].norm()
        print(f"relative error {error:.1e}")
        assert 1e-6 < error < 1e-2  # of 11 bits, unscaled again
    folder = checkpoint("overflow", 1, batch_size)
    assert json.loads((folder / "training_state.json").read_text())["skipped_steps"] == 1
    # 2 ** 40, lowered once and raised once, after two good steps
    assert torch.load(folder / "scaler.pt")["scale"] == 2.0**11
    assert torch.load(folder / "scheduler.bin")["last_epoch"] == STEPS - 1
    assert torch.load(folder / "custom_checkpoint_0.pkl", weights_only=False)["optimization_step"] == STEPS - 1


def test_training_goes_on_in_another_precision(recorded, checkpoint, few_digits, tmp_path):
    """A checkpoint in float32 has no scale of losses: it is found anew."""
    before = checkpoint("uniform", 1, TOTAL)
    ended = run_function(
        record, few_digits, tmp_path / "output", "overflow", TOTAL, STEPS + 3, before, log=tmp_path / "log"
    )
    assert ended.status == 0, ended.output
    assert f"at step {STEPS}." in ended.output
    assert len(torch.load(tmp_path / "output" / "0.pt", weights_only=True)) == 2  # and one that overflowed


def test_fp16_is_not_ignored_on_a_cpu(train, tmp_path):
    ended = train("train_unet", status=2, output_dir=tmp_path / "output", mixed_precision="fp16")
    assert ended.output.endswith("error: --mixed_precision fp16 needs a GPU: on a CPU pass bf16, or no.\n")
    assert not (tmp_path / "output").exists()


def test_a_training_that_blows_up_stops_with_its_last_good_checkpoint(train, tmp_path):
    ended = train(
        "train_unet",
        status=2,
        output_dir=tmp_path,
        **SMALL,
        learning_rate=1e30,
        lr_scheduler="linear",
        lr_warmup_steps=1,  # the first step does nothing
        max_train_steps=60,
        checkpointing_steps=1,
        checkpoints_total_limit=2,
    )
    assert "Traceback" not in ended.output
    checkpoints = sorted(tmp_path.glob("checkpoint-*"))
    last = int(checkpoints[-1].name.removeprefix("checkpoint-"))
    assert 1 <= last <= 4
    assert f"error: Stopped at step {last + 20}: the loss or the gradient of 20 steps in a row" in ended.output
    assert ended.output.strip().endswith(f"the last good checkpoint is {checkpoints[-1]}.")
    assert "skipped=20" in ended.output
    assert json.loads((checkpoints[-1] / "training_state.json").read_text())["skipped_steps"] == 0
    for name, tensor in load_file(checkpoints[-1] / "model.safetensors").items():
        assert tensor.isfinite().all(), name


# ------------------------------------------------------------------------------------------------ faster ways to train


BRIEF = {**SMALL, "max_train_steps": 2, "checkpointing_steps": 1, "adam_epsilon": 1e-3}


@pytest.fixture(scope="module")
def plain(train, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    train("train_unet", output_dir=folder, **BRIEF)
    return folder


def train_counting_graphs(argv: list[str]) -> None:
    train_unet.main(train_unet.parse_args(argv))
    print(f"{counters['stats']['unique_graphs']} graphs")


def test_a_compiled_model_goes_on_from_a_plain_one_and_is_saved_as_one(tiny_flags, plain, tmp_path):
    # this backend compiles to what it would compute anyway, and fast
    flags = {**BRIEF, "output_dir": tmp_path, "torch_compile": "eager"}
    argv = tiny_flags(**flags, resume_from_checkpoint=plain / "checkpoint-1")
    ended = run_function(train_counting_graphs, argv, log=tmp_path / "log")
    assert ended.status == 0, ended.output
    assert ended.output.strip().endswith("1 graphs")
    expected = weights(plain)
    assert weights(tmp_path).keys() == expected.keys()
    for name, tensor in weights(tmp_path).items():
        assert torch.allclose(tensor, expected[name], atol=1e-6), name


def test_a_step_of_other_batches_goes_on_from_the_middle_of_a_training(train, plain, tmp_path):
    size = TINY["train_batch_size"]
    flags = {**BRIEF, "output_dir": tmp_path, "train_batch_size": size // 2, "total_batch_size": size}
    train("train_unet", **flags, resume_from_checkpoint=plain / "checkpoint-1")
    before = load_file(plain / "checkpoint-1" / "model.safetensors")
    for name, tensor in weights(plain).items():
        assert torch.allclose(weights(tmp_path)[name], tensor, atol=1e-6), name
    assert any((weights(tmp_path)[name] - before[name]).abs().max() > 1e-6 for name in before)


def test_a_checkpoint_of_weights_in_another_layout_goes_on_all_the_same(train, plain, tmp_path):
    """As GPUs have it; optimizers that take all at once go by the order in memory."""
    there = tmp_path / "there" / "checkpoint-1"
    shutil.copytree(plain / "checkpoint-1", there)
    optimizer = torch.load(there / "optimizer.bin", weights_only=True)
    for state in optimizer["state"].values():
        for name, kept in state.items():
            if kept.ndim == 4:
                state[name] = kept.contiguous(memory_format=torch.channels_last)
    torch.save(optimizer, there / "optimizer.bin")
    train("train_unet", output_dir=tmp_path / "output", **BRIEF, resume_from_checkpoint=there)
    assert all(torch.equal(tensor, weights(plain)[name]) for name, tensor in weights(tmp_path / "output").items())


def test_the_bound_alone_trains(train, plain, tmp_path):
    train("train_unet", output_dir=tmp_path, **BRIEF, loss="kl")
    assert max((tensor - weights(plain)[name]).abs().max() for name, tensor in weights(tmp_path).items()) > 1e-6
