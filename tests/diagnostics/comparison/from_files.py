"""The numbers of comparison.json once more, from the files alone: NumPy, SciPy, and Pillow to tell pictures apart.

Nothing here comes from ``diagnostics``. What each number is was read from the docs and docstrings, and it is computed
in another way where there is one: SciPy's exact tests and intervals, draws by index, areas by rectangles, earth movers
by a transport problem. Draws of the bootstrap are those of the product: 10,000 samples of whole pictures, in the order
in which the pictures appear, ``default_rng(0).integers(0, pictures, (10_000, pictures))``.
"""

import hashlib
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors import safe_open
from scipy import optimize, stats

SIDES = ("before", "after")
LEVEL = 0.95
CURVE_SHARES = (0.0, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
Json = dict[str, Any]


# ---------------------------------------------------------------- reading


class Record:
    """One record: its header, its arrays, and what follows from them for each key layer."""

    def __init__(self, path: Path) -> None:
        with safe_open(path, framework="numpy") as file:
            self.header = json.loads(file.metadata()["attention_record"])
            self.arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        scores = self.header["scores"]
        self.margin = None if scores["foil_nats"] is None else scores["answer_nats"] - scores["foil_nats"]
        self.boxes = self.arrays["image/0/cell_boxes_pixels"].astype(float)
        self.grid = tuple(self.header["images"][0]["grid"])
        self.layers = self.header["layers"]

    def named(self, kind: str, name: str | None) -> np.ndarray | None:
        found = self.arrays.get(f"{kind}/{name}")
        return None if found is None else found.astype(float)

    def cells(self, row: int) -> np.ndarray:
        """Shares over cells of the answer query's attention, mean over heads."""
        found = self._on_cells(self.arrays["rows"][row, :, 0].astype(float).mean(0))
        return found / found.sum()

    def looked(self, row: int) -> float:
        """Share of the answer query's row that lies on the first picture, mean over heads."""
        return float(self._on_cells(self.arrays["rows"][row, :, 0].astype(float).mean(0)).sum())

    def on_map(self, kind: str, name: str, row: int) -> float:
        """A mass that is kept by head, of the mean over heads: each head's, times what it has on the picture."""
        total = mass = 0.0
        for head, share in enumerate(self.arrays[f"{kind}/{name}"][self.layers[row]]):
            attention = self.arrays["rows"][row, head, 0].astype(float)
            if kind.endswith("sinks"):
                attention = attention * (1 - self.arrays["sinks"][row])
            looked = self._on_cells(attention).sum()
            total, mass = total + looked, mass + looked * float(share)
        return mass / total

    def _on_cells(self, attention: np.ndarray) -> np.ndarray:
        found = attention[self.arrays["image/0/positions"]]
        if self.header["images"][0]["through_connector"]:
            found = found @ self.arrays["connector/0"].astype(float)
        if "image/0/overview/positions" in self.arrays:
            coarse = self.arrays["image/0/overview/cell_boxes_pixels"]
            for box, place in zip(coarse, self.arrays["image/0/overview/positions"], strict=True):
                shared = np.array([_shared(box, cell) for cell in self.boxes])
                found = found + attention[place] * shared / shared.sum()
        return found

    def hidden(
        self, region: str | None, kind: str = "occlusion", layers: list[int] | None = None
    ) -> Json | None:
        for one in self.header["interventions"]:
            if (one["kind"], one["region"], one["layers"]) == (
                kind,
                region,
                layers,
            ) and self.margin is not None:
                return one
        return None

    def cost(self, region: str | None, kind: str = "occlusion", layers: list[int] | None = None):
        """(cost of an intervention, mean cost of its controls or NaN), nats; None if not measured."""
        one = self.hidden(region, kind, layers)
        if one is None:
            return None
        controls = [self.margin - control for control in one["control_margins_nats"]]
        return self.margin - one["margin_nats"], float(np.mean(controls)) if controls else math.nan

    def shift(self, one: Json) -> float:
        """Unsigned shift of the margin beyond that of the controls."""
        controls = [abs(control - self.margin) for control in one["control_margins_nats"]]
        return abs(one["margin_nats"] - self.margin) - (sum(controls) / len(controls) if controls else 0)


class Pair:
    """A probe, its two records, the coverage of its regions and their enrichment."""

    def __init__(self, entry: Json, folder: Path, before: Path, after: Path) -> None:
        self.entry, self.id, self.group = entry, entry["id"], entry["group"]
        self.sides = [Record(one / f"{self.id}.safetensors") for one in (before, after)]
        answer = entry["answer"]
        self.spellings = answer if isinstance(answer, list) else [answer]
        self.foil = entry["foil"]
        self.regions = entry["regions"]
        phrases = entry["phrases"]
        named = [region for phrase, region in phrases.items() if phrase == self.spellings[0]]
        self.region = next(iter([*named, *phrases.values(), *self.regions]), None)
        self.ends = [entry["relation"][end] for end in ("subject", "object")] if entry["relation"] else []
        self.picture = _mark(folder / entry["images"][0])
        self.coverage = {name: self._coverage(boxes) for name, boxes in self.regions.items()}
        self.trained = any(side.header.get("trained_picture") for side in self.sides)
        self.maps = [[side.cells(row) for row in range(len(side.layers))] for side in self.sides]

    def _coverage(self, boxes: list[list[float]]) -> np.ndarray:
        return np.array(
            [
                _area([_cut(box, cell) for box in boxes]) / ((cell[2] - cell[0]) * (cell[3] - cell[1]))
                for cell in self.sides[1].boxes
            ]
        )

    def margins(self) -> list[float]:
        return [side.margin for side in self.sides]

    def times(self, row: int, weights: np.ndarray | None = None) -> list[float]:
        """Enrichment before and after in one key layer; of the judged region unless weights are given."""
        weights = self.coverage[self.region] if weights is None else weights
        return [float((cells[row] * weights).sum() / weights.mean()) for cells in self.maps]

    def share(self) -> float:
        return float(self.coverage[self.region].mean())

    def nested(self, inner: str, outer: str) -> bool:
        """At least 80 % of the inner one lies within the outer one."""
        cut = [_cut(a, b) for a in self.regions[inner] for b in self.regions[outer]]
        return _area(cut) >= 0.8 * _area(self.regions[inner])

    def one_place(self, first: str, second: str) -> bool:
        both_ends = first in self.ends and second in self.ends
        return first == second or both_ends or self.nested(first, second) or self.nested(second, first)


def _mark(path: Path) -> str:
    picture = Image.open(path).convert("RGB")
    size = f"{picture.width} {picture.height} ".encode()
    return hashlib.sha256(size + picture.tobytes()).hexdigest()


def _cut(first, second) -> list[float]:
    """What two boxes share, as a box (empty where its ends are the wrong way round)."""
    return [
        max(first[0], second[0]),
        max(first[1], second[1]),
        min(first[2], second[2]),
        min(first[3], second[3]),
    ]


def _shared(first, second) -> float:
    return _area([_cut(first, second)])


def _area(boxes) -> float:
    """Of a union of boxes, by inclusion and exclusion."""
    boxes = [box for box in boxes if box[0] < box[2] and box[1] < box[3]]
    total = 0.0
    for count in range(1, len(boxes) + 1):
        for some in itertools.combinations(boxes, count):
            both = some[0]
            for one in some[1:]:
                both = _cut(both, one)
            if both[0] < both[2] and both[1] < both[3]:
                total += (-1) ** (count + 1) * (both[2] - both[0]) * (both[3] - both[1])
    return total


# ---------------------------------------------------------------- statistics


def _clusters(pictures: list[str]) -> list[np.ndarray]:
    return [np.array([one == picture for one in pictures]) for picture in dict.fromkeys(pictures)]


def _draws(count: int) -> np.ndarray:
    return np.random.default_rng(seed=0).integers(0, count, (10_000, count))


def mean_interval(values, pictures, level=LEVEL) -> tuple[float, float, float]:
    values, members = np.asarray(values, float), _clusters(pictures)
    sums, sizes = (np.array([one[m].sum() for m in members]) for one in (values, np.ones(len(values))))
    drawn = _draws(len(members))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(values.sum() / len(values)), float(low), float(high)


def share_interval(top, bottom, pictures, level=LEVEL) -> tuple[float, float, float] | None:
    """Ratio of means; None unless the lower is significantly above 0."""
    top, bottom, members = np.asarray(top, float), np.asarray(bottom, float), _clusters(pictures)
    drawn = _draws(len(members))
    tops, bottoms = (np.array([one[m].sum() for m in members])[drawn].sum(1) for one in (top, bottom))
    if bottom.sum() <= 0 or np.quantile(bottoms, (1 - level) / 2) <= 0:
        return None
    ratios = tops[bottoms > 0] / bottoms[bottoms > 0]
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    return float(top.sum() / bottom.sum()), float(low), float(high)


def exact_share(hits: int, of: int) -> tuple[float, float]:
    found = stats.binomtest(hits, of).proportion_ci(LEVEL, method="exact")
    return float(found.low), float(found.high)


def coin_p(gained: int, lost: int) -> float:
    return float(stats.binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0


def relative(before, after) -> np.ndarray:
    """2 (after − before) / (after + before); below 1e-4 it is rounding."""
    before, after = np.asarray(before, float), np.asarray(after, float)
    with np.errstate(invalid="ignore"):
        found = np.where(before + after > 0, (after - before) / ((after + before) / 2), 0.0)
    found[np.abs(found) < 1e-4] = 0.0
    return found


def ranks_p(changes, pictures) -> float:
    """Wilcoxon's signed ranks, exact, of whole pictures; those without a change are left out."""
    sums = np.array([np.asarray(changes)[m].sum() for m in _clusters(pictures)])
    sums = sums[sums != 0]
    if len(set(np.abs(sums))) == len(sums):
        return float(stats.wilcoxon(sums, method="exact").pvalue) if len(sums) else 1.0
    # Twice the ranks are whole; the coefficients of Π (1 + x^rank) count the ways to each sum of rising ones.
    ranks = (2 * stats.rankdata(np.abs(sums))).astype(int)
    ways = [1]
    for rank in ranks:
        longer = [*ways, *[0] * rank]
        for at, count in enumerate(ways):
            longer[at + rank] += count
        ways = longer
    rising = int(ranks[sums > 0].sum())
    larger = max(rising, int(ranks.sum()) - rising)
    return min(1.0, 2 * sum(ways[larger:]) / 2 ** len(sums))


def one_way(changes, pictures) -> int:
    """1 or −1 where the mean and the signed ranks of whole pictures both say so, else 0.

    Rising ranks without falling ones are, but for a factor, the sum of signs of the Walsh averages (Tukey 1949).
    """
    changes = np.asarray(changes, float)
    sums = np.array([changes[m].sum() for m in _clusters(pictures)])
    sums = sums[sums != 0]
    walsh = sum(np.sign(first + second) for first, second in itertools.combinations_with_replacement(sums, 2))
    return int(np.sign(walsh)) if walsh * changes.mean() > 0 else 0


def adjusted(p_values: dict[Any, float]) -> dict[Any, float]:
    """Benjamini and Hochberg over all of them; doubled, as there are two families."""
    if not p_values:
        return {}
    found = stats.false_discovery_control(list(p_values.values()))
    return {name: min(2 * float(p), 1.0) for name, p in zip(p_values, found, strict=True)}


def d_z(changes, pictures) -> float | None:
    means = np.array([np.asarray(changes, float)[m].mean() for m in _clusters(pictures)])
    if not means.any():
        return 0.0
    if len(means) < 2 or means.std(ddof=1) <= 1e-9 * np.abs(means).max():
        return None
    degrees = len(means) - 1
    return float(means.mean() / means.std(ddof=1) * (1 - 3 / (4 * degrees - 1)))


def needed(effect: float | None) -> int | None:
    if effect is None or abs(effect) < 0.01:
        return None
    alpha, power = stats.norm.ppf(0.975), stats.norm.ppf(0.95)
    return math.ceil(((alpha + power) / effect) ** 2 + alpha**2 / 2)


def change(before, after, pictures) -> Json:
    before, after = np.asarray(before, float), np.asarray(after, float)
    mean, low, high = mean_interval(after - before, pictures)
    return {
        "before": float(before.mean()),
        "after": float(after.mean()),
        "difference": mean,
        "ci95": [low, high],
    }


def both(values) -> Json:
    """Means before and after of pairs of numbers."""
    return {side: float(np.mean([one[at] for one in values])) for at, side in enumerate(SIDES)}


def _pictures(pairs: list[Pair]) -> list[str]:
    return [pair.picture for pair in pairs]


# ---------------------------------------------------------------- answers


def _words(text: str) -> list[str]:
    """Words without punctuation and articles; a Chinese character is a word (these files need no more)."""
    apart = "".join(f" {letter} " if letter > "\u2e7f" else letter for letter in text.casefold())
    kept = "".join(letter if letter.isalnum() else " " for letter in apart)
    return [word for word in kept.split() if word not in ("a", "an", "the")]


def _says(generated: str, spellings: list[str], foil: str | None) -> bool:
    answer = generated.split("</think>")[-1].split("<think>")[0]  # no spelling of these files holds a thought
    said = f" {' '.join(_words(answer))} "
    return any(f" {' '.join(_words(one))} " in said for one in spellings) and (
        foil is None or f" {' '.join(_words(foil))} " not in said
    )


def answers(pairs: list[Pair], asked: Json) -> Json | None:
    scored = [pair for pair in pairs if pair.foil is not None]
    if not scored:
        return None
    right = np.array([[margin > 0 for margin in pair.margins()] for pair in scored], float).T
    shares = [np.array([side[m].mean() for m in _clusters(_pictures(scored))]) for side in right]
    gained, lost = int((shares[1] > shares[0]).sum()), int((shares[1] < shares[0]).sum())
    p, pictures = coin_p(gained, lost), len(shares[0])
    if pictures < len(scored):
        difference = list(mean_interval(right[1] - right[0], _pictures(scored))[1:])
    elif gained + lost:
        low, high = exact_share(gained, gained + lost)
        difference = [(2 * one - 1) * (gained + lost) / pictures for one in (low, high)]
    else:
        high = exact_share(0, pictures)[1]
        difference = [-high, high]
    intervals = [exact_share(math.floor(one.sum() + 1e-9), pictures) for one in shares]
    before, after = (float(side.mean()) for side in right)
    of_pictures = [float(side.mean()) for side in shares]
    worse = min(after, of_pictures[1])
    enough = worse >= asked["right"] - 1e-9
    generated = [[side.header["scores"]["generated"] for side in pair.sides] for pair in scored]
    said = None
    apart, fell = False, None
    most = asked["disagreement"] + 1e-9
    silent = False
    if any(text for texts in generated for text in texts):
        each = [
            np.array(
                [
                    _says(texts[at], pair.spellings, pair.foil)
                    for pair, texts in zip(scored, generated, strict=True)
                ],
                float,
            )
            for at in (0, 1)
        ]
        said = [float(side.mean()) for side in each]
        of_each = [np.mean([side[m].mean() for m in _clusters(_pictures(scored))]) for side in each]
        for (was, now), (old, new) in ((said, (before, after)), (of_each, of_pictures)):
            rise, spoken = new - old, now - was
            apart = apart or abs(now - new) > most or (rise - spoken > most and 2 * spoken < rise)
            if was - now > max(most, 0 if fell is None else fell["before"] - fell["after"]):
                fell = {"before": float(was), "after": float(now), "by_picture": old is not before}
        spoken = [np.array([side[m].mean() for m in _clusters(_pictures(scored))]) for side in each]
        up, down = (int((sign * (spoken[1] - spoken[0]) > 0).sum()) for sign in (1, -1))
        silent = fell is not None and coin_p(up, down) < 1 - LEVEL and down > up
    rises = {np.sign(after - before), np.sign(of_pictures[1] - of_pictures[0])}
    more = p < 1 - LEVEL and gained > lost and rises == {1}
    fewer = rises == {-1} and (difference[1] < 0 or (p < 1 - LEVEL and lost > gained))
    if silent and not more:
        fewer = True
    return {
        "json": {
            "probes": len(scored),
            "images": pictures,
            "before": before,
            "after": after,
            "pictures_right": dict(zip(SIDES, of_pictures, strict=True)),
            "difference": after - before,
            "ci95": difference,
            "before_ci95": list(intervals[0]),
            "after_ci95": list(intervals[1]),
            "gained": gained,
            "lost": lost,
            "p_mcnemar": p,
        },
        "said": None if said is None else dict(zip(SIDES, said, strict=True)),
        "apart": apart,
        "fell silent": fell,
        "change": "more" if more else "fewer" if fewer else "same",
        "enough": enough,
        "probes": len(scored),
        "pictures": pictures,
        "leg": leg(
            more and enough and not apart,
            len(scored),
            (worse, min(intervals[1][0], worse), max(intervals[1][1], worse)),
            asked["right"],
        ),
    }


def leg(holds: bool | None, probes: int, interval, threshold: float) -> Json:
    return {
        "holds": holds,
        "probes": probes,
        "value": None if interval is None else interval[0],
        "ci95": None if interval is None else list(interval[1:]),
        "threshold": threshold,
    }


def picture(pairs: list[Pair], asked: Json) -> Json:
    """Judged with a picture of another answer, where enough probes have one, else with a blank one."""
    most, judged = 0, None
    for kind in ("none", "blank", "other"):
        members = [
            (pair, one["margin_nats"])
            for pair in pairs
            for one in pair.sides[1].header["picture_controls"]
            if one["kind"] == kind
        ]
        most = max(most, len(members))
        pictures = _pictures([pair for pair, _ in members])
        if kind != "none" and len(set(pictures)) >= asked["probes"]:
            judged = members, pictures
    if judged is None:
        return leg(None, most, None, asked["picture"])
    members, pictures = judged
    true = np.array([pair.sides[1].margin for pair, _ in members])
    share = share_interval(true - np.array([margin for _, margin in members]), true, pictures)
    if share is None:
        return leg(None, len(members), None, asked["picture"])
    return leg(share[0] >= asked["picture"] and share[1] > 0, len(members), share, asked["picture"])


# ---------------------------------------------------------------- mediation


def mediation(pairs: list[Pair], asked: Json) -> tuple[Json, list[Json]]:
    patched = [pair for pair in pairs if pair.sides[1].header["patches"]]
    pictures = _pictures(patched)
    if len(set(pictures)) < asked["probes"]:
        return leg(None, len(patched), None, asked["mediated"]), []
    wrong = 0
    for pair in patched:
        before, after = pair.margins()
        source = pair.sides[1].header["patched_from"]["margin_nats"]
        wrong += abs(source - before) > 0.05 + 0.05 * abs(after - before)
    if wrong > 0.05 * len(patched):
        return leg(None, len(patched), None, asked["mediated"]), []
    rise = [pair.margins()[1] - pair.margins()[0] for pair in patched]
    kinds = dict.fromkeys(
        (one["part"], tuple(one["layers"])) for pair in patched for one in pair.sides[1].header["patches"]
    )
    parts, claimed = [], []
    for part, layers in kinds:
        gone = [carried(pair, part, layers) for pair in patched]
        if None in gone:
            continue
        share = share_interval(gone, rise, pictures)
        if share is not None:
            parts.append({"part": part, "layers": list(layers), "share": share[0], "ci95": list(share[1:])})
            claimed += [(share, gone)] if part in ("key layers", "connector") else []
    if not claimed:
        return leg(None, len(patched), None, asked["mediated"]), parts
    best, gone = max(claimed, key=lambda one: one[0][0])
    of_two = share_interval(gone, rise, pictures, 1 - (1 - LEVEL) / 2)  # either part may be claimed
    holds = best[0] >= asked["mediated"] and of_two is not None and of_two[1] > 0
    return leg(holds, len(patched), of_two or best, asked["mediated"]), parts


def carried(pair: Pair, part: str, layers: tuple[int, ...]) -> float | None:
    """Margin after that goes with a part's attention, nats."""
    for one in pair.sides[1].header["patches"]:
        if (one["part"], tuple(one["layers"])) == (part, layers):
            return pair.sides[1].margin - one["margin_nats"]
    return None


# ---------------------------------------------------------------- attention


def left_to_judge(pairs: list[Pair]) -> tuple[list[Pair], list[int]]:
    """The pairs on pictures that no loss on attention saw, and the rows of the key layers that it did not and that see
    some region; neither where the resampler's attention was trained on, which is in every layer's map."""
    headers = [side.header for pair in pairs for side in pair.sides]
    told = {layer for header in headers for layer in header["supervised_layers"]}
    if any(header["supervised_connector"] for header in headers):
        return [], []
    rows = [row for row, layer in enumerate(pairs[0].sides[1].layers) if layer not in told]
    left = [p for p in pairs if not any(s.header["supervised_picture"] for s in p.sides)]
    halves = [
        row for row in rows if any(bool(p.maps[0][row].any()) != bool(p.maps[1][row].any()) for p in left)
    ]
    return left, [row for row in rows if row not in halves and sees(left, row)]


def was_told(pairs: list[Pair], layer: int) -> bool:
    """Did a loss on attention see this layer, or the resampler that it looks through?"""
    headers = [side.header for pair in pairs for side in pair.sides]
    return any(layer in header["supervised_layers"] or header["supervised_connector"] for header in headers)


def sees(pairs: list[Pair], row: int) -> bool:
    """Is any attention on a region in this key layer, before or after?"""
    return any(times != 0 for pair in pairs for times in pair.times(row))


class Reading:
    """A group's attention on the judged region, cross-fitted over the given rows of key layers."""

    def __init__(self, pairs: list[Pair], open_rows: list[int], least: int) -> None:
        self.pairs, self.open, self.least = pairs, open_rows, least
        self.pictures = _pictures(pairs)
        self.numbers = pairs[0].sides[1].layers
        order = sorted(set(self.pictures))
        self.late = [order.index(one) % 2 == 1 for one in self.pictures]
        chosen = [
            self._chosen([p for p, late in zip(pairs, self.late, strict=True) if late == half])
            for half in (False, True)
        ]
        self.rows = [chosen[0] if late else chosen[1] for late in self.late]
        self.layers = [self.numbers[row] for row in chosen]
        sizes = [self._carried(pairs, layer) for layer in self.layers]
        self.cited = self.layers[1] if sizes[1] > sizes[0] else self.layers[0]
        times = np.array([pair.times(row) for pair, row in zip(pairs, self.rows, strict=True)]).T
        self.before, self.after = times
        self.changes = relative(self.before, self.after)
        self.relative = mean_interval(self.changes, self.pictures)
        self.effect = d_z(self.changes, self.pictures)
        moved = self.changes != 0  # 0 to 0 is no change
        self.median = float(
            np.median(np.divide(self.after, self.before, out=np.ones(len(moved)), where=moved))
        )
        self.leads = self._leads()

    @staticmethod
    def _carried(pairs: list[Pair], layer: int) -> float:
        found = [one for pair in pairs if (one := carried(pair, "layer", (layer,))) is not None]
        return float(np.mean(found)) if found else 0.0

    def _chosen(self, half: list[Pair]) -> int:
        """Among the layers whose attention rose significantly, the one that carries most, else the most significant; if
        none rose, the one with the highest lower bound."""
        if not half:
            return self.open[0]
        pictures = _pictures(half)
        changes = {row: relative(*np.array([pair.times(row) for pair in half]).T) for row in self.open}
        chance = {row: ranks_p(one, pictures) * len(self.open) for row, one in changes.items()}
        risen = [row for row in self.open if chance[row] < 1 - LEVEL and one_way(changes[row], pictures) > 0]
        if not risen:
            seeing = [row for row in self.open if sees(half, row)]
            return max(seeing or self.open, key=lambda row: mean_interval(changes[row], pictures)[1])
        sizes = {row: self._carried(half, self.numbers[row]) for row in risen}
        if max(sizes.values()) > 0:
            return max(risen, key=lambda row: sizes[row])
        return min(risen, key=lambda row: chance[row])

    def _leads(self) -> list[Json]:
        places: dict[str, dict[int, list[float]]] = {}
        for at, (pair, row) in enumerate(zip(self.pairs, self.rows, strict=True)):
            judged = pair.coverage[pair.region]
            for name, weights in pair.coverage.items():
                ends = name in pair.ends and pair.region in pair.ends
                if name == pair.region or ends or pair.nested(name, pair.region):
                    continue
                left = np.maximum(weights - judged, 0)
                if left.sum() > 0:
                    places.setdefault(repr(name), {})[at] = pair.times(row, left)
            salient = [side.named("salient_mass", pair.region) for side in pair.sides]
            if salient[0] is not None and salient[1] is not None:
                places.setdefault("equally salient places", {})[at] = [
                    side.on_map("salient_mass", pair.region, row) / pair.share() for side in pair.sides
                ]
        often, rare = {}, {}
        for name, one in places.items():
            if len({self.pictures[at] for at in one}) >= self.least:
                often[name] = one
            elif name != "equally salient places":
                for at, levels in one.items():
                    rare.setdefault(at, []).append(levels)
        if len({self.pictures[at] for at in rare}) >= self.least:
            often["the other regions"] = {at: list(np.mean(levels, axis=0)) for at, levels in rare.items()}
        found = []
        for name, one in often.items():
            index = np.array(list(one))
            other = np.array(list(one.values()))
            lead = relative(self.before[index] + other[:, 1], self.after[index] + other[:, 0])
            mean, low, high = mean_interval(lead, [self.pictures[at] for at in index])
            found.append({"over": name, "probes": len(index), "mean": mean, "ci95": [low, high]})
        return found


def attention(reading: Reading | None, chance: float | None, asked: Json) -> tuple[Json, str | None]:
    if reading is None:
        return leg(None, 0, None, asked["move"]), None
    probes = len(reading.pairs)
    if len(set(reading.pictures)) < asked["probes"]:
        return leg(None, probes, None, asked["move"]), None
    way = one_way(reading.changes, reading.pictures) if chance < 1 - LEVEL else 0
    moved = None
    if way < 0 and reading.relative[0] <= -asked["move"]:
        moved = "away"
    elif way > 0 and reading.relative[0] >= asked["move"]:
        if not reading.leads:
            return leg(None, probes, None, asked["move"]), "elsewhere"
        moved = "elsewhere"
        if all(one["mean"] >= asked["move"] and one["ci95"][0] > 0 for one in reading.leads):
            moved = "to"
    leads = [(one["mean"], *one["ci95"]) for one in reading.leads]
    failing = [one for one in leads if one[0] < asked["move"] or one[1] <= 0]
    if moved == "elsewhere":
        shown = min(failing, key=lambda one: one[1])
    else:
        shown = min([reading.relative, *leads]) if moved == "to" else reading.relative
    return leg(moved == "to", probes, shown, asked["move"]), moved


def times(kind: str, pairs: list[Pair], rows: list[int]) -> list[list[float]]:
    """A mass of the records over the region's share of the area, before and after, each probe in its own layer."""
    return [
        [side.on_map(kind, pair.region, row) / pair.share() for side in pair.sides]
        for pair, row in zip(pairs, rows, strict=True)
    ]


def beside(pairs: list[Pair], rows: list[int]) -> Json:
    """Random places, where every probe has them, and the region without sinks, in the probes that have some."""
    having = {
        kind: [
            at
            for at, pair in enumerate(pairs)
            if all(side.named(kind, pair.region) is not None for side in pair.sides)
        ]
        for kind in ("random_mass", "region_mass_without_sinks")
    }
    free = [pairs[at] for at in having["region_mass_without_sinks"]]
    left = times("region_mass_without_sinks", free, [rows[at] for at in having["region_mass_without_sinks"]])
    whole = len(having["random_mass"]) == len(pairs)
    return {
        "random": both(times("random_mass", pairs, rows)) if whole else None,
        "without_sinks": change(*np.array(left).T, _pictures(free)) if free else None,
    }


def enrichment(reading: Reading, chance: float) -> Json:
    names = {pair.region for pair in reading.pairs}
    return {
        "layer": reading.cited,
        "layers": sorted(set(reading.layers)),
        "region": names.pop() if len(names) == 1 else "each probe's own",
        **change(reading.before, reading.after, reading.pictures),
        "p_adjusted": chance,
        "relative_change": {"mean": reading.relative[0], "ci95": list(reading.relative[1:])},
        "direction": one_way(reading.changes, reading.pictures),
        "median_factor": reading.median,
        "leads": reading.leads,
        "effect_size": reading.effect,
        **beside(reading.pairs, reading.rows),
    }


def key_layer(pairs: list[Pair], row: int, chance: float) -> Json:
    """One key layer of the groups that have a region."""
    pictures, layer = _pictures(pairs), pairs[0].sides[1].layers[row]
    before, after = np.array([pair.times(row) for pair in pairs]).T
    changes = relative(before, after)
    mean, low, high = mean_interval(changes, pictures)
    names = {pair.region for pair in pairs}
    return {
        "layer": layer,
        "region": names.pop() if len(names) == 1 else "each probe's own",
        **change(before, after, pictures),
        "p_adjusted": chance,
        "relative_change": {"mean": mean, "ci95": [low, high]},
        "direction": one_way(changes, pictures),
        "effect_size": d_z(changes, pictures),
        "trained_on": was_told(pairs, layer),
        **beside(pairs, [row] * len(pairs)),
    }


def tested(pairs: list[Pair]) -> list[Pair]:
    """Whose heads are tested: probes with random places beside the region, where any has them."""
    return [
        pair
        for pair in pairs
        if all(side.named("random_mass", pair.region) is not None for side in pair.sides)
    ] or pairs


def head_leads(pairs: list[Pair]) -> tuple[list[int], np.ndarray, np.ndarray, np.ndarray | None]:
    """Layers that attend; masses [side, probes, layers, heads]; the leads over random places (plain changes where a
    probe lacks them); and the masses of those."""
    attending = [
        at for at, one in enumerate(pairs[0].sides[0].arrays["visual_share"]) if np.isfinite(one).all()
    ]
    kinds = [
        [[pair.sides[at].named(kind, pair.region) for pair in pairs] for at in (0, 1)]
        for kind in ("region_mass", "random_mass")
    ]
    own = np.array(kinds[0])[:, :, attending]
    if any(one is None for side in kinds[1] for one in side):
        return attending, own, relative(own[0], own[1]), None
    random = np.array(kinds[1])[:, :, attending]
    return attending, own, relative(own[0] + random[1], own[1] + random[0]), random


def heads(pairs: list[Pair], chances: dict[tuple[int, int], float], asked: Json) -> Json:
    attending, own, leads, random = head_leads(pairs)
    listed = []
    for (row, head), p in chances.items():
        lead = leads[:, row, head]
        if p < 0.05 and one_way(lead, _pictures(pairs)) and abs(lead.mean()) >= asked["move"]:
            before, after = own[:, :, row, head].mean(1)
            listed.append(
                {
                    "layer": attending[row],
                    "head": head,
                    "before": float(before),
                    "after": float(after),
                    "difference": float(after - before),
                    "relative_change": float(lead.mean()),
                    "lead": None if random is None else float(lead.mean()),
                    "random": None if random is None else both(random[:, :, row, head].T),
                    "p_adjusted": p,
                    "trained_on": was_told(pairs, attending[row]),
                    "effect_size": d_z(lead, _pictures(pairs)),
                }
            )
    listed.sort(key=lambda one: one["p_adjusted"])
    return {
        "tested": len(chances),
        "count": len(listed),
        "over_random_places": random is not None,
        "significant": listed[:40],
    }


# ---------------------------------------------------------------- cause


def costs(pairs: list[Pair], kind: str) -> Json | None:
    found = [
        (pair, [side.cost(pair.region, kind) for side in pair.sides])
        for pair in pairs
        if all(side.cost(pair.region, kind) is not None for side in pair.sides)
    ]
    if not found:
        return None
    values = np.array([one for _, one in found])  # probes, sides, (region, control)
    pictures = _pictures([pair for pair, _ in found])
    control = values[:, :, 1].mean(0)
    over = None
    if np.isfinite(values[:, 1, 1]).all():
        mean, low, high = mean_interval(values[:, 1, 0] - values[:, 1, 1], pictures)
        over = {"mean": mean, "ci95": [low, high]}
    return {
        **change(values[:, 0, 0], values[:, 1, 0], pictures),
        "control": {side: _or_null(control[at]) for at, side in enumerate(SIDES)},
        "over_control": over,
    }


def _or_null(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def cause(pairs: list[Pair], asked: Json) -> Json:
    hidden = [pair for pair in pairs if all(side.cost(pair.region) is not None for side in pair.sides)]
    found = costs(pairs, "occlusion")
    if found is None or found["over_control"] is None:
        return leg(None, 0, None, asked["cause"])
    pictures = _pictures(hidden)
    if len(set(pictures)) < asked["probes"]:
        return leg(None, len(hidden), None, asked["cause"])
    cost = np.array([[side.cost(pair.region)[0] for side in pair.sides] for pair in hidden]).T
    margin = np.array([pair.margins() for pair in hidden]).T
    rise = share_interval(cost[1] - cost[0], margin[1] - margin[0], pictures)
    size = share_interval(cost[1], margin[1], pictures)
    if rise is None or size is None:
        return leg(False, len(hidden), None, asked["cause"])
    holds = (
        rise[0] >= asked["cause"]
        and rise[1] > 0
        and size[0] >= asked["cost"]
        and found["over_control"]["ci95"][0] > 0
        and not rivals(hidden, asked)
    )
    return leg(holds, len(hidden), rise, asked["cause"])


def rivals(pairs: list[Pair], asked: Json) -> list[str]:
    """Other regions that shift the margin by as large a part of it as the region's cost must be; names that few
    pictures have are one, with each probe's largest shift."""
    shifts: dict[str, dict[str, float]] = {}
    for pair in pairs:
        after = pair.sides[1]
        for name in pair.regions:
            one = after.hidden(name)
            if one is not None and not pair.one_place(name, pair.region):
                shifts.setdefault(name, {})[pair.id] = after.shift(one)
    of = {pair.id: pair for pair in pairs}
    often = {n: one for n, one in shifts.items() if len({of[at].picture for at in one}) >= asked["probes"]}
    others = [one for name, one in shifts.items() if name not in often]
    rare = {at: max(one[at] for one in others if at in one) for at in {at for one in others for at in one}}
    if len({of[at].picture for at in rare}) >= asked["probes"]:
        often[""] = rare
    found = []
    for name, one in often.items():
        size = np.mean([of[at].sides[1].margin for at in one])
        if size > 0 and np.mean(list(one.values())) >= asked["cost"] * size:
            found.append(name)
    return found


def decider(pair: Pair, at: int) -> tuple[bool, str | None]:
    """Were several regions hidden, and which one decides: beyond controls, 10 % of the margin and .1 nats, and a fifth
    above the next; of nested ones that shift as much, the smallest."""
    side = pair.sides[at]
    shifts = {name: side.shift(one) for name in _hidden_order(side) if (one := side.hidden(name)) is not None}
    if len(shifts) < 2:
        return False, None
    top = max(shifts, key=lambda name: shifts[name])
    if shifts[top] < max(0.1, 0.1 * abs(side.margin)):
        return True, None
    inner = [top] + [n for n in shifts if shifts[n] >= 0.9 * shifts[top] and pair.nested(n, top)]
    chosen = min(inner, key=lambda name: _area(pair.regions[name]))
    next_best = max([0.0] + [shifts[n] for n in shifts if not pair.one_place(n, chosen)])
    return True, chosen if shifts[chosen] >= 1.2 * next_best else None


def _hidden_order(side: Record) -> list[str]:
    return [
        one["region"]
        for one in side.header["interventions"]
        if one["kind"] == "occlusion" and not one["layers"]
    ]


def decides(pairs: list[Pair], at: int) -> Json | None:
    each = [(decider(pair, at), decider(pair, 1 - at)[0]) for pair in pairs]
    other = any(several for _, several in each) and any(several for (several, _), _ in each)
    found = [name for (several, name), there in each if several and (there or not other)]
    if not found:
        return None
    return {name: found.count(name) / len(found) for name in {one for one in found if one is not None}}


def windows(pairs: list[Pair]) -> list[Json]:
    found: dict[tuple[int, ...], list[list[tuple[float, float]]]] = {}
    for pair in pairs:
        for one in pair.sides[1].header["interventions"]:
            if one["layers"] is not None and one["region"] == pair.region:
                costs_ = [side.cost(pair.region, one["kind"], one["layers"]) for side in pair.sides]
                if None not in costs_:
                    found.setdefault(tuple(one["layers"]), []).append(costs_)
    return [
        {
            "layers": list(layers),
            **both([[side[0] for side in one] for one in values]),
            "control": both([[side[1] for side in one] for one in values]),
        }
        for layers, values in found.items()
    ]


# ---------------------------------------------------------------- guards and verdicts


def guards(name: str, groups: dict[str, list[Pair]], asked: Json) -> Json:
    own = [pair for pair in groups[name] if pair.foil]
    foils = [" ".join(_words(pair.foil)) for pair in own]
    answers_here = {" ".join(_words(one)): one for pair in own for one in pair.spellings}
    members = [
        pair
        for group in groups.values()
        for pair in group
        if pair.foil is not None
        and {*foils} & {" ".join(_words(one)) for one in pair.spellings}
        and (" ".join(_words(pair.foil)) in answers_here or pair.sides[1].header["scores"]["generated"])
    ]
    if len({pair.picture for pair in members}) < asked["probes"]:
        return leg(None, len(members), None, asked["right"])
    having = {(" ".join(_words(one)), pair.picture) for pair in members for one in pair.spellings}
    lacking = {
        foil
        for foil in foils
        if sum(one == foil for one, _ in having) < (5 if foils.count(foil) >= len(foils) / 5 else 1)
    }
    if any(foils.count(foil) >= len(foils) / 5 for foil in lacking) or (
        sum(foil in lacking for foil in foils) > 0.2 * len(foils) + 1e-9
    ):
        return leg(None, len(members), None, asked["right"])

    def stays(pair: Pair, at: int) -> bool:
        spelled = {" ".join(_words(one)) for one in pair.spellings}
        theirs = [one for words, one in answers_here.items() if words not in spelled]
        text = pair.sides[at].header["scores"]["generated"]
        biased = all(_says(text, theirs, one) for one in pair.spellings) if theirs else False
        return pair.sides[at].margin > 0 and not biased

    sets = [members]
    for foil in dict.fromkeys(foils):
        some = [pair for pair in members if any(" ".join(_words(one)) == foil for one in pair.spellings)]
        sets += [some] if len(some) >= 5 else []
    right = [_two_counts(some, stays) for some in sets]
    shares = [[tuple(float(side.mean()) for side in count) for count in one] for one in right]
    lowest = [min(after for _, after in one) for one in shares]
    worse = [
        one
        for one, both in enumerate(shares)
        if any(after < asked["right"] - 1e-9 and after < before for before, after in both)
    ]
    lost = any(after < 0.95 * before - 1e-9 for before, after in shares[0])
    at = 0 if lost and not worse else min(worse or range(len(sets)), key=lambda one: lowest[one])
    value, enough, fell = lowest[at], min(lowest) >= asked["right"] - 1e-9, bool(worse) or lost
    of_pictures = right[at][1][1]
    low, high = exact_share(math.floor(of_pictures.sum() + 1e-9), len(of_pictures))
    if name != "neighbour" and "neighbour" in groups:
        near = answers(groups["neighbour"], asked)
        fell = fell or bool(near is not None and _is_lost(near, 0.95, asked))
    holds = False if fell else True if enough else None
    guarding = {"neighbour", *(pair.group for pair in members)}
    if not fell and any(pair.trained for one in guarding for pair in groups.get(one, [])):
        return leg(None, len(members), None, asked["right"])
    return leg(holds, len(members), (value, min(low, value), max(high, value)), asked["right"])


def _two_counts(some: list[Pair], stays) -> list[list[np.ndarray]]:
    """Of guards and of pictures, each before and after: whether each is right, or which share of a picture's is."""
    kept = [np.array([stays(pair, at) for pair in some], float) for at in (0, 1)]
    return [kept, [np.array([side[m].mean() for m in _clusters(_pictures(some))]) for side in kept]]


def _is_lost(found: Json, share: float, asked: Json) -> bool:
    counts = (found["json"], found["json"]["pictures_right"])
    return bool(found["fell silent"]) or any(one["after"] < share * one["before"] - 1e-9 for one in counts)


def verdict(name: str, found: Json | None, legs: Json, moved: str | None, asked: Json, trained: bool) -> str:
    if found is None:
        return "answers not measured"
    if min(found["probes"], found["pictures"]) < asked["probes"]:
        return "too few probes"
    kept = {"retention": (0.97, "forgot"), "neighbour": (0.95, "broke a neighbour")}
    if name in kept:
        share, lost = kept[name]
        if not found["json"]["before"] and not found["fell silent"]:
            return "too few probes"
        return lost if _is_lost(found, share, asked) else "not held out" if trained else "kept"
    if found["change"] == "fewer":
        return "answers got worse"
    if trained:
        return "not held out"
    if found["change"] == "same":
        return "it did not move" if moved is None else "attention moved, answers did not"
    holds = {one: legs[one]["holds"] for one in legs}
    if found["apart"]:
        return "margin and answer disagree"
    if not found["enough"]:
        return "answers changed, too few right"
    if holds["guards"] is False:
        return "answers changed, a guard broke"
    if holds["picture"] is False:
        return "it answers from the words"
    if moved == "away":
        return "answers changed, attention left the region"
    if holds["attention"] is None:
        return "answers changed, attention not measured"
    if moved != "to":
        return "answers changed, attention did not"
    if holds["cause"] is None:
        return "answers and attention changed, cause not measured"
    if not holds["cause"]:
        return "answers and attention changed, cause does not agree"
    if holds["picture"] is None:
        return "answers changed, picture not measured"
    if holds["mediation"] is False:
        return "corrected, not by looking"
    if holds["mediation"] is None:
        return "corrected, mediation not measured"
    return "corrected" if holds["guards"] else "corrected, unguarded"


# ---------------------------------------------------------------- other measures of the same maps


def localisation(pairs: list[Pair]) -> Json | None:
    found: Json = {}
    for row, layer in enumerate(pairs[0].sides[1].layers):
        values: dict[str, list[list[float]]] = {}
        for pair in pairs:
            if pair.region is None or pair.coverage[pair.region].min() > 0:
                continue
            weights, grid = pair.coverage[pair.region], pair.sides[1].grid
            for name, measure in MEASURES.items():
                values.setdefault(name, []).append(
                    [measure(cells[row], weights, grid) for cells in pair.maps]
                )
        if values:
            found[str(layer)] = {name: both(one) for name, one in values.items()}
            found[str(layer)]["trained_on"] = was_told(pairs, layer)
    return found or None


def _pointing(cells, weights, _grid) -> float:
    return float(weights[int(np.argmax(cells))] > 0)


def _iou(cells, weights, grid) -> float:
    rows, columns = grid
    smooth = np.zeros(grid)
    table = cells.reshape(grid)
    for row, column in itertools.product(range(rows), range(columns)):
        smooth[row, column] = table[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2].mean()
    bright = {tuple(one) for one in np.argwhere(smooth > smooth.mean() * (1 + 1e-9))}
    wanted = {tuple(one) for one in np.argwhere(weights.reshape(grid) >= weights.max() / 2)}
    boxes = []
    for some in (bright, wanted):
        ys, xs = [one[0] for one in some], [one[1] for one in some]
        boxes.append(set(itertools.product(range(min(ys), max(ys) + 1), range(min(xs), max(xs) + 1))))
    return len(boxes[0] & boxes[1]) / len(boxes[0] | boxes[1])


def _auc(cells, weights, _grid) -> float:
    wins = (cells[:, None] > cells) + 0.5 * (cells[:, None] == cells)
    return float(weights @ wins @ (1 - weights) / (weights.sum() * (1 - weights).sum()))


def _nss(cells, weights, _grid) -> float:
    return float((weights * (cells - cells.mean())).sum() / cells.std() / weights.sum())


MEASURES = {
    "pointing_game": _pointing,
    "iou": _iou,
    "auc": _auc,
    "nss": _nss,
    "entropy": lambda cells, *_: float(stats.entropy(cells) / math.log(len(cells))),
}


def further_maps(pairs: list[Pair]) -> Json | None:
    found: Json = {}
    for name in ("relative", "rollout"):
        having = [
            pair
            for pair in pairs
            if pair.region is not None and all(f"maps/{name}" in side.arrays for side in pair.sides)
        ]
        if having:
            layers = ["all"] if name == "rollout" else [str(one) for one in having[0].sides[1].layers]
            found[name] = {
                layer: both(
                    [
                        [
                            _nss(
                                side.arrays[f"maps/{name}"][row].astype(float),
                                pair.coverage[pair.region],
                                None,
                            )
                            for side in pair.sides
                        ]
                        for pair in having
                    ]
                )
                for row, layer in enumerate(layers)
            }
            for layer, one in found[name].items():
                headers = [side.header for pair in having for side in pair.sides]
                told = {number for header in headers for number in header["supervised_layers"]}
                among = told if layer == "all" else told & {int(layer)}
                one["trained_on"] = bool(among) or any(header["supervised_connector"] for header in headers)
    return found or None


def _divergence(first, second) -> float:
    middle = (first + second) / 2
    return float((stats.entropy(first, middle) + stats.entropy(second, middle)) / 2)


def _carried_cells(first, second, grid) -> float:
    """Earth mover's distance in cells walked, as a transport problem."""
    moved = second - first
    rounding = 1e-8  # of single precision
    gives, takes = np.flatnonzero(moved < -rounding), np.flatnonzero(moved > rounding)
    if not len(gives) or not len(takes):
        return 0.0
    places = np.array(np.unravel_index(np.arange(len(first)), grid)).T
    cost = np.abs(places[gives][:, None] - places[takes]).sum(-1)
    conditions = np.concatenate(
        [np.kron(np.eye(len(gives)), np.ones(len(takes))), np.kron(np.ones(len(gives)), np.eye(len(takes)))]
    )
    amounts = np.concatenate([-moved[gives], moved[takes] * (-moved[gives].sum() / moved[takes].sum())])
    scale = amounts.max()
    return float(optimize.linprog(cost.ravel(), A_eq=conditions, b_eq=amounts / scale).fun * scale)


def drift(pair: Pair, row: int) -> Json:
    first, second = (cells[row] for cells in pair.maps)
    looked = [side.looked(row) for side in pair.sides]
    if (
        not first.sum() or not second.sum()
    ):  # without any attention on the picture there are no places to compare
        places = ("elsewhere_in_image", "jensen_shannon_nats", "wasserstein_cells", "cosine")
        return {"more_at_image": looked[1] - looked[0], **dict.fromkeys(places)}
    return {
        "more_at_image": looked[1] - looked[0],
        "elsewhere_in_image": sum(looked) / 2 * float(np.abs(second - first).sum()) / 2,
        "jensen_shannon_nats": _divergence(first, second),
        "wasserstein_cells": _carried_cells(first, second, pair.sides[1].grid),
        "cosine": float(first @ second / math.sqrt((first @ first) * (second @ second))),
    }


def by_layer(pairs: list[Pair], numbers) -> Json:
    """Layer → means of the numbers that ``numbers(pair, row)`` gives."""
    found = {}
    for row, layer in enumerate(pairs[0].sides[1].layers):
        values = [numbers(pair, row) for pair in pairs]
        known = {name: [one[name] for one in values if one[name] is not None] for name in values[0]}
        found[str(layer)] = {name: float(np.mean(some)) if some else None for name, some in known.items()}
    return found


def looked(pair: Pair, row: int) -> Json:
    layer = pair.sides[1].layers[row]
    return {
        side: float(record.arrays["visual_share"][layer].astype(float).mean())
        for side, record in zip(SIDES, pair.sides, strict=True)
    }


def sink_share(pairs: list[Pair]) -> Json | None:
    pairs = [pair for pair in pairs if all("sinks" in side.arrays for side in pair.sides)]
    if not any(side.arrays["sinks"].any() for pair in pairs for side in pair.sides):
        return None

    def on_sinks(pair: Pair, row: int) -> Json:
        return {
            name: float(
                (side.arrays["rows"][row, :, 0].astype(float) * side.arrays["sinks"][row]).sum(1).mean()
            )
            for name, side in zip(SIDES, pair.sides, strict=True)
        }

    return by_layer(pairs, on_sinks)


def relation(pairs: list[Pair]) -> tuple[Json | None, Json | None]:
    """Enrichment of both ends, and the readings of the relation."""
    related = [pair for pair in pairs if pair.ends]
    if not related:
        return None, None
    pictures, layers = _pictures(related), related[0].sides[1].layers
    ends = {
        end: [
            {
                "layer": layer,
                "trained_on": was_told(related, layer),
                **change(
                    *np.array([pair.times(row, pair.coverage[pair.ends[at]]) for pair in related]).T, pictures
                ),
            }
            for row, layer in enumerate(layers)
        ]
        for at, end in enumerate(("subject", "object"))
    }
    values = {
        name: [[side.named("relation", name)[layers] for side in pair.sides] for pair in related]
        for name in ("phrase/subject", "phrase/object")
    }
    values["phrase/both"] = np.minimum(*values.values())
    readings = {
        name: {
            **change(*np.array(one).mean((2, 3)).T, pictures),
            "probes": len(related),
            "trained_on": any(was_told(related, layer) for layer in layers),
        }
        for name, one in values.items()
    }
    return ends, readings


def curves(pairs: list[Pair]) -> Json | None:
    having = [pair for pair in pairs if all("curves/deletion" in side.arrays for side in pair.sides)]
    if not having:
        return None
    found: Json = {"area": {}}
    for at, side in enumerate(SIDES):
        mean = np.mean([pair.sides[at].arrays["curves/deletion"].astype(float) for pair in having], axis=0)
        found[side] = [float(one) for one in mean]
        steps = np.diff(CURVE_SHARES)
        found["area"][side] = float((steps * (mean[1:] + mean[:-1]) / 2).sum())
    return {"deletion": found}


def collapse(pairs: list[Pair]) -> Json | None:
    if any("head_entropy" not in side.arrays for pair in pairs for side in pair.sides):
        return None
    entropy, logit = (
        [np.mean([pair.sides[at].arrays[what].astype(float) for pair in pairs], axis=0) for at in (0, 1)]
        for what in ("head_entropy", "highest_logit")
    )
    layer, head = np.argwhere(entropy[1] == np.nanmin(entropy[1]))[0]
    frozen = int(((entropy[1] < 0.01) & (entropy[1] < entropy[0] / 2)).sum())
    highest = [float(np.nanmax(one)) for one in logit]
    return {
        "lowest_entropy": {"entropy": float(entropy[1][layer, head]), "layer": int(layer), "head": int(head)},
        "entropy_before": float(np.nanmin(entropy[0])),
        "highest_logit": highest[1],
        "logit_before": highest[0],
        "collapsed_heads": frozen,
        "warn": frozen > 0 or (highest[1] > 100 and highest[1] > 2 * highest[0]),
    }


# ---------------------------------------------------------------- everything


def recomputed(folder: Path, asked: Json) -> Json:
    """``probes.json``, ``before/`` and ``after/`` of a folder → the numbers, verdicts and legs.

    asked   "thresholds" of comparison.json
    """
    entries = json.loads((folder / "probes.json").read_text())["probes"]
    pairs = [Pair(entry, folder, folder / "before", folder / "after") for entry in entries]
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair.group, []).append(pair)
    judged = {
        name: some
        for name, members in groups.items()
        if (some := [p for p in members if p.region is not None])
    }
    left = {name: left_to_judge(members) for name, members in judged.items()}
    readings = {name: Reading(*some, asked["probes"]) for name, some in left.items() if all(some)}
    pooled = adjusted({name: ranks_p(one.changes, one.pictures) for name, one in readings.items()})
    rows = range(len(pairs[0].sides[1].layers))
    layer_p = adjusted(
        {
            (name, row): ranks_p(
                relative(*np.array([pair.times(row) for pair in members]).T), _pictures(members)
            )
            for name, members in judged.items()
            for row in rows
        }
    )
    head_p = adjusted(
        {
            (name, *place): ranks_p(leads[(slice(None), *place)], _pictures(members))
            for name, members in ((name, tested(all_of)) for name, all_of in judged.items())
            for leads in [head_leads(members)[2]]
            for place in np.ndindex(leads.shape[1:])
        }
    )
    return {
        "key_layers": pairs[0].sides[1].layers,
        "collapse": collapse(pairs),
        "groups": {
            name: _group(
                name,
                groups,
                judged.get(name),
                readings.get(name),
                pooled.get(name),
                [key_layer(judged[name], row, layer_p[name, row]) for row in rows] if name in judged else [],
                {place[1:]: p for place, p in head_p.items() if place[0] == name},
                asked,
            )
            for name in groups
        },
        "probes": [_probe(pair) for pair in pairs],
    }


def _group(name, groups, judged, reading, chance, layers, head_p, asked) -> Json:
    pairs = groups[name]
    found = answers(pairs, asked)
    leg_of_mediation, parts = mediation(pairs, asked)
    leg_of_attention, moved = attention(reading, chance, asked)
    legs = {
        "answers": leg(None, 0, None, asked["right"]) if found is None else found["leg"],
        "picture": picture(pairs, asked),
        "attention": leg_of_attention,
        "cause": cause(pairs, asked),
        "mediation": leg_of_mediation,
        "guards": guards(name, groups, asked),
    }
    scored = [pair for pair in pairs if pair.foil is not None]
    margins = np.array([pair.margins() for pair in scored]).T
    effect = None
    if reading is not None:
        effect = reading.effect
    elif scored:
        effect = d_z(margins[1] - margins[0], _pictures(scored))
    ends, readings = relation(pairs)
    return {
        "probes": len(pairs),
        "images": len(set(_pictures(pairs))),
        "accuracy": None if found is None else found["json"],
        "margin_nats": change(*margins, _pictures(scored)) if scored else None,
        "said_the_answer": None if found is None else found["said"],
        "speech_lost": None if found is None else found["fell silent"],
        "boxes": None,  # none of the probes that are recomputed here answers with a box
        "enrichment": None if reading is None else enrichment(reading, chance),
        "enrichment_by_layer": layers,
        "localisation": localisation(pairs),
        "further_maps": further_maps(pairs),
        "heads": heads(tested(judged), head_p, asked) if judged else None,
        "effect_size": effect,
        "probes_needed": needed(effect),
        "relation_enrichment": ends,
        "relation": readings,
        "decides": {side: decides(pairs, at) for at, side in enumerate(SIDES)},
        "occlusion_nats": costs(pairs, "occlusion"),
        "knockout_nats": costs(pairs, "knockout"),
        "tower_knockout_nats": costs(pairs, "tower knockout"),
        "knockout_windows": windows(pairs),
        "curves": curves(pairs),
        "visual_share": by_layer(pairs, looked),
        "sink_share": sink_share(pairs),
        "drift_jsd_nats": {
            layer: one["jensen_shannon_nats"] for layer, one in by_layer(pairs, drift).items()
        },
        "drift": by_layer(pairs, drift),
        "mediation": parts,
        "legs": legs,
        "verdict": verdict(name, found, legs, moved, asked, any(pair.trained for pair in pairs)),
    }


def _probe(pair: Pair) -> Json:
    def cost(kind: str) -> Json | None:
        found = [side.cost(pair.region, kind) for side in pair.sides]
        if None in found:
            return None
        return {
            **{side: found[at][0] for at, side in enumerate(SIDES)},
            "control": {side: _or_null(found[at][1]) for at, side in enumerate(SIDES)},
        }

    margins = dict(zip(SIDES, pair.margins(), strict=True))
    return {
        "id": pair.id,
        "region": pair.region,
        "margin_nats": margins,
        "correct": {side: None if one is None else one > 0 for side, one in margins.items()},
        "decides": {side: decider(pair, at)[1] for at, side in enumerate(SIDES)},
        "occlusion_nats": cost("occlusion"),
        "knockout_nats": cost("knockout"),
        "layers": [
            {
                "layer": layer,
                "drift_jsd_nats": _divergence(*(cells[row] for cells in pair.maps)),
                "regions": {
                    name: {
                        "mass": {
                            side: float(cells[row] @ weights)
                            for side, cells in zip(SIDES, pair.maps, strict=True)
                        },
                        "enrichment": dict(zip(SIDES, pair.times(row, weights), strict=True)),
                    }
                    for name, weights in pair.coverage.items()
                },
            }
            for row, layer in enumerate(pair.sides[1].layers)
        ],
    }
