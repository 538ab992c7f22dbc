"""Load pretrained networks: whole, quietly, safetensors only (section 3.2)."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ip2p_lib.config import Source


def locate(source: str | Path | Source, file: str, problem: str) -> dict[str, Any]:
    """Arguments of ``from_pretrained``, which takes a wrong path for a Hub id.

    Args:
        source: a local folder; or a ``config.Source`` with a Hub id and a revision.
        file: what a folder of this kind holds, "config.json" or "model_index.json".
        problem: how an error begins; ``{folder}`` stands for the folder.
    Raises:
        FileNotFoundError: the folder lacks ``file``, or a Hub id has no revision.
    """
    name = source.path_or_id if isinstance(source, Source) else source
    if isinstance(source, Source) and source.revision is not None:
        return {"pretrained_model_name_or_path": name, "revision": source.revision}
    if not (Path(name) / file).is_file():
        raise FileNotFoundError(
            f"{problem.format(folder=name)} For a model from the Hub pass "
            "config.Source(id, revision) with a commit as revision."
        )
    return {"pretrained_model_name_or_path": str(name), "local_files_only": True}


@contextmanager
def explain_missing(where: dict[str, Any]) -> Iterator[None]:
    """Turn an OSError of ``from_pretrained`` into a FileNotFoundError with a remedy."""
    try:
        yield
    except OSError as error:
        raise FileNotFoundError(
            f"{where['pretrained_model_name_or_path']} is not complete on this machine "
            "and cannot be downloaded. Check the name, connect to the network once, or "
            "use SCALE='miniature', whose models ship with the repository."
        ) from error


def load_network(network: Any, where: dict[str, Any]) -> Any:
    """Load a network, a class of ``diffusers`` or ``transformers``, from ``locate``.

    Raises ValueError if weights are missing; those libraries would draw random ones.
    """
    from diffusers.utils import logging as diffusers
    from transformers.utils import logging as transformers

    # A progress bar would be left behind in a notebook's output.
    bars = [x for x in (diffusers, transformers) if x.is_progress_bar_enabled()]
    try:
        for library in bars:
            library.disable_progress_bar()
        model, report = network.from_pretrained(
            **where, use_safetensors=True, output_loading_info=True
        )
    finally:
        for library in bars:
            library.enable_progress_bar()
    if missing := sorted(report["missing_keys"]):
        place = Path(where["pretrained_model_name_or_path"], where.get("subfolder", ""))
        raise ValueError(
            f"{place} lacks {len(missing)} weights, {missing[0]} among them: download "
            "or save the model again."
        )
    return model
