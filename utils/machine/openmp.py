"""Lets PyTorch's threads on CPUs sleep soon after an operation. To be imported before torch, which reads it once.

They are OpenMP's (libgomp on Linux), and by default spin for some milliseconds, in case the next operation comes soon.
Meanwhile the scan's own threads, and all other programs, find the cores taken. A tenth of a millisecond is enough to
catch the operations that follow each other, and no loss."""

import os

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
