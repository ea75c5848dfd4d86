"""Lets PyTorch's threads on CPUs sleep soon after an operation. Import it before torch, which reads the setting once.

The threads are OpenMP's (libgomp on Linux). By default they spin for some milliseconds, in case the next operation is
near, and meanwhile keep the cores from the scan's own threads and from all other programs. A tenth of a millisecond is
enough to catch operations that follow each other, and training gets no slower."""

import os

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
