"""The training job: one command that trains, goes on after a stop, and shares the work.

Its processes run the real job, on the tiny networks and a tiny data set.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path
from shutil import copytree

import pytest
import torch
import yaml

from ip2p_lib.dataset import read_shards, write_shards
from ip2p_lib.files import read_json, run_lock, write_json
from ip2p_lib.training.validation import COLUMNS, ValidationResult
from jobs import train
from tests.support.pairs import make_pair, tree

TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m")
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def started(out, words, launcher=()):
    environment = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", *launcher, "jobs.train", *words, "--out", str(out)],
        capture_output=True,
        text=True,
        cwd=Path(train.__file__).parents[1],
        env=os.environ | environment,
    )


def table(path):
    return [list(row.values()) for row in read_json(path)]


def test_it_leaves_an_editor_with_its_card_and_the_tables_of_the_run(alone):
    from diffusers import UNet2DConditionModel

    saved = UNet2DConditionModel.from_pretrained(alone / "editor" / "unet")
    assert saved.config.in_channels == 8
    text = (alone / "editor" / "README.md").read_text()
    assert yaml.safe_load(text.split("---\n")[1])["license"] == "mit"
    assert "| steps taken | 4 |" in text
    assert "pairs, 10 pairs" in text, "two of twelve are kept apart"
    assert str(alone.parent) not in text
    assert [row[0] for row in table(alone / "losses.json")] == [1, 2, 3, 4]
    assert [row[0] for row in table(alone / "validation.json")] == [2, 4]


def test_two_processes_take_the_steps_of_one(alone, words, tmp_path):
    done = started(tmp_path / "run", [*words, "--processes", "2"], TORCHRUN)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 processes, 10 pairs, 0 steps") == 1
    for name, gap in (("losses.json", 1e-5), ("validation.json", 1e-3)):
        both = (torch.tensor(table(run / name)) for run in (tmp_path / "run", alone))
        torch.testing.assert_close(*both, rtol=gap, atol=gap)
    assert len(list((tmp_path / "run" / "latents").iterdir())) == 2


def test_a_stopped_run_goes_on_in_the_same_bits(
    alone, words, tmp_path, stopped_after_two, capsys
):
    command = [*words, "--out", str(tmp_path / "run")]
    stopped_after_two(command)
    assert capsys.readouterr().err == "Stopped. The same command goes on.\n"
    train.main(command)
    for name in ("losses.json", f"editor/{WEIGHTS}"):
        assert (tmp_path / "run" / name).read_bytes() == (alone / name).read_bytes()


def test_what_cannot_be_trained_is_one_error(words, pairs, tmp_path, capsys):
    long = make_pair(99, 48, instruction="a cat " * 90, caption="", edited_caption="")
    write_shards([*read_shards(pairs), long], tmp_path / "long")
    for option, value, says in (
        ("--processes", "3", "3 processes are needed"),
        ("--learning-rate", "1e30", "not finite"),
        ("--validation-pairs", "12", "12 pairs, and --validation-pairs takes 12"),
        ("--pairs", tmp_path / "long", "pair 000099 of long is for validation"),
    ):
        command = [*words, "--out", str(tmp_path / option), option, str(value)]
        assert says in refused(command, capsys)
    assert not (tmp_path / "--processes").exists(), "nothing was begun"


def test_validation_reads_back_without_results_after_the_step_resumed_at(tmp_path):
    numbers = (0, 1.0, 0.0), (50, 0.9, 1 / 3), (100, 0.8, 0.5)
    path = write_json(
        tmp_path / "v.json", [dict(zip(COLUMNS, n, strict=True)) for n in numbers]
    )
    results = [ValidationResult(*row) for row in numbers]
    assert train.read_validation(path, up_to=100) == results
    assert train.read_validation(path, up_to=99) == results[:2]
    assert train.read_validation(tmp_path / "none.json", up_to=5) == []


def refused(command, capsys):
    """What a command that is refused says."""
    assert train.main(command) == 2
    return capsys.readouterr().err


def parts_of(command):
    args = train.arguments(command)
    return train.check_settings(args, train.get_scale(args))


def test_a_resumed_run_has_the_settings_it_began_with(
    words, pairs, tmp_path, stopped_after_two, capsys
):
    """Unless --changed allows others, and then the card tells every part."""
    command = [*words, "--out", str(tmp_path / "run")]
    stopped_after_two(command)
    before = tree(tmp_path / "run")
    others = copytree(words[words.index("--backbone") + 1], tmp_path / "sd")
    weights = next(others.glob("unet/*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    table = tmp_path / "pairs"  # other pairs of the same name
    write_shards([make_pair(i, 48) for i in range(12)], table)
    for option, value in {
        "--learning-rate": "0.5",
        "--seed": "1",
        "--batch-size": "2",
        "--steps": "3",
        "--validation-pairs": "3",
        "--backbone": str(others),
        "--pairs": str(table),
    }.items():
        name = option.strip("-").replace("-", "_")
        said = refused([*command, option, value], capsys)
        assert f"had {name} " in said and "--changed" in said
    assert "had flips True, now False" in refused([*command, "--no-flips"], capsys)
    assert tree(tmp_path / "run") == before, "a refused command changes nothing"
    train.main([*command, "--learning-rate", "0.0002", "--changed"])
    card = (tmp_path / "run" / "editor" / "README.md").read_text()
    assert "| learning rate | 0.0002 |" in card
    assert "| until step 2 | {" in card and "'learning_rate': 0.0004" in card


def test_a_run_that_goes_on_from_its_backup_has_its_settings_too(
    words, tmp_path, stopped_after_two, capsys
):
    """After the machine was lost."""
    backup = ["--backup-dir", str(tmp_path / "drive")]
    stopped_after_two([*words, *backup, "--out", str(tmp_path / "lost")])
    command = [*words, *backup, "--out", str(tmp_path / "new"), "--seed", "77"]
    assert "had seed 0, now 77" in refused(command, capsys)
    (tmp_path / "drive" / "run.json").unlink()
    assert "nobody knows their settings" in refused(command, capsys)
    for text in ("[1]", "[]", "{}"):
        (tmp_path / "drive" / "run.json").write_text(text)
        said = refused(command, capsys)
        assert "run.json is damaged (" in said and "; --changed" in said


@pytest.mark.parametrize("others", [[{"seed": 7}], [{"steps": 9}, {"after": 1}]])
def test_a_backup_of_another_run_is_refused(words, tmp_path, others):
    """Even if it was the same run at first, or a part of its settings was changed."""
    for name, step, parts in (("a", 2, [{"steps": 4}]), ("b", 3, others)):
        write_json(tmp_path / name / "run.json", parts)
        write_json(tmp_path / name / f"step-000000{step}" / "manifest.json", {})
    folders = ["--out", str(tmp_path / "a"), "--backup-dir", str(tmp_path / "b")]
    with pytest.raises(ValueError, match="of two different runs"):
        parts_of([*words, *folders, "--changed"])


def test_a_run_without_a_checkpoint_begins_anew(words, tmp_path):
    """Whatever the settings of the one that was stopped before its first."""
    write_json(tmp_path / "run.json", [{"after": 0, "seed": 77}])
    (tmp_path / "step-0000002").mkdir()  # a save that was killed
    (part,) = parts_of([*words, "--out", str(tmp_path)])
    assert (part["after"], part["seed"]) == (0, 0)


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("--clip", "There is no CLIP in nope"),
        ("--backbone", "There is no model in nope"),
        ("--editor", "./nope"),
        ("--out", "test_job.py cannot be a folder"),
        ("--backup-dir", "test_job.py cannot be a folder"),
    ],
)
def test_a_path_that_cannot_be_used_is_named_before_anything_loads(
    words, tmp_path, monkeypatch, capsys, option, says
):
    monkeypatch.setattr(train, "load_stable_diffusion", None)
    value = __file__ if "folder" in says else says.split()[-1]
    command = [*words, "--out", str(tmp_path), option, value]
    assert says.strip("./") in refused(command, capsys)
    assert not list(tmp_path.iterdir())


def test_a_second_command_changes_nothing_in_a_live_folder(words, tmp_path, capsys):
    out = tmp_path / "run"
    with run_lock(out, out / ".job.lock"):
        before = tree(out)
        assert "Another run" in refused([*words, "--out", str(out)], capsys)
        assert tree(out) == before


def test_anothers_editor_is_noticed_before_training(words, tmp_path, capsys):
    write_json(tmp_path / "editor" / "unet" / "config.json", {})
    assert "not empty" in refused([*words, "--out", str(tmp_path)], capsys)
    assert not list(tmp_path.glob("step-*"))


def test_training_goes_on_from_an_editor(alone, words, tmp_path):
    out = tmp_path / "run"
    train.main([*words, "--editor", str(alone / "editor"), "--out", str(out)])
    first, second = (read_json(run / "losses.json")[0] for run in (alone, out))
    assert first["loss"] != second["loss"]
    assert read_json(out / "run.json")[0]["editor"].startswith("editor ")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"in_channels": 5}, "takes 5 channels; an editor takes 8"),
        ({"in_channels": 8, "out_channels": 8}, "out_channels 8 and the backbone 4"),
        ({"cross_attention_dim": 8}, "cross_attention_dim 8 and the backbone 16"),
    ],
)
def test_an_editor_of_another_width_is_refused_by_name(
    words, tiny_backbone, tmp_path, capsys, config, says
):
    from diffusers import UNet2DConditionModel

    own = UNet2DConditionModel(**{**tiny_backbone.unet.config, **config})
    own.save_pretrained(tmp_path / "mine" / "unet")
    command = [*words, "--editor", str(tmp_path / "mine")]
    said = refused([*command, "--out", str(tmp_path / "run")], capsys)
    assert f"{tmp_path / 'mine'}" in said and says in said and said.count("\n") == 1


def test_a_validation_that_a_signal_falls_into_is_kept(words, tmp_path, monkeypatch):
    """The step is saved, so that no later start would validate after it."""
    run_validation = train.Validation.run

    def interrupted(validation, state):
        os.kill(os.getpid(), signal.SIGTERM)
        return run_validation(validation, state)

    with monkeypatch.context() as patch:
        patch.setattr(train.Validation, "run", interrupted)
        with pytest.raises(SystemExit):
            train.main([*words, "--out", str(tmp_path / "run")])
    assert [row["step"] for row in read_json(tmp_path / "run/validation.json")] == [2]
    train.main([*words, "--out", str(tmp_path / "run")])
    steps = [row["step"] for row in read_json(tmp_path / "run/validation.json")]
    assert steps == [2, 4]
