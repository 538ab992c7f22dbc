"""A service asked in haste: between two tries there are milliseconds."""

from ip2p_lib.language_service import Patience, ask_service
from ip2p_lib.triplets import Triplet

HASTE = Patience(tries=6, first=0.001, longest=0.01)
NIGHT = Triplet("a castle", "make it night", "a castle at night")  # a right answer


def ask(captions, client, **more):
    return ask_service(captions, model="m", client=client, patience=HASTE, **more)
