"""Where lizard stops reading."""


def lizard_reports_a_function_that_ended_before():
    return 1


SEPARATOR = 1


def lizard_drops_a_function_that_is_still_open(value):
    return value or 1


# The text GENERATED CODE stops lizard wherever a comment holds it.
def lizard_drops_what_follows():
    return 1
