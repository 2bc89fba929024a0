"""What lizard makes of a function on one line: it never ends, and takes what follows."""

from typing import overload


@overload
def lizard_omits_one_line(value: int) -> int: ...
@overload
def lizard_omits_one_line(value: str) -> str: ...
def lizard_omits_one_line(value):
    return value


def its_place_is_taken(value):
    def takes_the_place(item): return item or value

    return takes_the_place if value else None


class Protocol:
    def takes_the_block_below(self): ...

    if __debug__:
        kind = 1 or 2


def loses_its_tail(value):
    if value:
        value = value[
 0]
    return value if value else 1
