import utils.machine.openmp  # noqa: F401  (before torch)
