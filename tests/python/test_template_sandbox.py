"""A chat template that asks for all memory or all time ends in one line, and one that does not is not held up."""

from __future__ import annotations

import resource
import time

import pytest

from lora_c.errors import DataError
from lora_c.text import chat_template, template_limits

START = "{% set n = namespace(s='aaaaaaaa', l=[1, 2, 3, 4]) %}"
GROWS = [
    "{% set n.s = n.s ~ n.s %}", "{% set n.s = n.s + n.s %}", "{% set n.s %}{{ n.s }}{{ n.s }}{% endset %}",
    "{% set n.s = [n.s, n.s] | join %}", "{% set n.s = n.s.replace('a', 'aa') %}", "{% set n.s = n.s | replace('a', 'aa') %}",
    "{% set n.s = '%s%s' % (n.s, n.s) %}", "{% set n.s = '{0}{0}'.format(n.s) %}", "{% set n.s = '%s%s' | format(n.s, n.s) %}",
    "{% set n.s = n.s.join([n.s] * 3) %}", "{% set n.l = n.l + n.l %}", "{% set n.l = [n.l, n.l] %}",
    "{% set n.l = (n.l, n.l, n.l) %}", "{% set n.l = {'a': n.l, 'b': n.l} %}", "{% set n.l = [n.l] + [n.l] %}{{ n.l }}",
    "{% set n.l = dict(a=n.l, b=n.l) %}{{ n.l }}", "{% set n.l = namespace(a=n.l, b=n.l) %}{{ n.l }}",
    "{% set n.l = dict(a=n.l, b=n.l) %}",
    "{% set n.l = [n.l, n.l] | list %}",
    "{% set n.s = n.s * 2 %}", "{% set n.l = n.l * 2 %}", "{% set n.l = n.l + ['a' * 60000000] %}",
]  # fmt: skip
AT_ONCE = [
    "{{ 'a\tb'.expandtabs(2000000000) }}", "{{ (['a' * 1000] * 10000000) | length }}", "{{ 'a'.center(2000000000) }}",
    "{{ 'a'.ljust(2000000000) }}", "{{ 'a'.rjust(2000000000) }}", "{{ 'a'.zfill(2000000000) }}", "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (1000000000, 1) }}", "{{ '{:1000000000}'.format(1) }}", "{{ '{:{}}'.format(1, 1000000000) }}",
    "{{ '{:{}}'.format(1, '1000000000') }}", "{{ '{:{0[0]}}'.format(['1000000000'], 1) }}",
    "{{ '{x:{w}}'.format_map({'x': 1, 'w': 1000000000}) }}", "{{ 'a' | center(2000000000) }}",
    "{{ 'a\nb' | indent(2000000000) }}", "{{ '%1000000000d' | format(1) }}", "{{ [1] | batch(1000000000, 'x') | list }}",
    "{{ range(100) | slice(1000000000) | list }}", "{{ lipsum(n=1000000) }}", "{{ [1] | tojson(indent=2000000000) }}",
    "{{ range(1000) | map('center', 2000000000) | list }}", "{{ 1.5 | round(1000000000) }}", "{{ (1).to_bytes(2000000000) }}",
    "{{ ('a' * 60000000).split('a') }}", "{{ 'a'.translate({97: 'a' * 60000000}) }}", "{{ ('ab ' * 1000000) | wordwrap(1) }}",
    "{{ ('ab ' * 1000000) | urlize }}", "{{ ([[1] * 1000] * 1000) | sum(start=[]) }}",
    "{{ ('x' * 10 ** 6).join(['a'] * 10 ** 5) }}",
    "{{ ('a,' * 1000000).split(',') | join('a' * 1000000) }}", "{{ strftime_now('%100000000d') }}", "{{ 7 ** 99999999 }}",
    "{{ 'x'.encode().ljust(2000000000) }}", "{{ dict.fromkeys(range(1000), 'a' * 60000000) }}",
    "{{ ('%(a)s' * 1000000) % {'a': 'x' * 1000000} }}", "{% filter center(1000000000) %}x{% endfilter %}",
    "{{ 'x' * 10 ** 9 }}", "{{ ('a' | escape) * 10 ** 9 }}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
]  # fmt: skip
FOREVER = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{{ range(99999) | map('string') | select('equalto', 'x') | list | length }}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% for x in [1, 2] recursive %}{% if loop.depth < 50 %}{{ loop([1, 2]) }}{% endif %}{% endfor %}",
]


def render(source: str) -> str:
    return chat_template.render(source, [{"role": "user", "content": "x"}], False, None, {})


def refused(source: str) -> str:
    with pytest.raises(DataError, match="messages: expected .* got") as error:
        render(source)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("grows", GROWS)
def test_a_value_that_grows_in_a_loop_is_refused_before_it_takes_all_memory(
    grows: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_limits, "MAX_BYTES", 200 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "asks for" in refused(f"{START}{{% for i in range(400) %}}{grows}{{% endfor %}}{{{{ n.s }}}}")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 900 << 10


@pytest.mark.parametrize("value", ["'a' * 60000000", "range(99999) | list", "range(99999) | list | string"])
def test_slices_that_are_kept_count(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_limits, "MAX_BYTES", 200 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kept = "".join(f"{{% set b{i} = a[{i}:] %}}" for i in range(1, 400))
    assert "asks for" in refused(f"{{% set a = {value} %}}{kept}")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 900 << 10


@pytest.mark.parametrize("compared", ["n.x == n.y", "n.x in [n.y]", "[n.x] | select('eq', n.y) | list", "n.x is eq n.y"])
@pytest.mark.parametrize("twice", ["dict(a={0}, b={0})", "({0}, {0})", "[{0}, {0}] | list", "{{'a': {0}, 'b': {0}}}"])
def test_comparing_values_that_share_their_parts_ends(twice: str, compared: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_limits, "MAX_NODES", 20_000)
    both = "".join(f"{{% set n.{name} = {twice.format('n.' + name)} %}}" for name in "xy")
    start = "{% set n = namespace(x=dict(a=1), y=dict(a=1)) %}"
    source = f"{start}{{% for i in range(40) %}}{both}{{% endfor %}}{{{{ {compared} }}}}"
    assert "asks for" in refused(source)


@pytest.mark.parametrize("tag", ["include 'x'", "import 'x' as y", "from 'x' import y", "extends 'x'"])
def test_another_file_is_refused_by_that_name(tag: str) -> None:
    assert "another file" in refused(f"{{% {tag} %}}")


@pytest.mark.parametrize(
    "source", ["{% break %}", "{% continue %}", "{% if 1 %}" * 1000 + "{% endif %}" * 1000, "{{ 1 }}" * 50_000]
)
def test_a_program_that_cannot_be_compiled_is_refused_in_time(source: str) -> None:
    start = time.perf_counter()
    refused(source)
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize("source", AT_ONCE)
def test_a_huge_value_is_refused_before_it_is_made(source: str) -> None:
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    refused(source)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10 and time.perf_counter() - start < 20


@pytest.mark.parametrize("source", FOREVER)
def test_a_template_that_does_not_end_is_ended(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_limits, "MAX_STEPS", 100_000)
    monkeypatch.setattr(template_limits, "MAX_SECONDS", 1.0)
    assert "steps" in (said := refused(source)) or "seconds" in said


def test_steps_are_counted_the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_limits, "MAX_STEPS", 100)
    for _ in range(3):
        assert render("{% for i in range(97) %}x{% endfor %}") == "x" * 97  # and the call of range
        assert "more than 100 steps" in refused("{% for i in range(99) %}x{% endfor %}")


def test_no_memory_is_an_answer_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(source: str, marked: bool) -> None:
        raise MemoryError

    monkeypatch.setattr(chat_template, "_compile", fail)
    assert "a chat template that fits into memory" in refused("x")


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ 'a' ~ 1 ~ none }}", "a1None"), ("{{ [1, 2] + [3] }}", "[1, 2, 3]"), ("{{ '%s-%03d' % ('a', 7) }}", "a-007"),
        ("{{ '{:>4}|{}'.format('x', 3) }}", "   x|3"), ("{{ 'a\nb' | indent(2) }}", "a\n  b"),
        ("{{ 'ab' | center(4) }}", " ab "),
        ("{% for a, b in [(1, 2), (3, 4)] %}{{ a + b }}{% endfor %}", "37"), ("{{ [3, 1] | sort | join(', ') }}", "1, 3"),
        ("{{ 60 * 60 * 24 * 1000 }}", "86400000"), ("{{ {'a': [1]} | tojson(indent=1) }}", '{\n "a": [\n  1\n ]\n}'),
        ("{% for x in [1, 2, 3] %}{{ loop.index }}{{ loop.length }}{{ loop.last }}{% endfor %}", "13False23False33True"),
        ("{% for x in [[1, [2]], 3] recursive %}{{ loop(x) if x is iterable else x }}{% endfor %}", "123"),
        ("{% autoescape true %}{{ '<' ~ 'a' }}{% endautoescape %}", "&lt;a"), ("{{ [1, 2] | sum }}", "3"),
        ("{{ range(3) | map('string') | list }}", "['0', '1', '2']"), ("{{ x is defined }}{{ x }}", "False"),
        ("{% call(y) f() %}{{ y }}{% endcall %}", "E"), ("{{ 'a,b'.split(',')[-1].replace('b', 'c') }}", "c"),
    ],
)  # fmt: skip
def test_what_templates_do_in_earnest_is_as_ever(source: str, text: str) -> None:
    if text == "E":
        refused(source)
    else:
        assert render(source) == text


@pytest.mark.parametrize(("writes", "most"), [("striptags", 1_000_000), ("split('b')", 4_000_000)])
def test_texts_are_refused_above_the_size_that_costs_too_much(writes: str, most: int) -> None:
    text = writes if "(" in writes else f"x | {writes}"
    source = "{% set x = 'a' * SIZE %}{{ (" + ("x." if "(" in writes else "") + text + ") | length }}"
    assert render(source.replace("SIZE", str(most))) == ("1" if "(" in writes else str(most))
    refused(source.replace("SIZE", str(most + 1)))
