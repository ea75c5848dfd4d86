"""File formats of masks that need optional packages."""
