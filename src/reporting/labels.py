"""Where the labels of a scatter plot's points go, so that none covers another, a marker or a line."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

Spot = tuple[float, float]
Line = tuple[Spot, Spot]

_ANGLES = (0, 180, 45, -45, 135, -135, 90, -90, 22, -22, 158, -158, 68, -68, 112, -112)
_NOTHING, _MARKERS, _ANYTHING = range(3)  # what a label's line may cross
_NEAR, _AWAY = (2.0, 3.5, 5.0), 8.0  # distances of a label from its marker: beside it, and least with a line


class Box(NamedTuple):
    """A rectangle: left, bottom, right, top."""

    left: float
    bottom: float
    right: float
    top: float

    def overlaps(self, other: "Box") -> bool:
        """Whether the two have a point in common that is not on their edges."""
        across = self.left < other.right and other.left < self.right
        return across and self.bottom < other.top and other.bottom < self.top

    def inside(self, other: "Box") -> bool:
        """Whether it lies in `other` completely."""
        across = other.left <= self.left and self.right <= other.right
        return across and other.bottom <= self.bottom and self.top <= other.top

    def nearest(self, point: Spot) -> Spot:
        """The place in the rectangle that is nearest to a point."""
        return min(max(point[0], self.left), self.right), min(max(point[1], self.bottom), self.top)

    def crossed_by(self, line: Line) -> bool:
        """Whether a line segment passes through it, to within a fortieth of the segment's length."""
        (x0, y0), (x1, y1) = line
        steps = ((x0 + (x1 - x0) * k / 40, y0 + (y1 - y0) * k / 40) for k in range(41))
        return any(self.left < x < self.right and self.bottom < y < self.top for x, y in steps)


class Place(NamedTuple):
    """Where a label goes: the offset of its centre from its point, and whether a line joins them."""

    dx: float
    dy: float
    joined: bool


def place_labels(
    points: Sequence[Spot], sizes: Sequence[tuple[float, float]], area: Box, *, marker: float = 4.0
) -> list[Place]:
    """The place of each point's label. Greedy: from the highest point down, the first free place.

    First the places beside the marker, where they are nearer to it than to another one. Then places further away with
    a line to the marker that crosses nothing, then with one that crosses other markers, then any that covers no label
    and no marker.

    Args:
        points: (x, y) in typographic points, inside `area`.
        sizes: (width, height) of the labels, a margin included.
        area: where labels may lie.
        marker: half the side of a marker.

    A label for which no place is free, as in an area that is too small, lies over others at its point.
    """
    markers = [Box(x - marker, y - marker, x + marker, y + marker) for x, y in points]
    places, boxes, lines = [Place(0, 0, False)] * len(points), [], []

    def fits(index: int, place: Place, box: Box, crossing: int) -> bool:
        if not box.inside(area) or any(map(box.overlaps, [*markers, *boxes])):
            return False
        if crossing == _ANYTHING:
            return True
        if any(map(box.crossed_by, lines)):
            return False
        own = (points[index], box.nearest(points[index]))
        others = [point for point in points if point != points[index]]
        if not place.joined:
            return all(math.dist(point, box.nearest(point)) > 1.25 * math.dist(*own) for point in others)
        if any(each.crossed_by(own) for each in boxes) or any(_cross(own, line) for line in lines):
            return False
        # Markers that overlap this one cannot be avoided.
        apart = [at for at, each in enumerate(markers) if not each.overlaps(markers[index])]
        return crossing == _MARKERS or not any(markers[at].crossed_by(own) for at in apart)

    diagonal = math.dist((area.left, area.bottom), (area.right, area.top))
    for index in sorted(range(len(points)), key=lambda index: (-points[index][1], points[index][0])):
        beside = list(_candidates(sizes[index], marker, _NEAR, joined=False))
        away = list(_candidates(sizes[index], marker, _distances(diagonal), joined=True))
        candidates = [(place, _NOTHING) for place in beside + away]
        candidates += [(place, crossing) for crossing in (_MARKERS, _ANYTHING) for place in away]
        for place, crossing in candidates:
            box = _around(points[index], place, sizes[index])
            if fits(index, place, box, crossing):
                places[index] = place
                boxes.append(box)
                lines += [(points[index], box.nearest(points[index]))] * place.joined
                break
    return places


def _distances(farthest: float) -> list[float]:
    count = max(1, math.ceil(math.log(farthest / _AWAY, 1.2)))
    return [_AWAY * 1.2**k for k in range(count)]


def _candidates(
    size: tuple[float, float], marker: float, distances: Sequence[float], *, joined: bool
) -> Iterator[Place]:
    """Places whose label has its edge or corner, not its centre, at these distances from the marker."""
    for distance in distances:
        for angle in _ANGLES:
            across, up = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            dx = across * (marker + distance) + math.copysign(size[0] / 2, across) * (abs(across) > 0.3)
            dy = up * (marker + distance) + math.copysign(size[1] / 2, up) * (abs(up) > 0.3)
            yield Place(dx, dy, joined)


def _around(point: Spot, place: Place, size: tuple[float, float]) -> Box:
    x, y = point[0] + place.dx, point[1] + place.dy
    return Box(x - size[0] / 2, y - size[1] / 2, x + size[0] / 2, y + size[1] / 2)


def _cross(one: Line, other: Line) -> bool:
    """Whether two segments cross."""

    def side(line: Line, point: Spot) -> float:
        (x0, y0), (x1, y1) = line
        return (x1 - x0) * (point[1] - y0) - (y1 - y0) * (point[0] - x0)

    apart = side(one, other[0]) * side(one, other[1]) < 0
    return apart and side(other, one[0]) * side(other, one[1]) < 0
