"""The training job's options: flags decide, and a resumed run keeps its own."""

import functools

import pytest
import torch
from safetensors.torch import load_file

from ip2p_lib import checkpoint
from ip2p_lib.checkpoint import newest_state
from ip2p_lib.training.compiled.compile import compile_unet
from ip2p_lib.training.lora import load_editor_lora, merge_editor_lora
from ip2p_lib.training.state import TrainingOptions
from jobs import train, training_plan

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def options_in(out):
    return TrainingOptions.from_dict(newest_state(out)["options"])


@pytest.mark.parametrize("flag", ["--lora-rank", "--micro-batch"])
def test_a_number_below_one_is_refused(words, flag, capsys):
    with pytest.raises(SystemExit):
        train.main([*words, flag, "0"])
    assert "at least 1" in capsys.readouterr().err


def test_flags_decide_and_a_resumed_run_keeps_its_options(
    words, tmp_path, stopped_after_two
):
    command = [*words, "--out", str(tmp_path), "--validation-pairs", "0"]
    stopped_after_two([*command, "--gradient-checkpointing", "--micro-batch", "3"])
    assert newest_state(tmp_path)["micro_batch"] == 2, "parts of one size"
    train.main([*command, "--steps", "3"])
    assert options_in(tmp_path) == TrainingOptions(gradient_checkpointing=True)
    assert newest_state(tmp_path)["micro_batch"] == 2
    with pytest.warns(UserWarning, match="rounds otherwise"):
        train.main([*command, "--ema-on-cpu"])
    assert options_in(tmp_path) == TrainingOptions(ema_on_cpu=True)


def test_a_run_in_bfloat16_does_not_go_on_where_it_would_be_emulated(
    words, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    metadata = {"options": TrainingOptions(autocast=torch.bfloat16).to_dict()}
    checkpoint.save(tmp_path / "step-2", {"w": torch.ones(1)}, metadata)
    with pytest.raises(SystemExit, match="bfloat16"):
        train.main([*words, "--out", str(tmp_path)])


@pytest.mark.slow
def test_lora_goes_from_the_command_line_to_an_editor_and_an_adapter(
    words, tmp_path, stopped_after_two, tiny_backbone, tiny_sd_folder
):
    from diffusers import UNet2DConditionModel

    command = [*words, "--lora-rank", "4", "--learning-rate", "0.01", "--warmup", "1"]
    train.main([*command, "--out", str(tmp_path / "whole")])
    stopped_after_two([*command, "--out", str(tmp_path / "run")])
    train.main([*words, *command[-4:], "--out", str(tmp_path / "run")])
    for name in (f"editor/{WEIGHTS}", "adapter/adapter_model.safetensors"):
        once, twice = (load_file(tmp_path / run / name) for run in ("whole", "run"))
        torch.testing.assert_close(once, twice, rtol=0, atol=0)
    assert "LoRA of rank 4" in (tmp_path / "run" / "editor" / "README.md").read_text()
    base, folder = tiny_sd_folder / "unet", tmp_path / "run" / "adapter"
    stock = UNet2DConditionModel.from_pretrained(tmp_path / "run" / "editor" / "unet")
    merged = merge_editor_lora(load_editor_lora(tiny_backbone.unet, folder, base))
    changed, before = 0, tiny_backbone.unet.state_dict()
    for name, weight in merged.state_dict().items():
        torch.testing.assert_close(stock.state_dict()[name], weight, rtol=0, atol=1e-3)
        changed += "attn" in name and not torch.equal(weight, before[name])
    assert changed > 10, "attention has learnt"
    assert stock.conv_in.weight[:, 4:].any(), "it sees the input"
    with pytest.raises(ValueError, match="other options"):
        train.main([*words, "--out", str(tmp_path / "run"), "--lora-rank", "2"])


# Torch hides this warning of its own where it is printed, not where it is an error.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_a_compiled_run_saves_what_a_plain_one_does(
    alone, words, tmp_path, monkeypatch, capsys
):
    eager = functools.partial(compile_unet, backend="eager")
    monkeypatch.setattr(train, "compile_unet", eager)
    train.main([*words, "--compile", "blocks", "--out", str(tmp_path)])
    assert "compiled: blocks" in capsys.readouterr().out
    for name in ("losses.csv", f"editor/{WEIGHTS}"):
        assert (tmp_path / name).read_bytes() == (alone / name).read_bytes()


@pytest.mark.parametrize(
    ("device", "triton", "given", "mode"),
    [
        ("cuda", True, None, "blocks"),
        ("cuda", False, None, "none"),
        ("cpu", True, None, "none"),
        ("cpu", True, "whole", "whole"),
        ("cuda", True, "none", "none"),
    ],
)
def test_blocks_are_compiled_on_a_gpu_and_nothing_on_a_cpu(
    words, monkeypatch, device, triton, given, mode
):
    monkeypatch.setattr(training_plan, "find_spec", lambda name: triton or None)
    monkeypatch.setattr(training_plan, "pick_autocast", lambda device: None)
    args = train.arguments([*words, *(["--compile", given] if given else [])])
    plan = training_plan.make_plan(args, 4, torch.device(device))
    assert plan.compile_mode == mode
