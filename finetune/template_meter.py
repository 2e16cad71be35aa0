"""Chat templates of other people's checkpoints, rendered within bounds of work, memory and time.

jinja2's sandbox keeps a template from the machine's files, not from its time: nested loops, ``'x' * 10**10`` and a list
that holds itself twice, fifty times over, are all allowed there. Here every template that transformers compiles within
:func:`bounded` is written again before it becomes Python, so that it counts its own work and stops at a limit:

    {% for m in messages %}…{% endfor %}   →   {% for m in turns(messages, 12) %}…{% endfor %}     12: nodes of the body
    {{ x }}, x ~ y, x + y                  →   what is written is charged for by its length
    x * y, x ** y, x % y, filters, calls   →   charged for before they are done, where they can make more than they get

A unit of work is a character, an element, or a node of the template that is run. Memory is bounded with it: nothing
that a template holds is larger than the work that made it.
"""

from __future__ import annotations

import functools
import re
import threading
import time
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, Sized, ValuesView
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.runtime import BlockReference, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MOST_WORK = 20_000_000
"""Units for one rendering: about two seconds. A published template needs some hundreds a message."""
MOST_SECONDS = 5.0
"""Of computing, for one conversation: what work does not tell (comparisons of long texts) ends here."""
MOST_CHARACTERS = 200_000
"""Of a template; the longest published ones have 20,000."""
MOST_NUMBER = 100_000
"""In arguments: a width, a count. As jinja2's own limit of ``range``."""
MOST_BITS = 2**16
"""Of a whole number."""
MOST_OF_SLOW_FILTERS = 10_000
"""Units that go into a filter which takes more than proportional time."""
_UNITS_BETWEEN_LOOKS = 100_000
"""At the clock."""
_UNITS_OF_AN_OBJECT = 16
"""It takes that many times as long to look at as a character to copy."""


class BrokenTemplate(ValueError):  # noqa: N818
    """A chat template that no conversation can be written with."""


class TooCostly(BrokenTemplate):
    """A chat template that does not end, or writes more than any chat. The message begins with "it"."""


class Scope:
    """A conversation, or several at a time, whose templates are bounded.

    environment   of the template at work
    """

    __slots__ = ("environment", "renderings", "until")

    def __init__(self, renderings: int) -> None:
        self.renderings = renderings
        self.until = time.thread_time() + MOST_SECONDS * renderings
        self.environment: BoundedEnvironment | None = None


_SCOPE: ContextVar[Scope | None] = ContextVar("conversation whose chat template is bounded", default=None)


class Meter:
    """The work that is left to a rendering, and the time to a conversation. One for each template and thread."""

    __slots__ = ("left", "look_below", "most", "seconds", "until")

    def begin(self, scope: Scope) -> None:
        self.left = self.most = MOST_WORK * scope.renderings
        self.seconds, self.until = MOST_SECONDS * scope.renderings, scope.until
        self.look_below = self.left - _UNITS_BETWEEN_LOOKS

    def charge(self, work: int) -> None:
        self.left -= work
        if self.left < self.look_below:
            self.look()

    def look(self) -> None:
        if self.left < 0:
            raise TooCostly(
                "it loops for too long, or writes too much: found more than "
                f"{self.most:,} units of work (nodes of the template, characters, elements)"
            )
        if time.thread_time() > self.until:
            raise TooCostly(f"it computes for more than {self.seconds:g} seconds")
        self.look_below = self.left - _UNITS_BETWEEN_LOOKS

    def weigh(self, value: Any) -> int:
        """Charge for everything that a value holds, as often as it holds it; the units."""
        units = len(value) if type(value) is str else weight(value, self.left)
        self.charge(units)
        return units

    def weigh_given(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
        """The same of arguments."""
        return sum(map(self.weigh, args)) + sum(map(self.weigh, kwargs.values()))


def weight(value: Any, most: int) -> int:
    """Characters and elements of a value, those that it holds several times counted so; a little above ``most`` where
    there are more. A text of 3 characters in a list: 16 + 1 + 16 + 3."""
    units, left = 0, [value]
    while left and units <= most:
        one = left.pop()
        kind = type(one)
        units += _UNITS_OF_AN_OBJECT
        held: Any = ()
        if kind is str:
            units += len(one)
        elif kind is list or kind is tuple:
            held = one
        elif isinstance(one, str | bytes | bytearray):
            units += len(one)
        elif isinstance(one, int):
            units += one.bit_length() // 32
        elif isinstance(one, Mapping):
            held = (*one.keys(), *one.values())
        elif isinstance(one, Namespace):
            left.append(one._Namespace__attrs)  # what its text shows
        elif isinstance(one, set | frozenset | KeysView | ValuesView | ItemsView):
            held = one
        units += len(held)
        if held and units <= most:
            left += held
    return units


def _depth(value: Any) -> int:
    """Levels of lists and objects; only for what has been weighed."""
    depth, level = 0, [value]
    while level := [one for one in level if isinstance(one, list | tuple | dict)]:
        depth += 1
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
    return depth


# ---------------------------------------------------------------------------------------------------------------------
# A template that counts
# ---------------------------------------------------------------------------------------------------------------------


class _Counting(NodeTransformer):
    """Writes the calls of the functions below into a template. Their names begin with a space: no template can."""

    def __init__(self) -> None:
        self.nodes = 0

    def visit(self, node: Any, *args: Any, **kwargs: Any) -> Any:
        before = self.nodes
        text = node.data if isinstance(node, nodes.TemplateData) else getattr(node, "value", None)
        self.nodes += 1 + (len(text) // 8 if isinstance(text, str) else 0)
        self.generic_visit(node)
        return _counting(node, self.nodes - before)


def _counting(node: Any, inside: int) -> Any:
    """A node that counts its work, in its place. inside: the nodes that it consists of."""
    if isinstance(node, nodes.For):
        node.iter = _applied(" turns", node.iter, inside)
    elif isinstance(node, nodes.Macro | nodes.CallBlock | nodes.Block) and not getattr(
        node, "required", False
    ):
        work = _applied(" work", nodes.Const(inside, lineno=node.lineno))
        node.body.insert(0, nodes.ExprStmt(work, lineno=node.lineno))
    elif isinstance(node, nodes.Output | nodes.Concat):
        node.nodes = [_with(" written", one) for one in node.nodes]
    elif isinstance(node, nodes.Pair):
        node.key = _with(" key", node.key)
    elif isinstance(node, nodes.Compare):
        _count_comparison(node)
    elif isinstance(node, nodes.Add) and not isinstance(node.left, nodes.Const):
        return node if isinstance(node.right, nodes.Const) else _applied(" made", node)
    elif isinstance(node, nodes.Getitem):
        if isinstance(node.arg, nodes.Slice):
            return _applied(" made", node)
        node.arg = _with(" key", node.arg)
    return node


def _count_comparison(node: nodes.Compare) -> None:
    """Comparing with a constant takes no longer than it is long; looking for one, as long as what it is in is."""
    sides: list[nodes.Compare | nodes.Operand] = [node, *node.ops]
    seeking = [one for one in node.ops if one.op in ("in", "notin")]
    if sum(not _constant(one.expr) for one in sides) > 1 or seeking:
        for one in sides:
            one.expr = _with(" searched" if one in seeking else " key", one.expr)


def _applied(name: str, value: Any, *numbers: int) -> nodes.Filter:
    given = [nodes.Const(one, lineno=value.lineno) for one in numbers]
    return nodes.Filter(value, name, given, [], None, None, lineno=value.lineno)


def _constant(node: nodes.Expr) -> bool:
    several = node.items if isinstance(node, nodes.List | nodes.Tuple) else [node]
    return all(isinstance(one, nodes.Const | nodes.TemplateData) for one in several)


def _with(name: str, node: nodes.Expr) -> nodes.Expr:
    """``_applied`` unless the node is a constant, which its place in the template has paid for."""
    return node if _constant(node) else _applied(name, node)


def _counters(meter: Meter) -> dict[str, Callable[..., Any]]:
    """What is written into a template, by name."""

    @pass_context  # so that no constant is charged for when the template is compiled
    def turns(_: Any, values: Any, work: int) -> Any:
        return _charged(meter, values, work)

    @pass_context
    def work(_: Any, units: int) -> None:
        meter.charge(units)

    def written(value: Any) -> Any:
        """Charged for before it is put together."""
        if type(value) is str:
            meter.left -= len(value)
            if meter.left < meter.look_below:
                meter.look()
        else:
            meter.weigh(value)
        return value

    def made(value: Any) -> Any:
        """A text, list or number that was made of others, charged for when it is there: it is no longer than two."""
        if isinstance(value, Sized):
            meter.charge(len(value))
        elif isinstance(value, int) and value.bit_length() > MOST_BITS:
            raise TooCostly(f"it computes with a number of {value.bit_length():,} bits")
        return value

    def key(value: Any) -> Any:
        """What is compared or looked up, with everything that it holds."""
        kind = type(value)
        if kind is str:
            meter.charge(len(value) >> 3)
        elif kind is not int:
            meter.weigh(value)
        return value

    def searched(value: Any) -> Any:
        """What something is looked for in."""
        return value if isinstance(value, Mapping) else key(value)

    return {
        " turns": turns, " work": work, " written": written, " made": made, " key": key, " searched": searched
    }  # fmt: skip


def _charged(meter: Meter, values: Any, work: int) -> Any:
    """What a loop goes through, each turn charged for."""
    if isinstance(values, Sized):
        meter.charge(1 + len(values) * work)
        return values
    return _counted(meter, values, work) if isinstance(values, Iterable) else values


def _counted(meter: Meter, values: Iterable[Any], work: int) -> Iterator[Any]:
    for value in values:
        meter.charge(work)
        yield value


# ---------------------------------------------------------------------------------------------------------------------
# Filters, tests and calls
# ---------------------------------------------------------------------------------------------------------------------

# Filters of jinja2, by what they do with what they are given; the others take it as it is, once through.
_LAZY = frozenset(
    ("batch", "list", "map", "reject", "rejectattr", "reverse", "select", "selectattr", "slice")
)
_QUICK = frozenset(
    (
        "abs",
        "attr",
        "count",
        "d",
        "default",
        "first",
        "float",
        "int",
        "items",
        "last",
        "length",
        "random",
        "round",
    )
)
_EATING = frozenset(("dictsort", "groupby", "join", "max", "min", "sort", "sum", "unique"))
_ORDERING = _EATING - {"join", "sum"}
_SLOW = frozenset(
    (
        "filesizeformat",
        "format",
        "pprint",
        "striptags",
        "sum",
        "title",
        "truncate",
        "urlize",
        "wordwrap",
        "xmlattr",
    )
)
_COMPARING = frozenset(
    (
        "!=", "<", "<=", "==", ">", ">=", "eq", "equalto", "escaped", "ge", "greaterthan", "gt", "in", "le", "lessthan",
        "lower", "lt", "ne", "upper",
    )
)  # fmt: skip
_WIDE = re.compile(r"[0-9]{5}|\*|\{[^{}]*\{")
"""In a pattern: a width of five digits, one that is an argument."""


def _bounded_filter(meter: Meter, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    first = 1 if hasattr(function, "jinja_pass_arg") else 0
    made = _counters(meter)[" made"]

    @functools.wraps(function)
    def filtered(*args: Any, **kwargs: Any) -> Any:
        value, others = args[first], args[first + 1 :]
        if others or kwargs:
            _check_numbers(others, kwargs)
        if name in _LAZY:
            value = _charged(meter, value, 1)
        elif name in _EATING and not isinstance(value, Sized):
            value = list(_charged(meter, value, 1)) if isinstance(value, Iterable) else value
        if name in _LAZY or name in _QUICK:
            meter.charge(1)
        else:
            _charge_filter(meter, name, value, others, kwargs)
        return made(function(*args[:first], value, *others, **kwargs))

    return filtered


def _charge_filter(
    meter: Meter, name: str, value: Any, others: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    """Before it is done: for what goes in, and for what may come out."""
    units = meter.weigh(value) + meter.weigh_given(others, kwargs)
    if name in _SLOW and (units > MOST_OF_SLOW_FILTERS or (name == "format" and _WIDE.search(str(value)))):
        raise TooCostly(f"it gives the filter {name!r} too much")
    if name in _ORDERING:
        meter.charge(20 * units)
    elif name == "replace":
        _charge_replaced(meter, str(value), *map(str, (*others, *kwargs.values())))
    elif name == "join":
        between = str(others[0] if others else kwargs.get("d", ""))
        meter.charge(len(value) * len(between) if isinstance(value, Sized) else 0)
    elif name in ("indent", "tojson") and (others or kwargs):
        given = [*others, *kwargs.values()]
        wide = sum(one if type(one) is int else weight(one, MOST_WORK) for one in given)
        lines = str(value).count("\n") + 1 if name == "indent" else units * _depth(value)
        meter.charge(lines * wide)


def _charge_replaced(meter: Meter, text: str, old: str = "", new: str = "", *_: Any) -> None:
    found = text.count(old) if old else len(text) + 1
    meter.charge(len(text) + found * len(new))


def _bounded_test(meter: Meter, function: Any) -> Callable[..., Any]:
    key = _counters(meter)[" key"]

    @functools.wraps(function)
    def tested(*args: Any) -> Any:
        for one in args:
            key(one)
        return function(*args)

    return tested


def _check_numbers(args: Iterable[Any], kwargs: Mapping[str, Any]) -> None:
    for one in (*args, *kwargs.values()):
        if isinstance(one, int) and not -MOST_NUMBER <= one <= MOST_NUMBER:
            raise TooCostly(f"it asks for a width or a count of more than {MOST_NUMBER:,}")


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """transformers' environment, whose templates count their work."""

    intercepted_binops = frozenset(("*", "**", "%", "//"))
    nodes_of_template = 1
    meter: Meter
    made: Callable[[Any], Any]
    compiled: Any = None
    refused: str | None = None
    """Why, once it was too costly: a second conversation does not find out again."""

    def bound(self, meter: Meter) -> None:
        """Put what counts around what is there."""
        self.meter = meter
        own = _counters(meter)
        self.made = own[" made"]
        self.filters = {name: _bounded_filter(meter, name, one) for name, one in self.filters.items()} | own
        self.tests = {
            name: _bounded_test(meter, one) if name in _COMPARING else one for name, one in self.tests.items()
        }
        self.globals.pop("lipsum")  # words at random, as many as asked for: no chat has them

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        counting = _Counting()
        counted = counting.visit(source)
        self.nodes_of_template = counting.nodes
        return super()._generate(counted.set_environment(self), *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        meter = self.meter
        if isinstance(left, str | bytes) and operator == "%":
            units = meter.weigh((left, right))
            if units > MOST_OF_SLOW_FILTERS or _WIDE.search(str(left)):
                raise TooCostly("it formats too much")
        elif operator == "*" and (isinstance(left, Sized) or isinstance(right, Sized)):
            many, one = (left, right) if isinstance(left, Sized) else (right, left)
            meter.charge(len(many) * max(0, one) if isinstance(one, int) else 0)
        elif isinstance(left, int) and isinstance(right, int):
            bits = (
                left.bit_length() * max(0, right)
                if operator == "**"
                else left.bit_length() + right.bit_length()
            )
            if bits > MOST_BITS:
                raise TooCostly(f"it computes with a number of {bits:,} bits")
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        meter = __self.meter
        if isinstance(__obj, Macro):
            meter.charge(1 + len(args) + len(kwargs))  # its body has its own charge
            return super().call(__context, __obj, *args, **kwargs)
        if isinstance(__obj, LoopContext | BlockReference):
            meter.charge(__self.nodes_of_template)
            again = [_charged(meter, one, __self.nodes_of_template) for one in args]
            return super().call(__context, __obj, *again, **kwargs)
        owner = getattr(__obj, "__self__", None)
        if args or kwargs:
            args = tuple(list(_charged(meter, one, 1)) if isinstance(one, Iterator) else one for one in args)
            if __obj is not __self.globals["range"]:
                _check_numbers(args, kwargs)
        if isinstance(owner, str | bytes):
            _charge_method(meter, owner, __obj.__name__, args, kwargs)
        else:
            meter.charge(1 + meter.weigh_given(args, kwargs))
            if isinstance(owner, list | tuple):
                meter.weigh(owner)
        return __self.made(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """``str.format``: each field may be as long as all that is given."""
        formatting = super().wrap_str_format(value)
        if formatting is None:
            return None
        meter, pattern = self.meter, value.__self__

        @functools.wraps(formatting)
        def formatted(*args: Any, **kwargs: Any) -> str:
            if _WIDE.search(pattern):
                raise TooCostly("it formats with a width too large, or one that is an argument")
            meter.charge(len(pattern) + (1 + pattern.count("{")) * weight((args, kwargs), MOST_WORK))
            return formatting(*args, **kwargs)

        return formatted


def _charge_method(
    meter: Meter, owner: str | bytes, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    """Of a text; numbers among the arguments have been checked."""
    units = meter.weigh_given(args, kwargs)
    meter.charge(len(owner))
    if name == "translate":
        meter.charge(len(owner) * units)
    elif name == "expandtabs":
        wide = args[0] if args and isinstance(args[0], int) else 8
        tab: Any = "\t" if isinstance(owner, str) else b"\t"
        meter.charge(owner.count(tab) * max(8, wide))
    elif name == "replace" and args:
        new = args[1] if len(args) > 1 and isinstance(args[1], Sized) else ""
        old = args[0] if isinstance(args[0], type(owner)) else owner
        found = owner.count(old) if old else len(owner) + 1  # type: ignore[arg-type]
        meter.charge(found * len(new))
    elif name == "join" and args and isinstance(args[0], Sized):
        meter.charge(len(args[0]) * len(owner))


# ---------------------------------------------------------------------------------------------------------------------
# In place of transformers' own
# ---------------------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=64)
def _environment(template: str, thread: int) -> BoundedEnvironment:
    """transformers' environment for one template and thread, bounded, before the template is compiled.

    thread   its number: a meter counts the work of one rendering at a time
    """
    from transformers.utils import chat_template_utils

    # transformers builds its environment within a function: this one is of the empty template alone, and becomes ours.
    environment = chat_template_utils._cached_compile_jinja_template("").environment
    environment.__class__ = BoundedEnvironment
    environment.bound(Meter())
    return environment


@functools.cache
def _install() -> None:
    """transformers asks its own function for compiled templates; within ``bounded`` it now gets bounded ones."""
    from transformers.utils import chat_template_utils

    theirs = chat_template_utils._compile_jinja_template

    @functools.wraps(theirs)
    def compiled(template: str) -> Any:
        scope = _SCOPE.get()
        return theirs(template) if scope is None else _compiled(template, scope)

    chat_template_utils._compile_jinja_template = compiled


def _compiled(template: str, scope: Scope) -> Any:
    """The template, its meter at the beginning."""
    environment = scope.environment = _environment(template, threading.get_ident())
    if environment.refused is not None:
        raise TooCostly(environment.refused)
    environment.meter.begin(scope)
    if environment.compiled is None:
        if len(template) > MOST_CHARACTERS:
            raise TooCostly(f"it has {len(template):,} characters, more than {MOST_CHARACTERS:,}")
        environment.compiled = environment.from_string(template)  # computes its constants, charged for
        environment.meter.begin(scope)
    return environment.compiled


@contextmanager
def bounded(renderings: int = 1) -> Iterator[None]:
    """Chat templates that transformers renders meanwhile, in this thread, are bounded in work, memory and time.

    renderings   how many chats at a time

    Raises TooCostly, whose message is a clause that begins with "it": the caller names the file.
    """
    if _SCOPE.get() is not None:
        yield
        return
    _install()
    scope = Scope(renderings)
    token = _SCOPE.set(scope)
    try:
        yield
    except (TooCostly, RecursionError, MemoryError, OverflowError) as error:
        why = (
            str(error)
            if isinstance(error, TooCostly)
            else f"it goes too deep or too far ({type(error).__name__})"
        )
        if scope.environment is not None:
            scope.environment.refused = why
        raise TooCostly(why) from error
    finally:
        _SCOPE.reset(token)


def variables_of(template: str) -> frozenset[str]:
    """The names that a template takes from outside. Raises TooCostly: constants are computed when it is compiled."""
    from transformers.utils import chat_template_utils

    with bounded():
        return chat_template_utils._get_template_variables(template)
