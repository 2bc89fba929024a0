"""From a plan to a ledger: which process measures what, when, and how it ends."""
