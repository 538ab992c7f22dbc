"""A trained editor as a folder for others: weights and card, and the way to the Hub.

``save_editor`` writes what section 3.2 trained as one folder, which stock ``diffusers``
reads; ``push_to_hub`` sends it to the Hugging Face Hub, if that is wished.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from ip2p_lib.folders import atomic_directory
from ip2p_lib.training.lora import merge_editor_lora
from ip2p_lib.training.state import TrainState

SENT = ("README.md", "unet/*.json", "unet/*.safetensors")  # nothing else is uploaded


def save_editor(
    folder: str | Path,
    state: TrainState,
    text: str,
    *,
    dtype: torch.dtype = torch.float16,
) -> Path:
    """Write the averaged U-Net and its card, both or neither.

    Args:
        folder: absent, empty, or of an older editor, which gives way.
        state: a run's state; stays as it is. LoRA is merged into the weights.
        text: from ``model_card.card``.
        dtype: of the stored weights.

    Raises:
        FileExistsError: ``folder`` holds something else.
        FloatingPointError: a weight is not finite.
        OSError: no room, or no right to write.
    """
    state.require_finite()
    averaged: Any = copy.deepcopy(state.unet)
    state.ema.copy_to(averaged)
    if state.economy.lora_rank:
        merge_editor_lora(averaged)
    averaged = averaged.to("cpu", memory_format=torch.contiguous_format).type(dtype)
    folder = Path(folder)
    size = sum(w.numel() * w.element_size() for w in averaged.parameters())
    kind = r"unet|README\.md"
    with atomic_directory(folder, needed=size, replaces=kind) as partial:
        averaged.save_pretrained(partial / "unet")
        (partial / "README.md").write_text(text, "utf-8")
    return folder


def push_to_hub(
    folder: str | Path,
    repo_id: str,
    *,
    dry_run: bool,
    private: bool = True,
    api: Any = None,
) -> list[str]:
    """Upload what ``save_editor`` wrote, and nothing else that may lie beside it.

    The token is the one that ``huggingface_hub`` finds by itself (``hf auth login``, or
    the environment); it is never an argument, so that no notebook can show it.

    Args:
        folder: with ``README.md`` and ``unet``.
        repo_id: ``"user/name"``; made if missing.
        dry_run: only tell what would be sent, and contact nobody.
        private: whether a new repository is.
        api: in place of ``huggingface_hub.HfApi()``.

    Returns:
        The files, by their names in the repository.
    Raises:
        FileNotFoundError: ``folder`` holds no saved editor.
    """
    folder = Path(folder)
    found = [path for pattern in SENT for path in sorted(folder.glob(pattern))]
    if len({path.suffix for path in found}) < len(SENT):
        raise FileNotFoundError(
            f"{folder} holds no editor with its card; save_editor writes one."
        )
    if not dry_run:
        from huggingface_hub import HfApi

        api = api or HfApi()
        api.create_repo(repo_id, private=private, exist_ok=True)
        words, sent = "An InstructPix2Pix editor, with its card", list(SENT)
        where = {"repo_id": repo_id, "folder_path": str(folder)}
        api.upload_folder(**where, allow_patterns=sent, commit_message=words)
    return [path.relative_to(folder).as_posix() for path in found]
