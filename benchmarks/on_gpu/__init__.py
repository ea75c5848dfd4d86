"""The parts of `python benchmarks/gpu.py`, one file each."""
