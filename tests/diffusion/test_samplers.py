"""Schedule and samplers equal diffusers' schedulers, run in float64."""

import diffusers.schedulers.scheduling_euler_ancestral_discrete as euler_module
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
)

from ip2p_lib import rng
from ip2p_lib.diffusion import samplers
from ip2p_lib.diffusion.schedule import Schedule, add_noise, predict_x0

pytestmark = pytest.mark.usefixtures("float64_schedulers")

SCHEDULE = Schedule.scaled_linear()
STABLE_DIFFUSION = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
IDS = torch.arange(2)
NOISE = rng.normal(rng.key("noise"), IDS, (4, 8, 8)).double()


def step_noise(i):
    return rng.normal(rng.key("step", i), IDS, (4, 8, 8)).double()


def denoise(x, t):
    """A stand-in for the U-Net: smooth, not linear, and different at every timestep."""
    return torch.tanh(1.3 * x + t.double()[:, None, None, None] / 500) - 0.1 * x


def states(sampler, steps, noise=step_noise):
    ours = samplers.trajectory(
        sampler, denoise, NOISE, SCHEDULE, steps, step_noise=noise
    )
    return [step.x for step in ours]


def theirs(scheduler, steps):
    """All states of a diffusers scheduler, as it is used by its pipelines."""
    scheduler.set_timesteps(steps)
    x, all_x = NOISE * scheduler.init_noise_sigma, []
    for t in scheduler.timesteps:
        eps = denoise(scheduler.scale_model_input(x, t), t.expand(len(x)))
        x = scheduler.step(eps, t, x).prev_sample
        all_x.append(x)
    return all_x


def euler(steps, monkeypatch):
    scheduler = EulerAncestralDiscreteScheduler(
        timestep_spacing="linspace", **STABLE_DIFFUSION
    )
    noises = (step_noise(i) for i in range(steps))
    monkeypatch.setattr(euler_module, "randn_tensor", lambda *_, **__: next(noises))
    all_x = theirs(scheduler, steps)
    # diffusers' states have signal weight one; ours have unit variance.
    scales = (1 + scheduler.sigmas[1:] ** 2).sqrt()
    return [x / s for x, s in zip(all_x, scales, strict=True)]


def ddim(steps):
    return theirs(
        DDIMScheduler(
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            timestep_spacing="leading",
            **STABLE_DIFFUSION,
        ),
        steps,
    )


def close(ours, theirs):
    return max((a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True))


def test_the_schedule_is_stable_diffusions():
    alphas = DDPMScheduler(**STABLE_DIFFUSION).alphas_cumprod
    assert alphas.dtype == torch.float64
    assert (SCHEDULE.alphas_cumprod - alphas).abs().max() < 1e-14
    a = SCHEDULE.alphas_cumprod
    torch.testing.assert_close(SCHEDULE.sigmas, ((1 - a) / a).sqrt())


def test_add_noise_is_that_of_diffusers():
    t = torch.tensor([0, 999])
    x0 = step_noise(0)
    expected = DDPMScheduler(**STABLE_DIFFUSION).add_noise(x0, NOISE, t)
    assert (add_noise(SCHEDULE, x0, NOISE, t) - expected).abs().max() < 1e-12


def test_predict_x0_undoes_add_noise():
    t, x0 = torch.tensor([3, 700]), step_noise(0)
    x_t = add_noise(SCHEDULE, x0, NOISE, t)
    assert (predict_x0(SCHEDULE, x_t, NOISE, t) - x0).abs().max() < 1e-12


def test_noise_at_a_real_timestep_has_a_sigma_between_its_neighbours():
    x0, t = torch.ones(1, 1, 1, 1).double(), torch.tensor([10.25]).double()
    signal = add_noise(SCHEDULE, x0, 0 * x0, t).item()
    sigma = 0.75 * SCHEDULE.sigmas[10] + 0.25 * SCHEDULE.sigmas[11]
    assert signal == pytest.approx((1 / (1 + sigma**2) ** 0.5).item(), abs=1e-14)


@pytest.mark.parametrize("steps", [2, 3, 10, 25, 100])
def test_euler_ancestral_is_that_of_diffusers(steps, monkeypatch):
    ours = states("euler_ancestral", steps)
    assert close(ours, euler(steps, monkeypatch)) < 1e-10


def test_the_last_ancestral_step_asks_for_no_noise():
    asked = []

    def noise(i):
        asked.append(i)
        return step_noise(i)

    states("euler_ancestral", 5, noise)
    assert asked == [0, 1, 2, 3]


@pytest.mark.parametrize("steps", [1, 2, 7, 50, 100, 999])
def test_ddim_is_that_of_diffusers(steps):
    assert close(states("ddim", steps), ddim(steps)) < 1e-10


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 14, 15, 25])
def test_dpm_solver_is_that_of_diffusers(steps):
    solver = DPMSolverMultistepScheduler(**STABLE_DIFFUSION)
    assert close(states("dpm_solver_pp", steps), theirs(solver, steps)) < 1e-10


@pytest.mark.parametrize("sampler", ["euler_ancestral", "ddim", "dpm_solver_pp"])
def test_timesteps_are_those_of_diffusers_for_every_number_of_steps(sampler):
    scheduler = {
        "euler_ancestral": EulerAncestralDiscreteScheduler(**STABLE_DIFFUSION),
        "ddim": DDIMScheduler(steps_offset=1, **STABLE_DIFFUSION),
        "dpm_solver_pp": DPMSolverMultistepScheduler(**STABLE_DIFFUSION),
    }[sampler]
    # Of one step alone, diffusers' Euler makes one from t = 0, where no noise is left.
    for steps in range(2 if sampler == "euler_ancestral" else 1, 101):
        scheduler.set_timesteps(steps)
        ours = samplers.timesteps(SCHEDULE, steps, sampler)
        assert ours == pytest.approx(scheduler.timesteps.tolist(), abs=1e-9), steps


@pytest.mark.parametrize("sampler", list(samplers.SAMPLERS))
def test_a_perfect_denoiser_leads_to_the_clean_latent(sampler):
    """If the noise is known exactly, every x0 on the way is the clean latent."""
    x0 = step_noise(7)

    def know(x, t):
        signal = add_noise(SCHEDULE, torch.ones_like(x), 0 * x, t)
        return (x - signal * x0) / (1 - signal**2).sqrt()

    walk = samplers.trajectory(
        sampler, know, NOISE, SCHEDULE, 20, step_noise=step_noise
    )
    steps = list(walk)
    assert [step.index for step in steps] == list(range(20))
    assert max((step.x0 - x0).abs().max().item() for step in steps) < 1e-9
    if sampler != "ddim":  # Stable Diffusion's DDIM stops at a_0, a little noise left
        assert (steps[-1].x - x0).abs().max() < 1e-9


def test_the_noise_level_of_every_state_is_that_of_the_next_timestep():
    """So a caller may treat each x as an x_t, whichever sampler made it."""
    noise = rng.normal(rng.key("wide"), torch.arange(50), (4, 8, 8)).double()

    def all_noise(x, t):  # a model of data that is always zero
        signal = add_noise(SCHEDULE, torch.ones_like(x), 0 * x, t)
        return x / (1 - signal**2).sqrt()

    def fresh(i):
        return rng.normal(rng.key("wide", i), torch.arange(50), (4, 8, 8)).double()

    steps = samplers.trajectory(
        "euler_ancestral", all_noise, noise, SCHEDULE, 5, step_noise=fresh
    )
    for step in steps:
        if step.index < 4:
            t = samplers.timesteps(SCHEDULE, 5, "euler_ancestral")[step.index + 1]
            level = add_noise(
                SCHEDULE, 0 * noise, torch.ones_like(noise), torch.tensor([t]).double()
            )
            assert step.x.std() == pytest.approx(level[0, 0, 0, 0].item(), rel=0.03)


@pytest.mark.parametrize("sampler", ["ddim", "euler_ancestral"])
def test_a_walk_entered_midway_is_the_rest_of_the_walk(sampler):
    options = {"step_noise": step_noise}
    whole = list(samplers.trajectory(sampler, denoise, NOISE, SCHEDULE, 8, **options))
    rest = samplers.trajectory(
        sampler, denoise, whole[2].x, SCHEDULE, 8, start=3, **options
    )
    rest = list(rest)
    assert [step.index for step in rest] == [3, 4, 5, 6, 7]
    assert close([s.x for s in rest], [s.x for s in whole[3:]]) < 1e-12


@pytest.mark.parametrize("sampler", list(samplers.SAMPLERS))
def test_sample_is_the_end_of_the_walk(sampler):
    options = {"step_noise": step_noise}
    *_, last = samplers.trajectory(sampler, denoise, NOISE, SCHEDULE, 6, **options)
    end = samplers.sample(sampler, denoise, NOISE, SCHEDULE, 6, **options)
    assert torch.equal(end, last.x)


@pytest.mark.parametrize("sampler", list(samplers.SAMPLERS))
def test_one_step_is_possible(sampler):
    options = {"step_noise": step_noise}
    end = samplers.sample(sampler, denoise, NOISE, SCHEDULE, 1, **options)
    assert end.shape == NOISE.shape and end.isfinite().all()


def test_rows_may_be_at_different_steps():
    table = samplers.sampler_coefficients(SCHEDULE, 9, "dpm_solver_pp")
    x, eps, x0 = (
        rng.normal(rng.key(n), torch.arange(3), (4, 2, 2)).double() for n in "xyz"
    )
    together = samplers.sampler_step(x, eps, x0, None, table[[0, 4, 8]])
    for row, i in enumerate((0, 4, 8)):
        one = samplers.sampler_step(x[[row]], eps[[row]], x0[[row]], None, table[i])
        for a, b in zip(together, one, strict=True):
            assert torch.equal(a[row], b[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sampler": "heun"}, "Unknown sampler 'heun'; choose from"),
        ({"steps": 0}, "steps must be 1 to 999"),
        ({"steps": 1000}, "steps must be 1 to 999"),
        ({"start": 5}, "cannot start at step 5"),
        ({"start": -1}, "cannot start at step -1"),
        ({"sampler": "dpm_solver_pp", "start": 1}, "cannot start at step 1"),
        ({"sampler": "euler_ancestral"}, "pass step_noise"),
    ],
)
def test_bad_requests_are_refused_at_once(arguments, message):
    given = {"sampler": "ddim", "steps": 5, "start": 0} | arguments
    sampler, steps = given.pop("sampler"), given.pop("steps")
    with pytest.raises(ValueError, match=message):
        samplers.trajectory(sampler, denoise, NOISE, SCHEDULE, steps, **given)


@pytest.mark.parametrize("wrong", [{"T": 1}, {"beta_start": 0.0}, {"beta_end": 1.0}])
def test_an_impossible_schedule_is_refused(wrong):
    with pytest.raises(ValueError, match="No schedule from T="):
        Schedule.scaled_linear(**wrong)
