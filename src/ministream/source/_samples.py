"""The samples that the phantom source can show.

A sample is built in a unit field of view: its slices lie in the circle of radius 1 around the rotation axis, and the
rays that pass through the most of it integrate to about 1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ministream.errors import ConfigError
from ministream.source._ellipsoids import Ellipsoids

SAMPLES = ("shepp-logan", "foam")

# Semi-axes a, b, c; centre x, y, z; rotation about z in degrees; attenuation. The geometry is the head phantom of
# Kak & Slaney, Principles of Computerized Tomographic Imaging (1988), table 3.2, with the contrast of Yu, Ye & Wang,
# Proc. SPIE 5535, 550 (2004).
SHEPP_LOGAN = np.array(
    [
        (0.6900, 0.920, 0.900, 0.00, 0.000, 0.000, 0.0, 1.0),
        (0.6624, 0.874, 0.880, 0.00, 0.000, 0.000, 0.0, -0.8),
        (0.4100, 0.160, 0.210, -0.22, 0.000, -0.250, 108.0, -0.2),
        (0.3100, 0.110, 0.220, 0.22, 0.000, -0.250, 72.0, -0.2),
        (0.2100, 0.250, 0.500, 0.00, 0.350, -0.250, 0.0, 0.2),
        (0.0460, 0.046, 0.046, 0.00, 0.100, -0.250, 0.0, 0.2),
        (0.0460, 0.023, 0.020, -0.08, -0.650, -0.250, 0.0, 0.1),
        (0.0460, 0.023, 0.020, 0.06, -0.650, -0.250, 90.0, 0.1),
        (0.0560, 0.040, 0.100, 0.06, -0.105, 0.625, 90.0, 0.2),
        (0.0560, 0.056, 0.100, 0.00, 0.100, 0.625, 0.0, -0.2),
    ]
)
SHEPP_LOGAN_PATH = 0.55

FOAM_RADIUS = 0.9
FOAM_PATH = 2.0
# Radii of pores and grains, the number of them tried in a unit of height, and the most that are tried at all.
BALL_RADII = (0.04, 0.22)
BALLS_PER_HEIGHT = 1000
MOST_BALLS = 5000


def build(name: str, *, half_width: float, half_height: float, absorption: float, seed: int) -> Ellipsoids:
    """The sample `name` in pixels: `half_width` pixels are 1 in its slices, `half_height` the field's along the axis.

    `absorption` is about the largest line integral. The head is stretched to the field's height; the foam goes on
    above and below the field. Raises ConfigError for an unknown name.
    """
    if name == "shepp-logan":
        unit, path, along = _shepp_logan(), SHEPP_LOGAN_PATH, half_height
    elif name == "foam":
        unit, path, along = _foam(half_height / half_width, seed), FOAM_PATH, half_width
    else:
        raise ConfigError(f"unknown phantom sample {name!r}: choose one of {', '.join(SAMPLES)}")
    return unit.scaled(xy=half_width, z=along, attenuation=absorption / (path * half_width))


def _shepp_logan() -> Ellipsoids:
    axes, centre, angle_deg, attenuation = np.split(SHEPP_LOGAN, [3, 6, 7], axis=1)
    return Ellipsoids.build(
        centre=centre, semi_axes=axes, attenuation=attenuation[:, 0], turn=_about_z(np.deg2rad(angle_deg[:, 0]))
    )


def _about_z(angle_rad: NDArray[np.float64]) -> NDArray[np.float64]:
    turn = np.zeros((len(angle_rad), 3, 3))
    turn[:, 0, 0] = turn[:, 1, 1] = np.cos(angle_rad)
    turn[:, 1, 0] = np.sin(angle_rad)
    turn[:, 0, 1] = -turn[:, 1, 0]
    turn[:, 2, 2] = 1.0
    return turn


def _foam(half_height: float, seed: int) -> Ellipsoids:
    """A cylinder along the axis with pores and, one ball in six, denser grains; no two balls overlap.

    Balls are tried once each, the large ones first (random sequential addition). The cylinder is an ellipsoid so
    long that its bulge is below the rounding of single precision; a longer one has no outline when it is tilted.
    """
    balls = _separate_balls(half_height, seed)
    count = len(balls)
    radius = np.concatenate([[FOAM_RADIUS], balls[:, 3]])
    axes = np.repeat(radius[:, None], 3, axis=1)
    axes[0, 2] = 1e5 * (1.0 + half_height)
    contrast = np.where(np.arange(count) % 6 == 5, 0.6, -1.0)
    return Ellipsoids.build(
        centre=np.concatenate([np.zeros((1, 3)), balls[:, :3]]),
        semi_axes=axes,
        attenuation=np.concatenate([[1.0], contrast]),
        turn=np.broadcast_to(np.eye(3), (count + 1, 3, 3)),
    )


def _separate_balls(half_height: float, seed: int) -> NDArray[np.float64]:
    """Balls inside the cylinder that do not touch: [n, 4], centre and radius."""
    smallest, largest = BALL_RADII
    reach = half_height + largest
    tried = min(MOST_BALLS, round(BALLS_PER_HEIGHT * 2 * reach))
    chance = _uniform(seed, 4 * tried).reshape(4, tried)
    radius = np.sort(smallest * (largest / smallest) ** chance[0])[::-1]
    distance = np.sqrt(chance[1]) * (FOAM_RADIUS - radius)
    angle = 2 * np.pi * chance[2]
    candidates = np.stack(
        [distance * np.cos(angle), distance * np.sin(angle), (2 * chance[3] - 1) * reach, radius], axis=1
    )
    kept = np.empty_like(candidates)
    count = 0
    for ball in candidates:
        apart = np.sum((kept[:count, :3] - ball[:3]) ** 2, axis=1)
        if np.all(apart > (kept[:count, 3] + ball[3]) ** 2):
            kept[count] = ball
            count += 1
    return kept[:count]


def _uniform(seed: int, count: int) -> NDArray[np.float64]:
    """Numbers in [0, 1) from the raw bits, which NumPy keeps the same in every version, unlike its distributions.

    Producer and receiver may run different versions and must agree on the ground truth.
    """
    bits: NDArray[np.uint64] = np.random.PCG64(seed).random_raw(count)
    return np.ldexp((bits >> np.uint64(11)).astype(np.float64), -53)
