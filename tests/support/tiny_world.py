"""A small world of the lab."""

from fedsdr.lab.pretrain import (
    PretrainOptions,
)
from fedsdr.lab.world import (
    World,
    WorldOptions,
    build_world,
)

TINY = PretrainOptions(hidden=16, layers=1, heads=2, steps=3, batch_size=4)


def world(**changes) -> World:
    return build_world(WorldOptions(**({"entities": 30} | changes)))


def changed_share(each: World) -> float:
    own = [fact for fact in each.facts if fact.client is not None]
    return sum(fact.changed for fact in own) / len(own)
