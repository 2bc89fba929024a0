"""From a ledger to results: metrics, statistics, checks."""
