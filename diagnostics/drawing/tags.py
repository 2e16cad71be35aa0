"""Names of what is logged, in TensorBoard and in other trackers. The only place with tag names.

Sections are numbered in the order in which a reader asks: what came of it, what it answers, where it looks, how far it
has moved. Guards, the groups that must not change, come after the targets. G is a group, L a key layer, ID a probe:

    1 verdict/corrected/G            at the end: 1 where the verdict is "corrected", 0 where it is another
    1 verdict/drift strip/G          picture: base | step | … | now, of one typical probe
    1 verdict/G                      card at the end: the verdict and the legs it rests on, or its reasons
    2 answers/accuracy/G             share of probes with a positive margin
    2 answers/margin_nats/G          mean of log p(answer) - log p(foil)
    2 answers/box_accuracy/G         share of boxes with an IoU above .5, where right answers are boxes
    2 answers/box_iou/G, …/box_pointing/G   their mean IoU, and the share whose centre lies within the right box
    2 answers - G/ID                 card: prompt, right and wrong answer, the model's answers
    3 attention/enrichment/G/layer_L    the judged region's share of the attention to the image over its share
                                     of the image; 1 is uniform attention
    3 attention/region_mass/G/layer_L   the first of these two shares
    3 attention/layers x heads/G     picture: region mass of every layer and head: base | now | difference
    3 attention - G/ID/layer_L       picture: base | now | difference
    …/layer_L, trained on            these numbers, of a layer whose attention is trained on: it looks where it was told
                                     to; a picture says so itself, and its tag stays the same from step 0 on
    4 drift/drift_jsd_nats/layer_L   how far attention within the image moved from the base, all probes
    4 drift/visual_share/layer_L     share of the answer query's attention on image tokens, all probes
    4 drift/onset/G                  card at the end: what began when, from three checkpoints
    5 guards/…                       all of the above for guards; "kept" instead of "corrected"
    6 model/architecture             card at the start: components, parameters, attention layers, image tokens
    6 model/diagnosis                card at the start: where the untrained model loses the right answers
"""

from __future__ import annotations

from diagnostics.comparison import maps
from diagnostics.records.names import tag_part
from diagnostics.records.probes import NEIGHBOUR, RETENTION

VERDICT, ANSWERS, ATTENTION, DRIFT, GUARDS, MODEL = (
    "1 verdict",
    "2 answers",
    "3 attention",
    "4 drift",
    "5 guards",
    "6 model",
)
ARCHITECTURE, DIAGNOSIS = f"{MODEL}/architecture", f"{MODEL}/diagnosis"
TRAINED_ON = f", {maps.TRAINED_ON}"
"""Ends the tag of a number of a layer whose attention is trained on."""


def is_guard(group: str) -> bool:
    """Must this group stay as it is?"""
    return group in (RETENTION, NEIGHBOUR)


def verdict_section(group: str) -> str:
    """The section of a group's verdict."""
    return _section(VERDICT, group)


def verdict_tag(group: str) -> str:
    """Tag of a group's verdict, a card."""
    return f"{_section(VERDICT, group)}/{tag_part(group)}"


def holds_tag(group: str) -> str:
    """Tag of the number that says whether a group ended as it should."""
    return f"{_section(VERDICT, group)}/{'kept' if is_guard(group) else 'corrected'}/{tag_part(group)}"


def strip_tag(group: str) -> str:
    """Tag of a group's drift strip."""
    return f"{_section(VERDICT, group)}/drift strip/{tag_part(group)}"


def answers_tag(what: str, group: str) -> str:
    """Tag of a number about a group's answers: ``what`` is "accuracy", "margin_nats", …"""
    return f"{_section(ANSWERS, group)}/{what}/{tag_part(group)}"


def probe_tag(group: str, probe_id: str) -> str:
    """Tag of a probe's card. Not below "2 answers/": a group may be called "accuracy"."""
    return f"{_section(ANSWERS, group)} - {tag_part(group)}/{probe_id}"


def attention_tag(what: str, group: str, layer: int, *, trained_on: bool = False) -> str:
    """Tag of a number about a group's attention: ``what`` is "enrichment" or "region_mass"."""
    return f"{_section(ATTENTION, group)}/{what}/{tag_part(group)}/layer_{layer}{TRAINED_ON * trained_on}"


def map_tag(group: str, probe_id: str, layer: int) -> str:
    """Tag of a probe's maps; its first part gathers a group's pictures under one heading."""
    return f"{_section(ATTENTION, group)} - {tag_part(group)}/{probe_id}/layer_{layer}"


def overview_tag(group: str) -> str:
    """Tag of a group's layers x heads picture."""
    return f"{_section(ATTENTION, group)}/layers x heads/{tag_part(group)}"


def drift_tag(what: str, layer: int) -> str:
    """Tag of a number about all probes: ``what`` is "drift_jsd_nats" or "visual_share"."""
    return f"{DRIFT}/{what}/layer_{layer}"


def onset_tag(group: str) -> str:
    """Tag of the card that says what began when."""
    return f"{_section(DRIFT, group)}/onset/{tag_part(group)}"


def _section(section: str, group: str) -> str:
    return GUARDS if is_guard(group) else section
