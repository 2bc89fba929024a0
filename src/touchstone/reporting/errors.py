"""Why no report can be made, in a module that is quick to load."""


class ReportError(ValueError):
    """A run from which no report can be made; the message names what is wrong and where."""
