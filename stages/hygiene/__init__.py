"""Is the data fit to judge by? Twins across splits, labels that contradict, pixels out of line.

The folder's one rule: it reads and tells, and changes no sample. What is a leak, and what is only
worth knowing, is decided in `leaks.py`; all else here are measurements.
"""
