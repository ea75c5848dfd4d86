import utils.openmp  # noqa: F401  (before torch)
