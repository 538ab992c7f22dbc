"""An editor is loaded by its scale's name, and what is not there is said in words."""

from dataclasses import replace

import pytest
from diffusers import DDIMScheduler

from ip2p_lib import config
from ip2p_lib.config import Source
from ip2p_lib.editing.editor import load_editor
from tests.support.tiny_editor import DEFAULTS, distance, new_editor, picture


@pytest.fixture(scope="module")
def editor(tiny_backbone):
    return new_editor(tiny_backbone)


def test_an_unknown_scale_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'miniature'"):
        load_editor("minature")


@pytest.fixture
def installed(editor, tiny_sd_folder, tmp_path, monkeypatch):
    """A scale of tiny models on disk, its U-Net stored as the repository ships it."""
    editor.backbone.unet.save_pretrained(tmp_path / "unet")
    tiny = replace(
        config.preset("miniature"),
        name="tiny",
        resolution=64,
        backbone=Source(str(tiny_sd_folder)),
        editor=Source(str(tmp_path / "unet")),
        editing=DEFAULTS,
    )
    monkeypatch.setitem(config.SCALES, "tiny", tiny)
    return tiny


def test_a_scale_is_loaded_with_its_u_net_and_defaults(installed, editor):
    loaded = load_editor("tiny", device="cpu")
    assert loaded.settings == DEFAULTS
    edits = [e.edit(picture(), "make it a cat") for e in (loaded, editor)]
    # In memory weights lie elsewhere than from a file, and a sum may round otherwise.
    assert distance(*edits) < 0.01  # of 255


def test_missing_weights_say_what_to_do(installed, tmp_path, monkeypatch):
    absent = replace(installed, editor=Source(str(tmp_path / "gone")))
    monkeypatch.setitem(config.SCALES, "tiny", absent)
    with pytest.raises(FileNotFoundError, match="train one"):
        load_editor("tiny", device="cpu")


def test_without_a_network_the_hubs_scale_says_what_to_do(monkeypatch):
    def unreachable(*args, **options):
        raise OSError("We couldn't connect to 'https://huggingface.co'")

    monkeypatch.setattr(DDIMScheduler, "load_config", unreachable)
    with pytest.raises(FileNotFoundError, match=r"connect.*SCALE='miniature'"):
        load_editor("sd15")
