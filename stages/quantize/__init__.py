"""Quantization: what it takes to train a network in int8 and to write it down for a runtime.

Reading order: `capture.py` (model -> graph), `policy.py` (where values are rounded), `fake.py`
(how), `engine.py` (insert, calibrate), `emit.py` (trained graph -> what a runtime computes). What
helps without training: `equalize.py` before insert; `adaround.py`, `bias.py` after calibrate. The
folder's one rule: a scale is decided once, in calibration, and the files of all runtimes follow it.

Importing this package does not import torch; the modules in it do.
"""
