"""Ask the fake service, to be killed. Arguments: URL, replies file, captions."""

import sys

from ip2p_lib.triplets.service import ask_service, connect

if __name__ == "__main__":
    url, path, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    captions = [f"caption {position}" for position in range(count)]
    with connect(url) as client:
        run = ask_service(captions, model="m", client=client, replies_path=path)
        replies = list(run)
    assert [reply.caption for reply in replies] == captions
    assert all(reply.triplet for reply in replies)
    assert "torch" not in sys.modules
