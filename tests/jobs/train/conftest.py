"""The training job on the tiny networks and a tiny data set."""

import pytest

from ip2p_lib.dataset.dataset import write_shards
from jobs import train
from tests.support.pairs import make_pair


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """Twelve pairs of 48 x 48 pixels, with texts the tiny tokenizer knows."""
    folder = tmp_path_factory.mktemp("data") / "pairs"
    texts = {"caption": "a cat", "edited_caption": "a dog"}
    numbers = range(12)
    many = [make_pair(i, 48, instruction=f"make it {i % 3}", **texts) for i in numbers]
    write_shards(many, folder)
    return folder


@pytest.fixture(scope="session")
def words(pairs, tiny_sd_folder, tiny_clip_folder):
    options = {
        "pairs": pairs, "backbone": tiny_sd_folder, "clip": tiny_clip_folder,
        "resolution": 64, "steps": 4, "batch-size": 4, "license": "mit",
        "validate-every": 2, "validation-pairs": 2, "scale": "smoke",
        "loss-weighting": "min-snr",
    }  # fmt: skip
    return [word for k, v in options.items() for word in (f"--{k}", str(v))]


@pytest.fixture(scope="session")
def alone(words, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "run"
    train.main([*words, "--out", str(out)])
    return out


@pytest.fixture
def stopped_after_two(monkeypatch):
    """Begin a run, and stop it after two steps."""
    log_step = train.Run.log_step

    def stop(run, step):
        log_step(run, step)
        if step.step == 2:
            run.save()
            raise KeyboardInterrupt

    def begin(command):
        with monkeypatch.context() as patch:
            patch.setattr(train.Run, "log_step", stop)
            assert train.main(command) == 130

    return begin
