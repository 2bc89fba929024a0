"""What lizard drops because a comment says so: the next function that ends, wherever it began."""


def lizard_forgives_a_function_with_the_comment_inside(value):
    # lizard forgive
    return value or 1


SEPARATOR = 1


# lizard forgives(length)
def lizard_forgives_all_metrics_whatever_is_in_brackets(value):
    return value or 1


def lizard_forgives_the_function_above_the_comment(value):
    return value or 1


# #lizard forgive
def lizard_spares_the_function_below_the_comment(value):
    return value or 1


SEPARATOR = 2


# lizard forgive global
def lizard_forgives_no_function_globally():
    return 1
