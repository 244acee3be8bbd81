"""What a unet is trained to say, and of which process, is in the result and goes on with it."""

import pytest
from conftest import TINY

from diffusers_cg import ClassifierGuidedDDIMPipeline
from diffusers_cg.training.config import UNetSettings
from diffusers_cg.training.train_unet import train


PROCESS = {"num_train_timesteps": 500, "beta_schedule": "squaredcos_cap_v2", "rescale_timesteps": True}


@pytest.mark.parametrize("learn_variance", [True, False], ids=["learned variance", "fixed variance"])
def test_a_unet_that_predicts_v(few_digits, tmp_path, learn_variance):
    settings = {**TINY, "max_train_steps": 1, "learn_variance": learn_variance, "train_data_dir": few_digits}
    of_process = {"ddpm_num_steps": 500, "ddpm_beta_schedule": "squaredcos_cap_v2", "rescale_timesteps": True}
    train(UNetSettings(output_dir=tmp_path / "first", prediction_type="v_prediction", **of_process, **settings))
    train(UNetSettings(output_dir=tmp_path / "tuned", init_from=str(tmp_path / "first"), **settings))
    for name in ("first", "tuned"):
        pipe = ClassifierGuidedDDIMPipeline.from_pretrained(tmp_path / name)
        assert {word: pipe.unet.config[word] for word in PROCESS} == PROCESS
        assert pipe.unet.config.prediction_type == pipe.scheduler.config.prediction_type == "v_prediction"
        assert pipe.scheduler.config.num_train_timesteps == 500
        assert pipe(0, num_inference_steps=2, output_type="np").images.shape == (1, 16, 16, 1)
