import pytest
import torch

from diffusers_cg.diffusion import LossSecondMomentSampler, UniformSampler


def filled(losses, history_size=3):
    sampler = LossSecondMomentSampler(len(losses), history_size=history_size)
    for _ in range(history_size):
        sampler.update(torch.arange(len(losses)), torch.tensor(losses))
    return sampler


def test_uniform_until_every_timestep_has_its_history():
    sampler = LossSecondMomentSampler(4, history_size=2)
    for timesteps in ([0, 1, 2, 3], [0, 1, 2], [0, 0, 0]):
        sampler.update(torch.tensor(timesteps), torch.full((len(timesteps),), 5.0))
        assert (sampler.probabilities == 0.25).all()
    timesteps, weights = sampler.sample(10)
    assert (weights == 1).all() and timesteps.dtype == torch.int64
    sampler.update(torch.tensor([3]), torch.tensor([1.0]))
    assert sampler.probabilities[3] < 0.25


def test_weighted_losses_keep_the_mean_of_uniform_timesteps():
    losses = torch.tensor([1.0, 2.0, 3.0, 10.0])
    sampler = filled(losses.tolist())
    timesteps, weights = sampler.sample(40_000, torch.Generator().manual_seed(0))
    share = timesteps.bincount(minlength=4) / 40_000
    assert (share - sampler.probabilities).abs().max() < 0.01
    assert abs((weights * losses[timesteps]).mean() - losses.mean()) < 0.02
    assert (weights * losses[timesteps]).std() < losses[torch.randint(4, (40_000,))].std() / 10


def test_the_oldest_losses_are_forgotten():
    sampler = filled([1.0, 1.0])
    for _ in range(3):
        sampler.update(torch.tensor([0]), torch.tensor([3.0]))
    assert abs(sampler.probabilities[0] - 0.75) < 0.001


def test_no_timestep_dies_out():
    assert filled([0.0, 1.0]).probabilities[0] == 0.001 / 2


def test_saved_and_loaded_it_draws_the_same():
    sampler, other = filled([1.0, 2.0, 3.0]), LossSecondMomentSampler(3, history_size=3)
    other.load_state_dict(sampler.state_dict())
    sampler.update(torch.tensor([0]), torch.tensor([9.0]))
    other.update(torch.tensor([0]), torch.tensor([9.0]))
    draws = [one.sample(20, torch.Generator().manual_seed(0))[0] for one in (sampler, other)]
    assert torch.equal(*draws)


@pytest.mark.parametrize("sampler", [UniformSampler(4), filled([1.0, 2.0, 3.0, 10.0])])
def test_with_a_generator_each_an_image_keeps_its_timestep_in_any_batch(sampler):
    def sample(seeds):
        return sampler.sample(len(seeds), [torch.Generator().manual_seed(seed) for seed in seeds])

    timesteps, weights = sample(range(50))
    assert set(timesteps.tolist()) == {0, 1, 2, 3}
    for one, whole in zip(sample([40, 3, 7]), (timesteps, weights)):
        assert torch.equal(one, whole[[40, 3, 7]])


def test_uniform_timesteps_weigh_alike():
    timesteps, weights = UniformSampler(5).sample(2000, torch.Generator().manual_seed(0))
    assert (timesteps.bincount(minlength=5) - 400).abs().max() < 80
    assert (weights == 1).all()
