"""The whole tunnel on one machine: ``python -m demo``, or ``make demo``."""
