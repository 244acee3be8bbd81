"""Files of OpenAI's layout: every kind is read, and nothing in one is run."""

import pickle
import warnings
import zipfile
from contextlib import nullcontext

import pytest
import torch
from reference import CASES, FORWARD, reference_facts, reference_unet, rule_state_dict
from safetensors.torch import load_file, save_file

from diffusers_cg import ADMUNet2DModel
from diffusers_cg.errors import InputError
from diffusers_cg.models.openai_files import CheckpointWarning, open_checkpoint
from diffusers_cg.models.weight_files import InFiles


STORED = CASES["forward"]["unet"]["unconditional_dropout"]
FACTS = reference_facts(STORED["flags"])


def refused(cls, source, **facts):
    with pytest.raises(InputError) as error:
        cls.from_single_file(source, **facts)
    return str(error.value)


@pytest.fixture
def path(tmp_path):
    """A unet's file."""
    path = tmp_path / "ema_0.9999_100000.pt"
    torch.save(rule_state_dict(STORED["shapes"]), path)
    return path


@torch.no_grad()
def output(unet):
    return unet(FORWARD["x"], FORWARD["t"]).sample


@pytest.mark.parametrize("kind", ["pt", "old pt", "safetensors", "half-precision pt"])
def test_every_kind_of_file(path, tmp_path, kind):
    state_dict = rule_state_dict(STORED["shapes"])
    if kind == "old pt":
        torch.save(state_dict, path, _use_new_zipfile_serialization=False)
    elif kind == "safetensors":
        path = path.with_suffix(".safetensors")
        save_file(state_dict, path)
    elif kind == "half-precision pt":
        torch.save({key: value.half() for key, value in state_dict.items()}, path)
    with pytest.warns(CheckpointWarning, match="rounded to float16") if "half" in kind else nullcontext():
        unet = ADMUNet2DModel.from_single_file(path, **FACTS)
    assert unet.dtype == torch.float32
    expected = output(reference_unet("unconditional_dropout"))
    assert (output(unet) - expected).abs().max() <= (1e-2 if "half" in kind else 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shard", ["10GB", "300KB", "20KB"])  # the last is less than the largest tensors take
def test_from_file_to_file_is_as_through_memory(path, tmp_path, monkeypatch, dtype, shard):
    monkeypatch.setattr("diffusers_cg.models.weight_files.REMAP_BYTES", 100_000)  # the file is mapped several times
    unet = ADMUNet2DModel.from_checkpoint(open_checkpoint(path, "unet", **FACTS), dtype, read=False)
    assert all(parameter.is_meta for parameter in unet.parameters())
    unet.save_pretrained(tmp_path / "file to file", max_shard_size=shard)
    read = ADMUNet2DModel.from_single_file(path, torch_dtype=dtype, **FACTS)
    read.save_pretrained(tmp_path / "through memory", max_shard_size=shard)
    stored = [
        {
            key: tensor
            for file in sorted((tmp_path / how).glob("*.safetensors"))
            for key, tensor in load_file(file).items()
        }
        for how in ("file to file", "through memory")
    ]
    assert stored[0].keys() == stored[1].keys()
    assert all(torch.equal(stored[0][key], stored[1][key]) for key in stored[1])
    configs = [(tmp_path / how / "config.json").read_text() for how in ("file to file", "through memory")]
    assert configs[0] == configs[1]
    loaded = ADMUNet2DModel.from_pretrained(tmp_path / "file to file", torch_dtype=dtype)
    assert torch.equal(output(loaded.float()), output(read.float()))
    assert (len(list((tmp_path / "file to file").iterdir())) == 2) == (shard == "10GB")


# --------------------------------------------------------------------------------------------- around the parameters

WRAPPERS = {
    "of DDP": lambda it: {f"module.{key}": tensor for key, tensor in it.items()},
    "of torch.compile": lambda it: {f"_orig_mod.{key}": tensor for key, tensor in it.items()},
    "of Lightning": lambda it: {
        "epoch": 3, "global_step": 4, "pytorch-lightning_version": "2.4.0", "loops": {}, "lr_schedulers": [],
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []}],
        "state_dict": {"loss.weight": torch.zeros(3), **{f"model.{key}": tensor for key, tensor in it.items()}},
    },
    "of latent diffusion's trainer": lambda it: {"state_dict": {f"model.diffusion_model.{k}": t for k, t in it.items()}},
    "of a trainer": lambda it: {"step": 3, "model": it, "optimizer": {"state": {}, "param_groups": []}},
    "of its average": lambda it: {"ema": {**it}, "decay": 0.999},
}  # fmt: skip


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("in_file", [True, False], ids=["file", "dictionary"])
def test_what_stands_around_the_parameters_is_taken_off(path, wrapper, in_file):
    held = WRAPPERS[wrapper](rule_state_dict(STORED["shapes"]))
    torch.save(held, path)
    back = ADMUNet2DModel.from_single_file(path if in_file else held, **FACTS).to_openai_state_dict()
    assert all(torch.equal(back[key], tensor) for key, tensor in rule_state_dict(STORED["shapes"]).items())


def test_several_networks_in_one_file(path):
    weights = rule_state_dict(STORED["shapes"])
    average = {key: 2 * tensor for key, tensor in weights.items()}
    torch.save({"model": weights, "ema": {"module": average}, "step": 3}, path)
    said = refused(ADMUNet2DModel, path, **FACTS)
    assert "holds 2 networks, at model, ema.module: pass entry= one of them" in said
    assert "the averaged weights, ema.module, give the good samples" in said
    for entry, expected in (("ema", average), ("ema.module", average), ("model", weights)):
        unet = ADMUNet2DModel.from_single_file(path, entry=entry, **FACTS)
        assert torch.equal(unet.conv_in.weight, expected["input_blocks.0.0.weight"]), entry
    assert "no network at 'net', but at model, ema.module" in refused(ADMUNet2DModel, path, entry="net", **FACTS)


def test_the_wrong_one_of_three(path, tmp_path):
    weights = tmp_path / "model100000.pt"
    weights.write_bytes(path.read_bytes())
    with pytest.warns(
        CheckpointWarning, match="average, which gives the good samples, is beside it in ema_0.9999_100000.pt"
    ):
        ADMUNet2DModel.from_single_file(weights, **FACTS)
    weights.rename(tmp_path / "model200000.pt")  # of which there is no average
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ADMUNet2DModel.from_single_file(tmp_path / "model200000.pt", **FACTS)

    torch.save({"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4}]}, tmp_path / "opt100000.pt")
    said = refused(ADMUNet2DModel, tmp_path / "opt100000.pt")
    assert "an optimizer's state, no network" in said and "as ema_*.pt: ema_0.9999_100000.pt" in said


@pytest.mark.parametrize("name", ["edm-imagenet-64x64-cond-adm.pkl", "baseline-imagenet-64x64-cond-adm.pkl"])
def test_edm_s_pickles_are_refused_by_name(tmp_path, name):
    (tmp_path / name).write_bytes(pickle.dumps(Payload()))
    said = refused(ADMUNet2DModel, tmp_path / name)
    assert "it holds code" in said and "sample it with NVlabs/edm" in said


def test_a_file_is_examined_without_its_weights_being_read(path):
    parameters = open_checkpoint(path, **FACTS).parameters
    assert isinstance(parameters, InFiles) and parameters.bytes_read == 0
    assert {name: list(spec.shape) for name, spec in parameters.specs.items()} == STORED["shapes"]


def test_the_file_may_be_overwritten_once_it_is_loaded(path):
    unet = ADMUNet2DModel.from_single_file(path, **FACTS)
    path.write_bytes(b"")
    assert torch.equal(output(unet), output(reference_unet("unconditional_dropout")))


class Payload:
    def __reduce__(self):
        return (print, ("this must never be printed",))


@pytest.mark.parametrize("how", ["in the dictionary", "as a plain pickle"])
def test_code_in_a_file_is_not_run(path, capsys, how):
    if how == "in the dictionary":
        torch.save({**rule_state_dict(STORED["shapes"]), "x": Payload()}, path)
    else:
        path.write_bytes(pickle.dumps(Payload()))
    said = refused(ADMUNet2DModel, path, **FACTS)
    assert "never be printed" not in capsys.readouterr().out
    assert f"{path} is not a file of tensors alone" in said and "refused" in said


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_truncated_file(path, suffix):
    if suffix == ".safetensors":
        save_file(rule_state_dict(STORED["shapes"]), path.with_suffix(suffix))
        path = path.with_suffix(suffix)
    path.write_bytes(path.read_bytes()[:100_000])
    assert "truncated" in refused(ADMUNet2DModel, path, **FACTS)


def test_other_files(path, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.pt"):
        ADMUNet2DModel.from_single_file(tmp_path / "nowhere.pt")

    for text in ("<html>Not found</html>", "text"):
        path.write_text(text)
        assert str(path) in refused(ADMUNet2DModel, path)

    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "not a checkpoint")
    assert "cannot be read as a checkpoint" in refused(ADMUNet2DModel, path)

    torch.save({"state": {}, "param_groups": [{"lr": 1e-4}]}, path)
    assert "holds the entries state, param_groups" in refused(ADMUNet2DModel, path)

    torch.save(torch.zeros(3), path)
    assert "holds Tensor" in refused(ADMUNet2DModel, path)

    torch.save({"conv.weight": torch.zeros(3, 3)}, path)
    assert "not a checkpoint of guided-diffusion's networks" in refused(ADMUNet2DModel, path)
