"""Clients of smaller rank: the adapter that each rank's local training starts from."""

from fedsdr.adapters import Adapter, rank_of, resized
from fedsdr.algorithms.contract import ServerState

SMALLER = "smaller-"


def place(rank: int | None) -> str:
    """The prefix under which the starting point of a smaller rank is kept and sent."""
    return f"{SMALLER}{rank}/"


def starting_point(state: ServerState, rank: int) -> Adapter:
    """The kept one of that rank, or else the first components of the global adapter."""
    if rank == rank_of(state.adapter):
        return state.adapter
    return dict(state.memory.get(place(rank)) or resized(state.adapter, rank))
