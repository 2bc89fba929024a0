"""What lizard counts and radon does not, one function a habit."""


def lizard_counts_finally(value):
    try:
        print(value)
    finally:
        print("done")


def lizard_counts_an_irrefutable_case(value):
    match value:
        case 1:
            return "one"
        case _:
            return "many"


def lizard_counts_a_capture_case(value):
    match value:
        case [1, *rest]:
            return rest
        case other:
            return other


def lizard_counts_a_case_guard(value):
    match value:
        case int() if value > 0:
            return "positive"
        case str():
            return "text"


def both_count_only_one_of_two_guarded_captures(value):
    match value:
        case number if number > 0:
            return "positive"
        case number if number < 0:
            return "negative"


def lizard_takes_a_variable_for_the_keyword_case(match, case):
    return (
        match and
        case == 1
    )


def causes_that_cancel_out_are_still_named(value):
    assert value
    try:
        return value
    finally:
        print("done")
