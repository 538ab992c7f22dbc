"""The shipped language model behind a real service's protocol, over a real socket."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ip2p_lib.config import HELD_OUT, preset
from ip2p_lib.miniature.corpus import grammar_triplets
from ip2p_lib.triplets.generation import load_writer, write_triplets
from ip2p_lib.triplets.ledger import Ledger
from ip2p_lib.triplets.local_server import SAMPLING, ServerError, serve
from ip2p_lib.triplets.record import tally
from ip2p_lib.triplets.service import Patience, ServiceError, ask_service, connect

SHIPPED = Path(preset("miniature").language_model.path_or_id)
CAPTIONS = [triplet.caption for triplet in grammar_triplets(HELD_OUT, 40)]
LONGEST = 96  # half of the model's context
GREEDY = {"frequency_penalty": 0.0}
HASTE = Patience(first=0.001, longest=0.01)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The shipped model, with what it needs to be talked to: it takes the caption."""
    folder = tmp_path_factory.mktemp("served") / "miniature-lm"
    shutil.copytree(SHIPPED, folder)
    template = "{{ messages[-1]['content'][13:-2] }}\n##\n"
    (folder / "chat_template.jinja").write_text(template)
    return folder


@pytest.fixture(scope="module")
def url(folder) -> Iterator[str]:
    with serve(folder, device="cpu") as url:
        yield url


@pytest.fixture
def ask(url, folder, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with connect(url) as client:

        def ask(captions, form="completion", **more):
            more = {"model": str(folder), "max_tokens": LONGEST} | more
            return list(
                ask_service(captions, client=client, form=form, patience=HASTE, **more)
            )

        yield ask


def test_the_most_likely_replies_are_those_of_our_own_loop(ask) -> None:
    writer = load_writer(SHIPPED).args[0]
    own = write_triplets(writer, CAPTIONS, temperature=1e-6, frequency_penalty=0.0)
    replies = ask(CAPTIONS, **GREEDY)
    assert [reply.caption for reply in replies] == CAPTIONS
    assert replies == list(own)


def test_of_what_is_drawn_as_much_is_kept_as_with_our_own_loop(ask) -> None:
    replies = ask(CAPTIONS, attempts=1, in_flight=1, **SAMPLING)
    assert [reply.caption for reply in replies] == CAPTIONS
    own = tally(load_writer(SHIPPED)(CAPTIONS))
    assert abs(tally(replies)["kept"] - own["kept"]) <= 4


@pytest.mark.parametrize(("options", "most"), [(GREEDY, 1), (SAMPLING, 8)])
def test_this_server_draws_only_where_it_is_told_to(ask, options, most) -> None:
    replies = {reply.text for reply in ask(CAPTIONS[:1] * 8, **options)}
    assert most / 2 < len(replies) <= most


def test_what_does_not_parse_is_asked_for_again_and_then_counted(ask) -> None:
    wild = SAMPLING | {"temperature": 5.0, "max_tokens": 48, "in_flight": 1}
    ask(CAPTIONS[:1], seed=0, **SAMPLING)  # from here on this server draws alike
    once, often = (tally(ask(CAPTIONS[:20], attempts=n, **wild)) for n in (1, 4))
    assert sum(once.values()) == sum(often.values()) == 20
    assert once["kept"] < often["kept"], (once, often)
    with Ledger() as ledger:
        replies = ask(CAPTIONS[:5], attempts=3, max_tokens=2, ledger=ledger)
        assert tally(replies) == {"kept": 0, "unfinished": 5}
        assert ledger.totals().written == 5 * 3 * 2


def test_free_text_in_place_of_the_form_is_never_kept(ask) -> None:
    with Ledger() as ledger:
        more = {"attempts": 3, "ledger": ledger, "stop": "\nEND"}
        replies = ask(CAPTIONS[:5], form="chat", **more)
        assert tally(replies) == {"kept": 0, "schema": 5}
        assert all("\n%%\n" in reply.text for reply in replies)
        single = ask(
            CAPTIONS[:5], form="chat", **more | {"attempts": 1, "ledger": None}
        )
        assert single == replies
        assert ledger.totals().read > 0


def test_the_server_answers_to_its_folders_name_only(ask) -> None:
    with pytest.raises(ServiceError, match=r"status 400.*'another'"):
        ask(CAPTIONS, model="another")


def children() -> set[int]:
    return {process.pid for process in psutil.Process().children(recursive=True)}


def test_the_server_ends_with_the_block_whatever_happens(monkeypatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    before = children()
    with pytest.raises(KeyboardInterrupt), serve(SHIPPED, device="cpu") as url:
        assert len(children() - before) == 1
        raise KeyboardInterrupt
    assert children() == before
    more = {"model": str(SHIPPED), "form": "completion", "patience": HASTE}
    with connect(url) as client, pytest.raises(ServiceError, match="does not answer"):
        next(ask_service(CAPTIONS, client=client, **more))


def test_a_killed_notebook_leaves_no_server_behind() -> None:
    code = "import sys, time\nfrom ip2p_lib.triplets.local_server import serve\n"
    code += f"with serve({str(SHIPPED)!r}, device='cpu'):\n"
    code += "    print('up', flush=True)\n    time.sleep(600)"
    owner = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    with owner:
        assert owner.stdout.readline() == b"up\n"
        (server,) = psutil.Process(owner.pid).children()
        owner.send_signal(signal.SIGKILL)
    assert server.wait(timeout=60) is None or not server.is_running()


def test_a_server_that_does_not_start_says_why(tmp_path, monkeypatch) -> None:
    with pytest.raises(FileNotFoundError, match="no language model"), serve(tmp_path):
        pass
    needs = r'needs transformers 5 .* pip install "transformers\[serving\]>=5"'
    with pytest.raises(ServerError, match=needs), serve(SHIPPED, patience=0.0):
        pass
    (tmp_path / "uvicorn.py").write_text("raise ImportError('it is not there')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    before, says = children(), "ImportError: it is not there"
    with pytest.raises(ServerError, match=says), serve(SHIPPED, patience=600.0):
        pass
    assert children() == before
