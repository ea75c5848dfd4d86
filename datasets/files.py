"""Files that nobody vouches for: errors that name them, and limits to what is read."""

MAX_VALUES = 2**29  # of an array: 2048 slices of 512 x 512


def check_training_image(file):
    """Raises ValueError for a Pillow image or mask that nobody trains on purpose with: transparent, or of one pixel."""
    if file.width * file.height < 2:
        raise ValueError("it has one pixel, expected an image")
    if "A" in file.getbands():
        low, high = file.getchannel("A").getextrema()
        if low != high:
            raise ValueError("it is transparent in places, expected an image without transparency")


def check_numbers(shape, dtype, what):
    """Raises ValueError unless an array holds real numbers, some but not more than MAX_VALUES."""
    if dtype.kind not in "biuf":
        raise ValueError(f"{what} holds {dtype}, expected numbers")
    count = 1
    for side in shape:
        count *= side
    if not 0 < count <= MAX_VALUES:
        raise ValueError(f"{what} has the shape {shape}, expected between 1 and {MAX_VALUES} values")
