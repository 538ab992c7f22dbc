"""The training job's plan: what fits is said before it starts, and kept on resume."""

import functools

import pytest
import torch
from safetensors.torch import load_file

from ip2p_lib import checkpoint
from ip2p_lib import device as precision
from ip2p_lib.checkpoint import newest_state
from ip2p_lib.training import memory_plan
from ip2p_lib.training.compiled.compile import compile_unet
from ip2p_lib.training.lora import load_editor_lora, merge_editor_lora
from ip2p_lib.training.memory_plan import plan_training
from ip2p_lib.training.state import TrainingOptions
from jobs import train, training_plan

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def room(monkeypatch, tiny_backbone):
    """Pretend that there is as much memory as an options takes, and a little more."""
    monkeypatch.setattr(memory_plan, "LIBRARIES", 0)

    def give(options, batch_size=4):
        size = {"batch_size": batch_size, "resolution": 64, "memory": 2**40}
        plan = plan_training(tiny_backbone.unet.config, options, **size)
        memory = int(plan.peak * (1 + memory_plan.FRAGMENTS)) + 1
        monkeypatch.setattr(training_plan, "memory_of", lambda device: memory)
        return plan

    return give


def economy_in(out):
    return TrainingOptions.of(newest_state(out)["options"])


def test_what_fits_is_decided_and_said_before_anything_long_starts(
    words, room, tmp_path, monkeypatch, capsys
):
    def too_long(*arguments):
        raise RuntimeError("encoding")

    room(TrainingOptions(checkpointing=True))
    monkeypatch.setattr(train, "cached_latents", too_long)
    with pytest.raises(RuntimeError, match="encoding"):
        train.main([*words, "--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert "AdamW, float32, checkpointed activations: 4 examples at once take" in said
    assert "The freest: all weights, AdamW, float32: " in said
    assert "Steps still to be taken: 4, in about" in said and "Compiled: none." in said


def test_what_cannot_fit_is_refused_in_words(words, room, tmp_path, monkeypatch):
    monkeypatch.setattr(training_plan, "memory_of", lambda device: 1000)
    for flags, advice in ([], "smaller resolution"), (["--checkpointing"], "lora-rank"):
        with pytest.raises(SystemExit, match=rf"not fit.*one example takes.*{advice}"):
            train.main([*words, *flags, "--out", str(tmp_path)])
    assert list(tmp_path.iterdir()) == [], "nothing was begun"


@pytest.mark.parametrize("flag", ["--lora-rank", "--micro-batch"])
def test_a_number_below_one_is_refused(words, flag, capsys):
    with pytest.raises(SystemExit):
        train.main([*words, flag, "0"])
    assert "must be at least 1, not 0" in capsys.readouterr().err


def test_flags_decide_and_the_plan_says_what_they_take(words, room, tmp_path, capsys):
    room(TrainingOptions())
    command = [*words, "--out", str(tmp_path), "--steps", "1", "--looks", "0"]
    train.main([*command, "--ema-on-cpu", "--micro-batch", "3"])
    assert economy_in(tmp_path) == TrainingOptions(ema_on_cpu=True)
    assert newest_state(tmp_path)["micro_batch"] == 2, "parts of one size"
    said = capsys.readouterr().out
    assert "average on the CPU: 4 examples in 2 parts of at most 2 take" in said


def test_more_at_once_than_fits_is_said_and_done(words, room, tmp_path, capsys):
    room(TrainingOptions(), batch_size=3)
    train.main([*words, "--micro-batch", "4", "--steps", "1", "--out", str(tmp_path)])
    assert "4 at once are asked for, and do not fit by this plan" in (
        capsys.readouterr().out
    )
    assert newest_state(tmp_path)["micro_batch"] == 4


def test_a_resumed_run_keeps_its_economy_unless_told(
    words, room, tmp_path, stopped_after_two, capsys
):
    command = [*words, "--out", str(tmp_path), "--looks", "0"]
    room(TrainingOptions(checkpointing=True))
    stopped_after_two(command)
    assert economy_in(tmp_path) == TrainingOptions(checkpointing=True)
    room(TrainingOptions())
    train.main([*command, "--steps", "3"])
    assert economy_in(tmp_path) == TrainingOptions(checkpointing=True), (
        "though all would fit"
    )
    assert "Steps still to be taken: 1, in about" in capsys.readouterr().out
    with pytest.warns(UserWarning, match=r"checkpointed activations\); from here on"):
        train.main([*command, "--ema-on-cpu"])
    assert economy_in(tmp_path) == TrainingOptions(ema_on_cpu=True)


def test_a_run_in_bfloat16_does_not_go_on_where_it_would_be_emulated(
    words, tmp_path, monkeypatch
):
    monkeypatch.setattr(precision, "_cpu_features", dict)
    facts = {"step": 2, "options": TrainingOptions(autocast=torch.bfloat16).facts()}
    checkpoint.save(tmp_path / "step-2", {"w": torch.ones(1)}, facts)
    with pytest.raises(SystemExit, match=r"AdamW, bfloat16.*This CPU is not known"):
        train.main([*words, "--out", str(tmp_path)])


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
    assert stock.conv_in.weight[:, 4:].any(), "it sees the picture"


def test_a_lora_run_is_not_resumed_as_another(words, tmp_path, stopped_after_two):
    command = [*words, "--looks", "0", "--out", str(tmp_path)]
    stopped_after_two([*command, "--lora-rank", "4"])
    with pytest.raises(ValueError, match="another options"):
        train.main([*command, "--lora-rank", "2"])
    with pytest.raises(ValueError, match="another options"):
        train.main([*command, "--checkpointing"])


# Torch hides this warning of its own where it is printed, not where it is an error.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_a_compiled_run_saves_what_a_plain_one_does(
    alone, words, tmp_path, monkeypatch, capsys
):
    eager = functools.partial(compile_unet, backend="eager")
    monkeypatch.setattr(train, "compile_unet", eager)
    train.main([*words, "--compile", "blocks", "--out", str(tmp_path)])
    assert "Compiled: blocks." in capsys.readouterr().out
    for name in ("losses.csv", f"editor/{WEIGHTS}"):
        assert (tmp_path / name).read_bytes() == (alone / name).read_bytes()


@pytest.mark.parametrize(
    ("device", "triton", "asked", "way"),
    [
        ("cuda", True, None, "blocks"),
        ("cuda", False, None, "none"),
        ("cpu", True, None, "none"),
        ("cpu", True, "whole", "whole"),
        ("cuda", True, "none", "none"),
    ],
)
def test_blocks_are_compiled_on_a_gpu_and_nothing_on_a_cpu(
    words, monkeypatch, device, triton, asked, way
):
    monkeypatch.setattr(training_plan, "find_spec", lambda name: triton or None)
    args = train.arguments([*words, *(["--compile", asked] if asked else [])])
    assert training_plan.way_to_compile(args, torch.device(device)) == way


def test_after_twenty_steps_the_time_left_is_said_once(words, tmp_path, capsys):
    train.main([*words, "--steps", "22", "--looks", "0", "--out", str(tmp_path)])
    assert capsys.readouterr().out.count("left for 2 steps") == 1
