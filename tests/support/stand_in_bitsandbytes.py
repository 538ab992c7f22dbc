"""Stands in for ``bitsandbytes``, which needs a GPU: the same names, asked the same."""

import sys
from types import ModuleType

import torch


class AdamW8bit(torch.optim.Optimizer):
    """Holds its state as the real one does, and takes a step that depends on it."""

    asked: list = []  # noqa: RUF012

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), weight_decay=1e-2):
        params = list(params)
        self.asked.append({"weights": len(params), "weight_decay": weight_decay})
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.map = torch.linspace(-1, 1, 256)

    @torch.no_grad()
    def init_state(self, group, p, gindex, pindex):
        assert group is self.param_groups[gindex] and group["params"][pindex] is p
        state, small = self.state[p], p.numel() < 4096
        kind = torch.float32 if small else torch.uint8
        state["step"] = 0
        state["state1"], state["state2"] = (
            torch.zeros_like(p, dtype=kind) for _ in "12"
        )
        if not small:
            state["qmap1"] = state["qmap2"] = self.map  # one for all weights
            for name in ("absmax1", "absmax2"):
                state[name] = torch.zeros(-(-p.numel() // 256))

    @torch.no_grad()
    def step(self):
        (group,) = self.param_groups
        for p in group["params"]:
            state = self.state[p]
            state["step"] += 1
            sign = p.grad.sign()
            state["state1"] += (sign > 0).to(state["state1"].dtype)
            p.sub_(group["lr"] * sign / state["step"])


def install(monkeypatch):
    """Let ``import bitsandbytes`` find this; returns the list of what is asked."""
    package, optim = ModuleType("bitsandbytes"), ModuleType("bitsandbytes.optim")
    AdamW8bit.asked = []
    optim.AdamW8bit = AdamW8bit
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", optim)
    return AdamW8bit.asked
