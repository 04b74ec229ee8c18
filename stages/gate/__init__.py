"""The gate: rules (`rules.py`) over raw evidence, one verdict each (`judge.py`, `verdict.py`).

Importing `rules` imports no numpy; the config is checked with it. `judge` does the statistics.
"""
