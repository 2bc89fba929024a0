"""What both tools count alike: nothing here may be named a difference."""


def plain_decisions_are_counted_alike(items, flag):
    total = 0
    for item in items:
        if item and flag or not flag:
            total += 1
        elif item is None:
            continue
        while total > 10:
            total -= 1
    try:
        total = sum(value for value in items if value)
    except (TypeError, ValueError):
        total = 1 if flag else 0
    return [lambda: total or None, f"{total if flag else 0}"]


@property
def a_decorated_function_is_found_on_the_line_of_def(self):
    return self


async def an_async_function_is_a_function(stream):
    async for item in stream:
        print(item)


def a_header_on_several_lines_is_one_function(
    first=(1, 2),
    second=dict(
        a=1,
    ),
) -> dict[
    str, int
]:
    return first or second


class Shape:
    kind = 1 if __debug__ else 2

    def a_method_is_a_function(self):
        """Mention def and class in a docstring: def f(), class A."""
        return self
