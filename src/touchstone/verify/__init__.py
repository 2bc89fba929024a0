"""From a run folder alone: whether its record is whole, and whether every printed number follows from it.

`custody` reads ledger and traces, `observed` and `arithmetic` work the numbers out again, `expected` holds the results
against them, `digits` and `printed` the reports; `again` lets the code that made results and report make them once more
and compares the bytes. Nothing but `again` imports the instrument's own analysis or reporting.
"""
