"""Schedule and samplers equal diffusers' schedulers, run in float64."""

import diffusers.schedulers.scheduling_euler_ancestral_discrete as euler_module
import pytest
import torch
from diffusers import DDPMScheduler

from ip2p_lib import rng
from ip2p_lib.diffusion import samplers
from ip2p_lib.diffusion.schedule import Schedule, add_noise, predict_x0
from tests.support.models import BETAS
from tests.support.pipelines import scheduler_of

pytestmark = pytest.mark.usefixtures("float64_schedulers")

SCHEDULE = Schedule.scaled_linear()
IDS = torch.arange(2)
NOISE = rng.normal(rng.key("noise"), IDS, (4, 8, 8)).double()


def step_noise(i):
    return rng.normal(rng.key("step", i), IDS, (4, 8, 8)).double()


def denoise(x, t):
    """A stand-in for the U-Net: smooth, not linear, and different at every timestep."""
    return torch.tanh(1.3 * x + t.double()[:, None, None, None] / 500) - 0.1 * x


def trajectory(sampler, steps, noise=NOISE, **options):
    arguments = sampler, denoise, noise, SCHEDULE, steps
    return [*samplers.trajectory(*arguments, step_noise=step_noise, **options)]


def states_of_diffusers(sampler, steps, monkeypatch):
    """All states of a diffusers scheduler, as it is used by its pipelines."""
    scheduler = scheduler_of(sampler)
    scheduler.set_timesteps(steps)
    noises = (step_noise(i) for i in range(steps))
    monkeypatch.setattr(euler_module, "randn_tensor", lambda *_, **__: next(noises))
    x, states = NOISE * scheduler.init_noise_sigma, []
    for t in scheduler.timesteps:
        eps = denoise(scheduler.scale_model_input(x, t), t.expand(len(x)))
        x = scheduler.step(eps, t, x).prev_sample
        states.append(x)
    if sampler == "euler_ancestral":  # its states have signal weight one
        scales = (1 + scheduler.sigmas[1:] ** 2).sqrt()
        return [x / s for x, s in zip(states, scales, strict=True)]
    return states


def gap(ours, theirs):
    return max((a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True))


def test_schedule_and_noise_are_those_of_diffusers_and_predict_x0_undoes_it():
    theirs = DDPMScheduler(**BETAS)
    assert theirs.alphas_cumprod.dtype == torch.float64
    assert (SCHEDULE.alphas_cumprod - theirs.alphas_cumprod).abs().max() < 1e-14
    t, x0 = torch.tensor([0, 999]), step_noise(0)
    x_t = add_noise(SCHEDULE, x0, NOISE, t)
    assert (x_t - theirs.add_noise(x0, NOISE, t)).abs().max() < 1e-12
    assert (predict_x0(SCHEDULE, x_t, NOISE, t) - x0).abs().max() < 1e-12


def test_noise_at_a_real_timestep_has_a_sigma_between_its_neighbours():
    x0, t = torch.ones(1, 1, 1, 1).double(), torch.tensor([10.25]).double()
    signal = add_noise(SCHEDULE, x0, 0 * x0, t).item()
    sigma = 0.75 * SCHEDULE.sigmas[10] + 0.25 * SCHEDULE.sigmas[11]
    assert signal == pytest.approx((1 / (1 + sigma**2) ** 0.5).item(), abs=1e-14)


@pytest.mark.parametrize(
    ("sampler", "steps"),
    [("euler_ancestral", n) for n in (2, 3, 10, 25, 64, 100)]
    + [("ddim", n) for n in (1, 7, 37, 50, 999)]
    + [("dpm_solver_pp", n) for n in (1, 2, 10, 14, 15, 37)],
)
def test_every_step_is_that_of_diffusers(sampler, steps, monkeypatch):
    ours = [step.x for step in trajectory(sampler, steps)]
    assert gap(ours, states_of_diffusers(sampler, steps, monkeypatch)) < 1e-10


@pytest.mark.parametrize("sampler", list(samplers.SAMPLERS))
@pytest.mark.parametrize("steps", [1, 20])
def test_a_perfect_denoiser_leads_to_the_clean_latent(sampler, steps):
    """If the noise is known exactly, every predicted x0 is the clean latent."""
    x0 = step_noise(7)

    def perfect(x, t):
        signal = add_noise(SCHEDULE, torch.ones_like(x), 0 * x, t)
        return (x - signal * x0) / (1 - signal**2).sqrt()

    options = {"step_noise": step_noise}
    ours = [*samplers.trajectory(sampler, perfect, NOISE, SCHEDULE, steps, **options)]
    assert [step.index for step in ours] == list(range(steps))
    assert gap([step.x0 for step in ours], [x0] * steps) < 1e-9
    if sampler != "ddim":  # Stable Diffusion's DDIM stops at a_0, a little noise left
        assert (ours[-1].x - x0).abs().max() < 1e-9


@pytest.mark.parametrize("name", list(samplers.SAMPLERS))
def test_a_sampler_is_its_entry_whatever_its_name(name, monkeypatch):
    monkeypatch.setitem(samplers.SAMPLERS, "new", samplers.SAMPLERS[name])
    ours, theirs = ([s.x for s in trajectory(n, 6)] for n in ("new", name))
    assert gap(ours, theirs) == 0


def test_only_steps_that_extrapolate_need_the_one_before():
    """The last of dpm_solver_pp does not, which is infinitely long."""
    whole = trajectory("dpm_solver_pp", 5)
    (last,) = trajectory("dpm_solver_pp", 5, whole[3].x, start=4)
    assert gap([last.x], [whole[4].x]) < 1e-12


@pytest.mark.parametrize("sampler", ["ddim", "euler_ancestral"])
def test_a_trajectory_entered_midway_is_the_rest_of_the_whole(sampler):
    whole = trajectory(sampler, 8)
    rest = trajectory(sampler, 8, whole[2].x, start=3)
    assert [step.index for step in rest] == [3, 4, 5, 6, 7]
    assert gap([s.x for s in rest], [s.x for s in whole[3:]]) < 1e-12
    end = samplers.sample(sampler, denoise, NOISE, SCHEDULE, 8, step_noise=step_noise)
    assert torch.equal(end, whole[-1].x)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"sampler": "heun"}, "heun"),
        ({"steps": 0}, "steps"),
        ({"steps": 1000}, "steps"),
        ({"start": 5}, "start"),
        ({"sampler": "dpm_solver_pp", "start": 1}, "start"),
        ({"sampler": "euler_ancestral"}, "step_noise"),
        ({"sampler": "copy of euler_ancestral"}, "step_noise"),
        ({"sampler": "copy of dpm_solver_pp", "start": 2}, "start"),
    ],
)
def test_bad_options_are_refused_at_the_call(options, word, monkeypatch):
    for name, sampler in [*samplers.SAMPLERS.items()]:
        monkeypatch.setitem(samplers.SAMPLERS, f"copy of {name}", sampler)
    options = {"sampler": "ddim", "steps": 5, **options}
    with pytest.raises(ValueError, match=word):
        samplers.trajectory(denoise=denoise, noise=NOISE, schedule=SCHEDULE, **options)
