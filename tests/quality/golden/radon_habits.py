"""What radon does and lizard does not, one function a habit."""


def radon_counts_assert(value):
    assert value
    return value


def radon_skips_the_inside_of_assert(values):
    assert all(value for value in values if value) and values
    return values


def radon_counts_loop_else(values):
    for value in values:
        print(value)
    else:
        print("done")


def radon_counts_try_else(value):
    try:
        print(value)
    except ValueError:
        pass
    else:
        print("fine")


def radon_skips_except_star(value):
    try:
        print(value)
    except* ValueError:
        pass
    except* TypeError:
        pass
    else:
        print("fine")


def radon_skips_the_header(value=1 if __debug__ else 2, other: "int" = 1 or 2) -> "int":
    return value + other


def radon_skips_decorators_of_a_nested_function(value):
    @(print if value else repr)
    def hidden_nested_function():
        return value or 1

    return hidden_nested_function


def radon_skips_a_class_in_a_function(value):
    class Hidden:
        kind = 1 if value else 2

        def hidden_method(self):
            return self or value

    return Hidden


class Outer:
    class Inner:
        def hidden_method_of_an_inner_class(self):
            return self

    def radon_shows_a_method(self):
        return self


if __debug__:

    def radon_shows_a_function_under_if():
        return 1
