"""What CI platforms read of a run; one file per format, listed in `formats.py`.

Each is a pure function of `results.json` and a `Context`: nothing here measures, judges or posts.
"""
