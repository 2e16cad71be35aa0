"""The page that compares a checkpoint with its server: differences, counts, and every differing answer."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem; border-bottom: 1px solid #8886; }
td { overflow-wrap: anywhere; }
"""


def served_html(content: Mapping[str, Any]) -> str:
    """The page that needs no network and no other file.

    Args:
        content: of served.json.
    """
    every = content["all"]
    parted = [one for one in content["probes"] if not one["same"]]
    title = f"{every['same']} of {every['probes']} answers are the same"
    parts = [
        f"<h1>{title}</h1>",
        f"<p>{_e(content['checkpoint'])}, beside {_e(content['served_model'])} at {_e(content['server'])}; greedy, at "
        f"most {content['max_tokens']} tokens. Right answers: {every['right']['here']} here, "
        f"{every['right']['server']} at the server.</p>",
        "<h2>What differs</h2>",
        _list(content["differences"], "Nothing that can be seen."),
        "<h2>Not compared</h2>" + _list(content["not_compared"], "") if content["not_compared"] else "",
        "<h2>Groups</h2>",
        _table(count_rows(content)),
        "<h2>Answers that are not the same</h2>" + _table(_answer_rows(parted)) if parted else "",
    ]
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width"><title>{title}</title><style>{STYLE}</style></head><body>'
        + "\n".join(parts)
        + "</body></html>\n"
    )


def count_rows(content: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Header, a row for each group, and one for all."""
    rows: list[tuple[str, ...]] = [
        ("group", "probes", "same answers", "right here", "right at the server", "mean log p, nats")
    ]
    for name, counts in [*content["groups"].items(), ("all", content["all"])]:
        means = counts["mean_nats"]
        nats = "–" if means is None else f"{means['here']:.3f} here, {means['server']:.3f} at the server"
        right = counts["right"]
        rows.append(
            (name, *map(str, (counts["probes"], counts["same"], right["here"], right["server"])), nats)
        )
    return rows


def _answer_rows(probes: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("probe", "here", "at the server", "lead where they part, nats")]
    for one in probes:
        lead = one["lead_where_parted_nats"]
        rows.append(
            (
                one["id"],
                *(_judged(one, side) for side in ("here", "server")),
                "–" if lead is None else f"{lead:.2f}",
            )
        )
    return rows


def _judged(one: Mapping[str, Any], side: str) -> str:
    return f"{one['said'][side]} ({'right' if one['right'][side] else 'wrong'})"


def _list(lines: Sequence[str], otherwise: str) -> str:
    if not lines:
        return f"<p>{otherwise}</p>"
    return "<ul>" + "".join(f"<li>{_e(line)}</li>" for line in lines) + "</ul>"


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    lines = ["<tr>" + "".join(f"<th>{_e(cell)}</th>" for cell in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{_e(cell)}</td>" for cell in row) + "</tr>" for row in body]
    return "<table>" + "\n".join(lines) + "</table>"


def _e(text: str) -> str:
    return html.escape(str(text))
