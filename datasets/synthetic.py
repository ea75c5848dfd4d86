"""Synthetic lesions and abdomens for the demo data sets, drawn from a random generator without any patient data.

Lesions: a star-shaped outline with random harmonics on textured skin, darkened by pigment, under uneven light, with
hairs, rulers, freckles and dark corners that are not lesion. Abdomens: ellipsoids bent by smooth random waves, in
Hounsfield units.
"""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw
from scipy import ndimage

SKIN = np.array([(238, 205, 195), (228, 185, 165), (214, 168, 138), (205, 178, 160), (186, 140, 108), (142, 98, 72)])
MELANIN = np.array((0.55, 1.0, 1.45))  # how strongly pigment absorbs red, green and blue
BLOOD = np.array((0.05, 0.75, 0.65))
INK = np.array((1.0, 1.25, 0.35))


def clouds(rng: Generator, size: int, roughness: float) -> np.ndarray:
    """Return a random field (size, size) with mean 0, standard deviation 1 and spectrum 1 / frequency ** roughness."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    frequency[0, 0] = np.inf
    spectrum = rng.standard_normal(frequency.shape) + 1j * rng.standard_normal(frequency.shape)
    field = np.fft.irfft2(spectrum / frequency**roughness, s=(size, size))
    return (field - field.mean()) / field.std()


def strokes(size: int, lines: Iterable[tuple[np.ndarray, float]]) -> np.ndarray:
    """Return the coverage 0..1 (size, size) of anti-aliased lines: [(points in 0..1, width in 0..1)]."""
    scale = 4
    canvas = Image.new("L", (size * scale, size * scale))
    draw = ImageDraw.Draw(canvas)
    for points, width in lines:
        draw.line((points * size * scale).ravel().tolist(), fill=255, width=max(1, round(width * size * scale)))
    return np.asarray(canvas.resize((size, size), Image.Resampling.BOX)) / 255


def hairs(rng: Generator, size: int) -> np.ndarray:
    """Return the coverage of a few to many bent hairs."""
    t = np.linspace(0, 1, 24)[:, None]
    main = rng.uniform(0, 2 * math.pi)
    lines = []
    for _ in range(rng.choice((0, 3, 8, 20), p=(0.4, 0.25, 0.2, 0.15))):
        angle, length = main + rng.normal(0, 0.6), rng.uniform(0.3, 1.0)
        start = rng.uniform(0, 1, 2)
        step = length * np.array((math.cos(angle), math.sin(angle)))
        bend = rng.normal(0, 0.25) * np.array((-step[1], step[0]))
        lines.append((start + t * step + 4 * t * (1 - t) * bend, rng.uniform(0.002, 0.006)))
    return strokes(size, lines)


def ruler(rng: Generator, size: int) -> np.ndarray:
    """Return the coverage of a ruler with ticks."""
    angle = rng.normal(0, 0.25) + rng.choice((0, math.pi / 2))
    along, across = np.array((math.cos(angle), math.sin(angle))), np.array((-math.sin(angle), math.cos(angle)))
    start = np.array((0.15, 0.88)) if abs(along[0]) > abs(along[1]) else np.array((0.1, 0.2))
    step, ticks = rng.uniform(0.025, 0.04), rng.integers(12, 20)
    feet = [start + along * step * tick for tick in range(ticks)]
    ends = [foot - across * (0.025 if tick % 5 else 0.045) for tick, foot in enumerate(feet)]
    marks = [(np.array(points), 0.004) for points in zip(feet, ends, strict=True)]
    return strokes(size, [(np.array([feet[0], feet[-1]]), 0.005), *marks])


def outline(rng: Generator, angle: np.ndarray) -> np.ndarray:
    """Return the radius of an irregular closed curve for each angle, 1 on average."""
    harmonics = np.arange(2, 14)
    strength = rng.uniform(0.3, 0.9) * rng.standard_normal(12) / harmonics**1.6
    phase = rng.uniform(0, 2 * math.pi, 12)
    wave = (strength[:, None, None] * np.cos(harmonics[:, None, None] * angle + phase[:, None, None])).sum(0)
    return np.exp(0.55 * wave)


def lesion(rng: Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (image (size, size, 3), mask (size, size) of 0 and 255), both uint8."""
    y, x = np.mgrid[:size, :size] / (size - 1)

    # skin: tone, blotches of blood, fine texture
    tone = SKIN[rng.choice(len(SKIN), p=(0.2, 0.25, 0.2, 0.15, 0.12, 0.08))] / 255 * rng.uniform(0.9, 1.05)
    blood = rng.uniform(0.02, 0.16) * clouds(rng, size, 1.6) + rng.uniform(0, 0.15)
    texture = 0.02 * clouds(rng, size, 0.7)
    melanin = rng.uniform(0.02, 0.07) * clouds(rng, size, 1.3)
    for _ in range(rng.poisson(rng.choice((1, 10)))):  # freckles
        spot = np.hypot(x - rng.uniform(), y - rng.uniform()) / rng.uniform(0.008, 0.022)
        melanin += rng.uniform(0.1, 0.5) * np.exp(-(spot**2))

    # lesion: outline bent by clouds, soft or sharp edge
    centre_x, centre_y = rng.normal(0.5, 0.07, 2).clip(0.35, 0.65)
    radius = math.exp(rng.uniform(math.log(0.14), math.log(0.36)))
    aspect, turn = rng.uniform(1, 1.5), rng.uniform(0, 2 * math.pi)
    bend, fray = rng.uniform(0.02, 0.1) * radius, rng.uniform(0.005, 0.03) * radius
    u, v = (
        position + bend * clouds(rng, size, 2.2) + fray * clouds(rng, size, 1.0)
        for position in (x - centre_x, y - centre_y)
    )
    along = (u * math.cos(turn) + v * math.sin(turn)) / math.sqrt(aspect)
    across = (v * math.cos(turn) - u * math.sin(turn)) * math.sqrt(aspect)
    depth = radius * outline(rng, np.arctan2(across, along)) - np.hypot(along, across)  # in image widths, > 0 inside
    mask = (depth > 0).astype(np.uint8) * 255
    inside = 1 / (1 + np.exp(-np.clip(depth / rng.uniform(0.004, 0.022), -30, 30)))

    # pigment: uneven, with darker patches, a network of lines or dots, at times pink, grey or bleached parts
    strength = math.exp(rng.uniform(math.log(0.5), math.log(1.9)))
    pigment = 1 + rng.uniform(0.1, 0.3) * clouds(rng, size, 1.5)
    pigment += rng.uniform(0, 0.8) / (1 + np.exp(-6 * (clouds(rng, size, 2.0) - rng.uniform(0.3, 1.2))))
    mesh = ndimage.gaussian_filter(rng.standard_normal((size, size)), size / 110)
    pigment += rng.uniform(0, 0.5) * (0.8 - np.abs(mesh) / mesh.std())  # dark lines where the noise crosses zero
    pigment *= 1 - rng.uniform(0, 0.5) * np.exp(-((depth / (0.4 * radius)) ** 2))  # paler rim
    melanin += strength * inside * pigment.clip(0.25)
    blood += inside * rng.choice((0, 0.15, 0.5), p=(0.5, 0.3, 0.2)) * (1 + 0.5 * clouds(rng, size, 1.8)).clip(0)
    veil = inside * rng.choice((0, 0.14), p=(0.75, 0.25)) * (1 + clouds(rng, size, 1.8)).clip(0, 2)

    ink = np.zeros((size, size))
    if rng.uniform() < 0.12:
        spot = np.hypot(x - rng.choice((0.12, 0.88)), y - rng.uniform()) / 0.1
        ink = (clouds(rng, size, 1.0) > 0.2) * np.exp(-(spot**2))
    absorbed = melanin[..., None] * MELANIN + blood.clip(0)[..., None] * BLOOD + ink[..., None] * INK
    image = tone * np.exp(-absorbed) * (1 + texture[..., None])
    image = image * (1 - veil[..., None]) + veil[..., None] * np.array((0.45, 0.47, 0.55))

    # hair and ruler on the skin, and the light
    image *= 1 - 0.85 * hairs(rng, size)[..., None] * np.array((0.9, 0.95, 1.0))
    if rng.uniform() < 0.3:
        image *= 1 - 0.8 * ruler(rng, size)[..., None]
    direction = rng.uniform(0, 2 * math.pi)
    light = 1 + rng.uniform(0, 0.18) * ((x - 0.5) * math.cos(direction) + (y - 0.5) * math.sin(direction)) * 2
    distance = np.hypot(x - 0.5, y - 0.5)
    light *= 1 - rng.uniform(0, 0.5) * distance**2 * 2
    if rng.uniform() < 0.25:  # the dark rim of a dermatoscope
        light *= 1 / (1 + np.exp((distance - rng.uniform(0.5, 0.62)) / 0.012))
    glare = 0.25 * (clouds(rng, size, 1.2) > 3.2)
    image = image * light[..., None] * rng.uniform(0.85, 1.1) + ndimage.gaussian_filter(glare, 0.6)[..., None]
    image = ndimage.gaussian_filter(image, (0.45, 0.45, 0)) + rng.normal(0, 0.008, image.shape)
    return (image.clip(0, 1) * 255).round().astype(np.uint8), mask


# Organs as unions of ellipsoids in body coordinates: u from the patient's right (-1) to left (1), v from front (-1) to
# back (1), w from foot (0) to head (1). Each row: label, HU, its spread between patients, [(centre, radii)]. Later rows
# cover earlier ones; labels are Synapse's, 0 for organs that are not segmented.
ANATOMY = (
    (5, 105, 12, [((-0.44, -0.02, 0.72), (0.38, 0.55, 0.52)), ((-0.08, -0.40, 0.82), (0.42, 0.26, 0.34))]),  # liver
    (7, 115, 12, [((0.62, 0.26, 0.72), (0.17, 0.34, 0.36))]),  # spleen
    (8, 48, 12, [((0.34, -0.26, 0.78), (0.18, 0.34, 0.34)), ((0.16, -0.42, 0.58), (0.24, 0.14, 0.16))]),  # stomach
    (0, 130, 15, [((-0.12, 0.22, 0.5), (0.085, 0.07, 9.0))]),  # vena cava
    (0, 140, 15, [((-0.16, -0.02, 0.66), (0.06, 0.10, 0.22))]),  # portal vein
    (2, 10, 5, [((-0.27, -0.30, 0.46), (0.10, 0.15, 0.20))]),  # gallbladder
    (6, 85, 10, [
        ((-0.14, -0.04, 0.44), (0.11, 0.10, 0.16)),
        ((0.02, -0.07, 0.54), (0.12, 0.075, 0.12)),
        ((0.18, 0.00, 0.60), (0.13, 0.07, 0.12)),
        ((0.34, 0.09, 0.65), (0.12, 0.06, 0.12)),
    ]),  # pancreas
    (4, 165, 22, [((-0.38, 0.38, 0.36), (0.15, 0.19, 0.34))]),  # right kidney
    (3, 165, 22, [((0.38, 0.36, 0.42), (0.15, 0.19, 0.34))]),  # left kidney
    (1, 165, 28, [((0.05, 0.22, 0.5), (0.065, 0.07, 9.0))]),  # aorta
)  # fmt: skip
FAT, MUSCLE, AIR, BONE = -100, 58, -1000, 420


def waves(rng: Generator, points: np.ndarray, count: int, frequency: float) -> np.ndarray:
    """Return a smooth random displacement (3, S, H, W) of unit size at points (3, S, H, W)."""
    field = np.zeros_like(points)
    for _ in range(count):
        phase = np.tensordot(rng.normal(0, frequency, 3), points, 1)
        field += rng.normal(0, 1, (3, 1, 1, 1)) * np.sin(phase + rng.uniform(0, 2 * math.pi))
    return field / math.sqrt(count / 2)


def ellipsoid(points: np.ndarray, centre: Any, radii: Any) -> np.ndarray:
    """Return the distance from the centre in radii, below 1 inside. points (3, S, H, W) -> (S, H, W)."""
    return np.sqrt(sum(((points[i] - centre[i]) / radii[i]) ** 2 for i in range(3)))


def abdomen(rng: Generator, size: int, slices: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (image (slices, size, size) float32, HU -125..275 as 0..1, label uint8, spacing (3,) in mm)."""
    side = np.linspace(-1, 1, size)
    w, y, x = np.meshgrid(np.linspace(0.12, 0.95, slices), side, side, indexing="ij", copy=False)
    half_width, half_height = rng.uniform(0.84, 0.95), rng.uniform(0.64, 0.76)
    body = np.stack([(x - rng.normal(0, 0.03)) / half_width, (y - rng.normal(-0.04, 0.03)) / half_height, w])
    body[:2] += 0.02 * waves(rng, body, 6, 2.0)[:2]
    inner = body + 0.035 * waves(rng, body, 8, 3.0) + 0.012 * waves(rng, body, 8, 9.0)
    u, v = body[:2]
    radius = (np.abs(u) ** 2.4 + np.abs(v) ** 2.4) ** (1 / 2.4)  # 1 at the skin
    angle = np.arctan2(v, u)

    # wall: skin, fat, muscle, ribs, spine; couch below
    wall = 1 - rng.uniform(0.05, 0.14) * (1 + 0.25 * np.cos(2 * angle))
    cavity_edge = wall - rng.uniform(0.06, 0.09)
    cavity = radius < cavity_edge
    hu = np.full(x.shape, float(AIR))
    hu[radius < 1] = 30
    hu[radius < 0.98] = FAT
    hu[radius < wall] = MUSCLE + rng.normal(0, 5)
    hu[cavity] = FAT + rng.normal(0, 6)
    rib = (np.abs(radius - (wall + cavity_edge) / 2) < 0.024) & (np.sin(11 * angle + 9 * w + rng.uniform(0, 6)) > 0.72)
    hu[rib & (w > 0.3)] = BONE
    back = np.minimum(*(ellipsoid(body, (side * 0.24, 0.66, 0.5), (0.25, 0.20, 9)) for side in (-1, 1)))
    psoas = np.minimum(*(ellipsoid(body, (side * 0.20, 0.46, 0.1), (0.10, 0.13, 0.5)) for side in (-1, 1)))
    hu[((back < 1) | (psoas < 1)) & (radius < wall)] = MUSCLE
    couch = np.abs(y - 0.93 + 0.15 * x**2) < 2 / size
    hu[couch & (radius > 1.02) & (np.abs(x) < 0.85)] = 90

    # bowel: rings of wall around contents or air, not segmented
    mesentery = waves(rng, inner, 12, 14.0)
    hu[cavity] += 25 * mesentery[0][cavity].clip(-0.5, 2)
    hu[cavity & (np.abs(mesentery[1:]).max(0) < 0.16)] = 110  # its vessels
    for _ in range(rng.integers(16, 24)):
        centre = (rng.uniform(-0.6, 0.65), rng.uniform(-0.7, 0.1), rng.uniform(0, 0.6))
        loop = ellipsoid(inner, centre, rng.uniform(0.06, 0.15, 3) * (1.2, 1, 1.5))
        hu[(loop < 1) & cavity] = rng.normal(55, 8)
        hu[(loop < 0.72) & cavity] = rng.choice((AIR, 30, 150), p=(0.25, 0.6, 0.15))

    label = np.zeros(x.shape, np.uint8)
    for organ, value, spread, parts in ANATOMY:
        shift, scale = rng.normal(0, (0.025, 0.025, 0.04)), np.exp(rng.normal(0, 0.09))
        moved = [(np.add(centre, shift), np.multiply(radii, scale)) for centre, radii in parts]
        inside = np.min([ellipsoid(inner, *part) for part in moved], 0)
        value, centre = rng.normal(value, spread), moved[0][0]
        region = (inside < 1) & cavity
        if organ == 7:  # the spleen is hollowed by the stomach and the kidney
            region &= ellipsoid(inner, centre + (-0.17, -0.08, 0), (0.17, 0.30, 0.5)) > 1
        if organ in (3, 4):  # the sinus of a kidney opens to the middle and is fat
            region &= ellipsoid(inner, centre + (-0.11 if organ == 3 else 0.11, 0, 0), (0.11, 0.07, 0.17)) > 1
        hu[region] = value
        label[region] = organ
        if organ in (3, 4):
            hu[region & (inside < 0.72)] = value - 35  # medulla
        if organ == 8:
            hu[region & (inside < 0.8)] = rng.choice((15, 60, 140), p=(0.5, 0.3, 0.2))
            hu[region & (inside < 0.8) & (inner[1] < centre[1] - rng.uniform(0.0, 0.25))] = AIR
        if organ == 5:
            vessels = np.abs(waves(rng, inner, 5, 10.0)[0]) < 0.06
            hu[region & vessels & (inside < 0.8)] = value + 35

    # lungs come down beside liver and spleen
    lung = cavity & (radius > cavity_edge - 0.35 * (w - 0.62)) & (v > -0.2) & (w > 0.62)
    hu[lung], label[lung] = -850, 0
    vertebra = ellipsoid(body, (0, 0.44, 0.5), (0.13, 0.17, 9))
    process, arch = ellipsoid(body, (0, 0.70, 0.5), (0.035, 0.16, 9)), ellipsoid(body, (0, 0.62, 0.5), (0.22, 0.05, 9))
    bone = np.minimum(np.minimum(vertebra, process), arch) < 1
    hu[bone], label[bone] = BONE, 0
    hu[vertebra < 0.85] = 190 + 40 * rng.standard_normal()
    hu[ellipsoid(body, (0, 0.60, 0.5), (0.065, 0.06, 9)) < 1] = 30

    hu = ndimage.gaussian_filter(hu, (0, 0.55, 0.55))
    noise = ndimage.gaussian_filter(rng.standard_normal(hu.shape), (0, 0.6, 0.6))
    hu += noise / noise.std() * rng.uniform(10, 20)
    spacing = np.array((200 / slices, 360 / size, 360 / size))
    return ((hu + 125) / 400).clip(0, 1).astype(np.float32), label, spacing
