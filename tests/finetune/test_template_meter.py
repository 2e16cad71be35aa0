"""Chat templates that never end or fill the memory are refused; all others are rendered as transformers does."""

import time

import pytest
from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from finetune import template_meter
from finetune.families.parts.chat import Picture, encode_chat
from finetune.model import checkpoint
from finetune.qwen_vl.rendering import CHAT_TEMPLATE
from finetune.template_meter import BrokenTemplate, TooCostly, bounded, variables_of, weight
from tests.finetune.families.tiny_families import GRIDS, TEMPLATE, grid_processor

MESSAGES = [
    {"role": "user", "content": [{"type": "text", "text": "what is it?"}, {"type": "image"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "a cat"}]},
]
TWICE = "{% set ns = namespace(x=START) %}{% for i in range(60) %}{% set ns.x = STEP %}{% endfor %}"


def rendered(template, messages=MESSAGES):
    return render_jinja_template([messages], chat_template=template, add_generation_prompt=True)[0][0]


def twice(start, step, end):
    """A value that grows to twice its size, sixty times; only references grow until ``end`` looks at it."""
    return TWICE.replace("START", start).replace("STEP", step) + end


@pytest.fixture(autouse=True)
def _little_work(monkeypatch):
    """The same limits, reached sooner."""
    monkeypatch.setattr(template_meter, "MOST_WORK", 4_000_000)


ENDLESS = {
    "loops": "{% for i in range(100000) %}{% for j in range(100000) %}{{ i }}{% endfor %}{% endfor %}",
    "range": "{% for i in range(10**9) %}{% endfor %}",
    "times": "{{ 'a' * 10**10 }}",
    "times when compiled": "{% if false %}{{ 'a' * 10**10 }}{% endif %}{% for x in [0] * 10**10 %}{% endfor %}",
    "power": "{% set n = 10 %}{{ n ** (10**9) }}",
    "macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "loop in itself": "{% for x in [1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
    "block in itself": "{% block b %}{{ self.b() }}{{ self.b() }}{% endblock %}",
    "joined": twice("'a'", "ns.x ~ ns.x", "{{ ns.x }}"),
    "added": twice("'a'", "ns.x + ns.x", "{{ ns.x }}"),
    "list added": twice("['a']", "ns.x + ns.x", "{{ ns.x }}"),
    "list shown": twice("['a']", "[ns.x, ns.x]", "{{ ns.x }}"),
    "list as JSON": twice("['a']", "[ns.x, ns.x]", "{{ ns.x|tojson }}"),
    "list compared": twice("['a']", "[ns.x, ns.x]", "{{ ns.x == [ns.x, 1] }}"),
    "list searched": twice("['a']", "[ns.x, ns.x]", "{{ [1] in ns.x }}"),
    "list tested": twice("['a']", "[ns.x, ns.x]", "{{ ns.x is eq(ns.x) }}"),
    "namespace shown": twice("['a']", "[ns.x, ns.x]", "{{ ns }}"),
    "key looked up": twice("('a',)", "(ns.x, ns.x)", "{{ {}[ns.x] }}"),
    "key kept": twice("('a',)", "(ns.x, ns.x)", "{{ {ns.x: 1} }}"),
    "center": "{{ 'a'|center(10**10) }}",
    "ljust": "{{ 'a'.ljust(10**10) }}",
    "to_bytes": "{{ (1).to_bytes(10**10) }}",
    "percent": "{{ '%10000000000d' % 1 }}",
    "star": "{{ '%*d' % (10**10, 1) }}",
    "format": "{{ '{:10000000000}'.format(1) }}",
    "format within": "{{ '{:{w}}'.format(1, w='1' * 10) }}",
    "format filter": "{{ '%10000000000d'|format(1) }}",
    "replace": "{% set s = 'a' * 10**6 %}{{ s.replace('a', s) }}",
    "replace filter": "{% set s = 'a' * 10**6 %}{{ s|replace('a', s) }}",
    "join": "{% set s = 'a' * 10**6 %}{{ s.join(s) }}",
    "join filter": "{% set s = 'a' * 10**6 %}{{ s|join(s) }}",
    "translate": "{% set s = 'a' * 10**6 %}{{ s.translate({97: s}) }}",
    "tabs": "{{ ('\\t' * 10**6).expandtabs(10**5) }}",
    "indent": "{{ ('\\n' * 10**6)|indent(10**4, true) }}",
    "indented JSON": "{{ ([[1]] * 10**4)|tojson(indent=10**4) }}",
    "wrapped words": "{{ ('ab ' * 10**6)|wordwrap(1) }}",
    "round": "{{ 1.5|round(10**9, 'ceil') }}",
    "mapped": "{{ range(10**5)|map('center', 10**5)|list }}",
    "split": twice("[]", "ns.x + [('a b ' * 10**6).split()]", ""),
    "huge number": "{{ ('f' * 10**6)|int(base=16) }}",
    "brackets": "{{ " + "(" * 50_000,
    "nested": "{% if 1 %}" * 2000 + "{% endif %}" * 2000,
    "long": "a" * 300_000,
}


@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_without_an_end_is_refused_in_a_second(name):
    begun = time.process_time()
    with pytest.raises(TooCostly, match="^it "), bounded():
        rendered(ENDLESS[name])
    assert time.process_time() - begun < 3
    begun = time.process_time()
    with pytest.raises(TooCostly, match="^it "), bounded():
        rendered(ENDLESS[name])
    assert time.process_time() - begun < 0.2, "the second conversation finds out again"


def test_what_is_computed_when_a_template_is_compiled_is_bounded_too():
    with pytest.raises(TooCostly):
        variables_of("{% for x in [0] * 10**9 %}{{ x }}{% endfor %}" + "x" * 300_000)
    assert variables_of("{{ tools }}{% set a = 1 %}{{ a }}") == {"tools"}


def test_time_is_bounded_where_work_does_not_tell(monkeypatch):
    monkeypatch.setattr(template_meter, "MOST_SECONDS", 0.0)
    with pytest.raises(TooCostly, match="more than 0 seconds"), bounded():
        rendered("{% for i in range(100000) %}{% endfor %}")


SOUND = {
    "qwen-vl": CHAT_TEMPLATE,
    "grid": TEMPLATE,
    "everything": (
        "{% macro m(a, b=1) %}{{ a ~ b }}{{ caller() if caller }}{% endmacro %}{{ m('x') }}"
        "{% call m(2) %}c{% endcall %}"
        "{% for m in messages[::-1] if m.role in ['user', 'assistant'] %}"
        "{{ loop.index }}/{{ loop.length }} {{ loop.last }}"
        "{% if not loop.last %}{% continue %}{% endif %}{{ m['role'] + ':' + m.role|upper|trim + m['ro' ~ 'le'] }}"
        "{% for c in m.content %}{{ c.text.split(' ')|join('-') if 'text' in c else c|tojson(indent=2) }}{% endfor %}"
        "{% else %}none{% endfor %}{% set ns = namespace(n=0, l=[]) %}{% for i in range(3) %}{% set ns.n = ns.n + i %}"
        "{% set ns.l = ns.l + [i] %}{% endfor %}{{ ns.n * 2 }} {{ ns.l }} {{ 7 // 2 }} {{ 2 ** 5 }}"
        "{{ '%s=%03d' % ('a', 7) }}"
        "{{ '{}-{:>4}'.format(1, 2) }}{{ messages|selectattr('role', 'equalto', 'user')|map(attribute='role')|list }}"
        "{{ messages|length }}{{ (1, 2) == (1, 2) }}{{ {'a': 1, 'b' ~ 1: 2}|dictsort }}{{ [3, 1, 2]|sort|unique|list }}"
        "{% set x %}a{{ 1 }}{% endset %}{{ x|replace('a', 'b')|indent(2, true) }}{{ undefined_name }}"
        "{{ none is none }}"
        "{{ 'a b c'.split()|reverse|list|first }}{{ cycler('a', 'b').next() }}"
        "{{ 'x' if 'hat' in 'what' }}{{ 5|string }}"
        "{% filter upper %}q{{ 1 }}{% endfilter %}{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}"
        "{% for x in [1, [2]] recursive %}{{ x if x is number else loop(x) }}{% endfor %}{{ [1, 2, 3]|batch(2)|list }}"
    ),
}


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_template_writes_what_it_writes_in_transformers(name):
    plain = rendered(SOUND[name])
    for _ in range(2):
        with bounded():
            assert rendered(SOUND[name]) == plain
    assert rendered(SOUND[name]) == plain


def test_a_long_conversation_is_within_bounds():
    with bounded():
        assert len(rendered(CHAT_TEMPLATE, MESSAGES * 1000)) > 50_000


def test_a_templates_own_refusal_stays_its_own():
    with pytest.raises(TemplateError, match="no system"), bounded():
        rendered("{{ raise_exception('no system') }}")


def test_weights_count_what_is_held_twice_twice():
    text = "abc"
    assert weight(text, 10**6) == 16 + 3
    assert weight([text], 10**6) == 16 + 1 + 16 + 3
    assert weight([[text, text]] * 2, 10**6) == 16 + 2 + 2 * (16 + 2 + 2 * (16 + 3))
    assert weight({"a": "bc"}, 10**6) == 16 + 2 + 16 + 1 + 16 + 2


def test_the_message_names_the_file_and_no_sample_is_waited_for(tmp_path):
    family = GRIDS["qwen2.5-vl"]
    family.write(tmp_path)
    checkpoint.load_processor(tmp_path)
    for template, words in (
        (ENDLESS["loops"], "is not rendered: it loops for too long"),
        ("{{ messages + 1 }}", "this chat template fails: TypeError"),
    ):
        (tmp_path / "chat_template.jinja").write_text(template)
        with pytest.raises(ValueError, match=words) as refused:
            checkpoint.load_processor(tmp_path)
        assert str(refused.value).startswith(f"{tmp_path / 'chat_template.jinja'}: ")
        assert len(str(refused.value)) < 500


def test_a_template_that_is_endless_for_one_conversation_alone_is_refused_there():
    template = TEMPLATE.replace("SYSTEM", "") + (
        "{% if messages|length > 2 %}{% for i in range(99999) %}{% for j in range(99999) %}"
        "{% endfor %}{% endfor %}{% endif %}"
    )
    processor = grid_processor(GRIDS["qwen2.5-vl"].family, template)
    options = {"image_token": "<|image_pad|>", "end_of_turn": "<|im_end|>"}
    turns = [("user", ["hi", Picture(2)]), ("assistant", ["yes"])]
    assert encode_chat(processor, turns, **options).input_ids
    with pytest.raises(BrokenTemplate, match="the model: this chat template is not rendered: it loops"):
        encode_chat(processor, turns * 2, **options)
