"""A trace foretells what torch allocates in a pass, and all that lies there then."""

import pytest
import torch

from ip2p_lib.training import memory_trace
from ip2p_lib.training.memory_trace import trace
from tests.support.small_unet import small_unet


def measured(n, checkpointing, dtype):
    """Bytes that torch's allocator holds when the forward pass ends, and at most."""
    unet = small_unet("cpu")
    if checkpointing:
        unet.enable_gradient_checkpointing()
    sample, noise = torch.ones(n, 8, 16, 16), torch.ones(n, 4, 16, 16)
    t, text = torch.zeros(n, dtype=torch.int64), torch.ones(n, 77, 32)
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True) as profile:
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            eps = unet(sample, t, text, return_dict=False)[0]
            loss = (eps.float() - noise).square().mean()
            del eps
        with torch.profiler.record_function("turn"):
            pass
        loss.backward()
    alive, curve, waiting = 0, [], 0
    events = profile.profiler.kineto_results.events()
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            alive += event.nbytes()
            curve.append(alive)
        elif event.name() == "turn":
            waiting = alive
    return waiting, max(curve)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_trace_foretells_what_torch_allocates(monkeypatch, dtype, checkpointing):
    """Within 5 %, against the profile of a real pass on the CPU."""
    monkeypatch.setattr(memory_trace, "FULL", ())  # a CPU's autocast norms in half
    timeline = trace(
        small_unet("meta"),
        latent=(8, 16, 16),
        text=(77, 32),
        autocast=dtype,
        checkpointing=checkpointing,
    )
    for n in (2, 8):
        waiting, peak = measured(n, checkpointing, dtype)
        foretold = timeline.saved[0] + n * timeline.saved[1]
        assert foretold == pytest.approx(waiting, rel=0.05)
        assert timeline.peak(n) == pytest.approx(peak, rel=0.05)


def test_norms_are_float32_on_a_gpu_and_that_is_counted():
    def saved(autocast):
        options = {"latent": (8, 16, 16), "text": (77, 32)}
        return trace(small_unet("meta"), autocast=autocast, **options).saved[1]

    assert 0.5 < saved(torch.bfloat16) / saved(None) < 0.9


def test_gradients_of_earlier_parts_lie_there_too():
    timeline = trace(small_unet("meta"), latent=(8, 16, 16), text=(77, 32))
    gradients = 4 * sum(w.numel() for w in small_unet("meta").parameters())
    assert timeline.gradients[-1] == gradients
    more = timeline.peak(64, accumulating=True) - timeline.peak(64)
    assert 0 < more <= gradients
