"""The training job's options: flags decide."""

import functools

import pytest
import torch
from safetensors.torch import load_file

from ip2p_lib import checkpoint
from ip2p_lib.diffusion.lora import load_lora, merge_lora
from ip2p_lib.training.compiled import compile_unet
from ip2p_lib.training.surgery import widen_conv_in
from jobs import train
from jobs.training_plan import even_micro_batch

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        *((f"--{name}", "0", "at least 1") for name in ("lora-rank", "micro-batch")),
        *((f"--{name}", "0", "at least 1") for name in ("steps", "batch-size")),
        *((f"--{name}", "0", "at least 1") for name in ("resolution", "processes")),
        ("--validate-every", "0", "at least 1"),
        ("--resolution", "60", "multiple of 8"),
        ("--warmup", "-1", "at least 0"),
        ("--warmup", "abc", "must be a whole number, not 'abc'"),
        ("--validation-pairs", "-1", "at least 0"),
        ("--learning-rate", "0", "above 0"),
        ("--learning-rate", "nan", "above 0"),
        ("--learning-rate", "inf", "above 0 and finite"),
        ("--ema-decay", "1", "below 1"),
    ],
)
def test_a_number_out_of_range_is_refused(words, flag, value, says, capsys):
    with pytest.raises(SystemExit):
        train.main([*words, flag, value])
    assert says in capsys.readouterr().err


def test_zero_is_a_value_and_not_the_default(words):
    args = train.arguments([*words, "--warmup", "0", "--ema-decay", "0"])
    settings = train.get_scale(args).training
    assert (settings.warmup, settings.ema_decay) == (0, 0.0)


def test_even_parts_fit_and_are_at_least_half_of_what_does():
    for examples in range(1, 40):
        for at_most in range(1, 45):
            part, most = even_micro_batch(examples, at_most), min(at_most, examples)
            assert most / 2 < part <= most
            assert examples % part == 0 or part == most
    assert [even_micro_batch(64, 23), even_micro_batch(7, 6)] == [16, 6]


def test_flags_decide_the_options_and_parts_have_one_size(
    words, tmp_path, stopped_after_two
):
    command = [*words, "--out", str(tmp_path), "--validation-pairs", "0"]
    stopped_after_two([*command, "--gradient-checkpointing", "--micro-batch", "3"])
    state = checkpoint.latest(tmp_path).state
    assert state["options"]["gradient_checkpointing"] and state["micro_batch"] == 2
    with pytest.warns(UserWarning, match="rounds otherwise"):
        train.main([*command, "--ema-on-cpu"])
    state = checkpoint.latest(tmp_path).state
    assert state["options"]["ema_on_cpu"] and state["micro_batch"] == 2


@pytest.mark.slow
def test_lora_goes_from_the_command_line_to_an_editor_and_an_adapter(
    words, tmp_path, stopped_after_two, tiny_backbone, tiny_sd_folder
):
    from diffusers import UNet2DConditionModel

    command = [*words, "--lora-rank", "4", "--learning-rate", "0.01", "--warmup", "1"]
    train.main([*command, "--out", str(tmp_path / "whole")])
    stopped_after_two([*command, "--out", str(tmp_path / "run")])
    train.main([*command, "--out", str(tmp_path / "run")])
    for name in (f"editor/{WEIGHTS}", "adapter/adapter_model.safetensors"):
        once, twice = (load_file(tmp_path / run / name) for run in ("whole", "run"))
        torch.testing.assert_close(once, twice, rtol=0, atol=0)
    assert "lora_rank=4" in (tmp_path / "run" / "editor" / "README.md").read_text()
    base, folder = tiny_sd_folder / "unet", tmp_path / "run" / "adapter"
    stock = UNet2DConditionModel.from_pretrained(tmp_path / "run" / "editor" / "unet")
    merged = merge_lora(load_lora(widen_conv_in(tiny_backbone.unet), folder, base))
    for name, weight in merged.state_dict().items():
        torch.testing.assert_close(stock.state_dict()[name], weight, rtol=0, atol=1e-3)
    assert stock.conv_in.weight[:, 4:].any(), "it sees the input"


# Torch hides this warning of its own where it is printed, not where it is an error.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_a_compiled_run_saves_what_a_plain_one_does(
    alone, words, tmp_path, monkeypatch, capsys
):
    eager = functools.partial(compile_unet, backend="eager")
    monkeypatch.setattr(train, "compile_unet", eager)
    train.main([*words, "--compile", "blocks", "--out", str(tmp_path)])
    assert "compiled: blocks" in capsys.readouterr().out
    for name in ("losses.json", f"editor/{WEIGHTS}"):
        assert (tmp_path / name).read_bytes() == (alone / name).read_bytes()
