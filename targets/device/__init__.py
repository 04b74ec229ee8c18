"""What travels to a device: standard library and numpy only, Python >= 3.8, tested there as is."""
