"""Files of OpenAI's layout: every kind is read, and nothing in one is run."""

import pickle
import zipfile

import pytest
import torch
from reference import CASES, FORWARD, reference_facts, reference_unet, rule_state_dict
from safetensors.torch import save_file

from diffusers_cg import ADMUNet2DModel
from diffusers_cg.errors import InputError


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
    unet = ADMUNet2DModel.from_single_file(path, **FACTS)
    assert unet.dtype == torch.float32
    expected = output(reference_unet("unconditional_dropout"))
    assert (output(unet) - expected).abs().max() <= (1e-2 if "half" in kind else 0)
    assert ADMUNet2DModel.from_single_file(path, torch_dtype=torch.bfloat16, **FACTS).dtype == torch.bfloat16


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
