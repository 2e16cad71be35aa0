"""A command line, split into flags and put together again."""

from collections.abc import Iterator, Sequence


def split_flags(argv: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Split into (flag name, its values); what stands before the first flag has the name ''."""
    name, values = "", list[str]()
    for token in argv:
        if not token.startswith("--"):
            values.append(token)
            continue
        if name or values:
            yield name, values
        head, equals, value = token[2:].partition("=")
        name, values = head.replace("-", "_"), [value] if equals else []
    if name or values:
        yield name, values


def join_flag(name: str, values: list[str]) -> list[str]:
    return [f"--{name}", *values] if name else values
