"""Chat templates: what they can do, and what a hostile one cannot."""

import re
import subprocess
import sys

import pytest

from alignjax.data.records import DataError, Message
from alignjax.data.tokenizer import bounds, chat
from alignjax.errors import UserError

DIALOGUE = (Message("system", "be kind"), Message("user", "hi"))


def render(source: str, messages=DIALOGUE, prompt: bool = True) -> str:
    return chat.render(
        source,
        messages,
        add_generation_prompt=prompt,
        special_tokens={"bos_token": "<s>"},
        name="x.jinja",
    )


def test_plain_template_extends_the_prompt():
    prompt = render(chat.PLAIN_TEMPLATE)
    assert prompt == "System: be kind\nUser: hi\nAssistant:"
    whole = render(chat.PLAIN_TEMPLATE, (*DIALOGUE, Message("assistant", "yo")), False)
    assert whole == prompt + " yo"


def test_what_templates_of_models_use():
    source = (
        "{{- bos_token }}{% for m in messages %}"
        "{% if m.role == 'system' %}{% continue %}{% endif %}"
        "{% generation %}{{ m['content'] | trim ~ '!' }}{% endgeneration %}{% endfor %}"
        "{{ messages | tojson }}{{ strftime_now('%Y') | length }}"
        "{% set ns = namespace(n=1) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}{{ 'a' in 'ab' }}"
    )
    expected = '[{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]'
    assert render(source) == f"<s>hi!{expected}42True"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "not safe: access to attribute"),
        ("{{ messages.append(1) }}", "not safe: access to attribute 'append'"),
        ("{{ render.__globals__ }}", "'render' is undefined"),
        ("{% for i in range(10**9) %}x{% endfor %}", "Range too big"),
        ("{{ 'x' * 10**7 }}", "writes too much text"),
        ("{{ [[1] * 90000] * 90000 }}", "writes too much text"),
        ("{% for i in range(90000) %}{{ 'x' * 99 }}{% endfor %}", "writes too much text"),
        ("{% for i in range(90000) %}xxxxxxxxxxxxxxxxxxxxxxx{% endfor %}", "writes too much text"),
        ("{{ 'a'.center(10**9) }}", "uses a number above"),
        ("{{ 'a' | center(10**9) }}", "uses a number above"),
        ("{{ '%999999999d' % 1 }}", "formats text"),
        ("{{ '{:>999999999}'.format(1) }}", "formats text"),
        ("{{ ('a' * 90000).replace('a', 'b' * 90000) }}", "writes too much text"),
        ("{{ ('a' * 90000) | replace('a', 'b' * 90000) }}", "writes too much text"),
        ("{{ 9 ** 99999 ** 9 }}", "raises to a power"),
        *(
            (f"{{% set n = namespace(x='aaaa') %}}{{% for i in range(60) %}}{double}{{% endfor %}}",
             "writes too much text")
            for double in (
                "{% set n.x = n.x ~ n.x %}",
                "{% set n.x = n.x + n.x %}",
                "{% set n.x = [n.x, n.x] | join %}",
                "{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}",
            )
        ),
        ("{{ 'aaaa'.translate({97: 'a' * 90000}) }}", "calls str.translate"),
        ("{{ ('\\t' * 90000).expandtabs(90000) }}", "calls str.expandtabs"),
        ("{{ (7).to_bytes(99999, 'big') }}", "calls int.to_bytes"),
        ("{{ 'a'.encode('utf-32') }}", "calls str.encode"),
        (
            "{% set n = namespace(x=9) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}"
            "{% endfor %}",
            "computes with integers beyond 64 bits",
        ),
        ("{{ 99999 ** 999 }}", "computes with integers beyond 64 bits"),
        ("{{ ('\\n' * 90000) | indent(90000) }}", "writes too much text"),
        ("{{ ('\\n' * 90000) | indent('x' * 90000) }}", "writes too much text"),
        ("{{ ([[1]] * 90000) | tojson(indent=90000) }}", "indents by more than 16"),
        ("{% if %}", "x.jinja:1: chat template: Expected an expression"),
        ("line\n{{ x", "x.jinja:2: chat template: "),
        ("{{ messages[7].content.x }}", "chat template failed"),
        ("{{ 1 / 0 }}", "chat template failed: division by zero"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "chat template failed"),
    ],
)  # fmt: skip
def test_hostile_and_broken_templates_end_in_one_line(source, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        render(source)
    assert str(caught.value).startswith("x.jinja:")
    assert "\n" not in str(caught.value)


# 10 lists of 10 lists of ... 40 times: small to hold, endless to read.
DEEP = (
    "{% set n = namespace(a=(1,), b=(1,), d={'k': 1}) %}{% for i in range(40) %}"
    "{% set n.a = (n.a,) * 10 %}{% set n.b = (n.b,) * 10 %}{% set n.d = {'x': n.d, 'y': n.d} %}"
    "{% endfor %}"
)


@pytest.mark.parametrize(
    "use",
    [
        *(f"{{{{ n.a | {x} }}}}" for x in ("upper", "trim", "safe", "wordcount", "center")),
        *("{{ n.a | replace('1', '2') }}", "{{ 'x' | replace('x', n.a) }}", "{{ n.d | trim }}"),
        *("{{ n.a == n.b }}", "{{ n.a in [n.b] }}", "{{ n.a < n.b }}", "{{ {n.a: 1} | length }}"),
        *("{{ [n.a, n.b] | sort }}", "{{ [n.a, n.b] | max }}", "{{ [n.a] | unique | list }}"),
        *("{{ {}[n.a] }}", "{{ n.a is eq(n.b) }}", "{{ [n.b].index(n.a) }}"),
        "{{ dict([(n.a, 1)]) }}",
        *("{{ raise_exception(n.a) }}", "{{ n }}", "{{ n | upper }}", "{{ n.d.items() | upper }}"),
        "{{ [n.a] | selectattr(0, 'eq', [n.b]) | list }}",
    ],
)  # fmt: skip
def test_what_is_small_to_hold_and_endless_to_read_is_refused(use, monkeypatch):
    monkeypatch.setattr(bounds, "MAX_EXTRA", 10_000)
    with pytest.raises(UserError, match=r"stopped: it (holds too much|writes too much text)"):
        render(DEEP + use)


KEPT = (
    "{% set n = namespace(k=[]) %}{% for i in range(99999) %}"
    "{% set n.k = [n.k, KEPT] %}{% endfor %}"
)


@pytest.mark.parametrize(
    "use",
    [
        "{% set a = 'x' * 900000 %}" + KEPT.replace("KEPT", "a[1:]"),
        "{% set a = range(99999) | list %}" + KEPT.replace("KEPT", "a[1:]"),
        "{% set a = range(99999) | list %}" + KEPT.replace("KEPT", "a | batch(99999) | list"),
        "{% set a = range(99999) | list %}" + KEPT.replace("KEPT", "a | slice(1) | list"),
        "{% set a = range(99999) | list %}" + KEPT.replace("KEPT", "cycler(*a)"),
        "{{ ''.join(['x' * 90000] * 9999) | length }}",
        "{% set n = namespace(a=[1] * 90000) %}{% for i in range(800) %}{% set n.a = [n.a] %}"
        "{% endfor %}{{ n.a | tojson(indent=16) | length }}",
    ],
)  # fmt: skip
def test_what_is_kept_is_counted(use):
    with pytest.raises(UserError, match=r"stopped: it (writes too much text|holds too much)"):
        render(use)


def test_a_template_of_endless_length_is_not_parsed():
    with pytest.raises(
        UserError, match=r"^x.jinja: chat template: wanted at most 100000 characters, found 200008"
    ):
        render("{{ [" + "1," * 100000 + "] }}")


def test_what_the_bounds_leave_alone():
    source = (
        "{% set n = namespace(k=messages[1:]) %}{{ messages[::-1][0].content[:2] }}"
        "{{ n.k | length }}{{ messages == messages }}{{ 'hi' in messages[0].content }}"
        "{{ {'a': 1}['a'] }}{{ [3, 1] | sort }}{{ {'b': [1]} | tojson(indent=1) }}"
        "{{ messages[0] is mapping }}{{ 1 is lt(2) }}{{ messages | map(attribute='role') | join }}"
        "{{ '-'.join(['a', 'b']) }}{{ ['c', 'd'] | join('+') }}"
    )
    said = (Message("user", "hi you"), Message("assistant", "well"))
    found = chat.render(
        source, said, add_generation_prompt=False, special_tokens={}, name="x.jinja"
    )
    assert found == 'we1TrueTrue1[1, 3]{\n "b": [\n  1\n ]\n}TrueTrueuserassistanta-bc+d'


def test_endless_loops_end_and_memory_stays_bounded():
    program = (
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))\n"
        "from alignjax.data.tokenizer import bounds, chat\n"
        "bounds.MAX_STEPS = 50_000\n"
        "loops = '{% for i in range(9**5) %}{% for j in range(9**5) %}{% endfor %}{% endfor %}'\n"
        "calls = '{% macro f(n) %}{% if n %}{{f(n-1)}}{{f(n-1)}}{% endif %}{% endmacro %}'\n"
        "for text in (loops, calls + '{{ f(50) }}'):\n"
        "    try: chat.render(text, (), add_generation_prompt=True, special_tokens={}, name='x')\n"
        "    except Exception as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    stopped = "x: chat template stopped: it loops more than 50000 times\n"
    assert done.stdout == stopped * 2, done.stderr


def test_time_is_bounded(monkeypatch):
    monkeypatch.setattr(bounds, "MAX_SECONDS", 0.05)
    loops = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(UserError, match=r"runs longer than 0\.05 seconds"):
        render(loops)


def test_loops_are_counted(monkeypatch):
    monkeypatch.setattr(bounds, "MAX_STEPS", 1000)
    with pytest.raises(UserError, match="loops more than 1000 times"):
        render("{% for i in range(2000) %}{# counted #}{% endfor %}done")


def test_a_template_may_refuse_a_dialogue():
    with pytest.raises(DataError, match=r"x\.jinja: chat template refuses the dialogue: no system"):
        render("{{ raise_exception('no system') }}")


def test_long_dialogues_are_within_the_limits():
    turns = tuple(Message(("user", "assistant")[i % 2], "hello") for i in range(10_001))
    assert render(chat.PLAIN_TEMPLATE, turns).count("\n") == 10_001
    long = (Message("user", "x" * 5_000_000),)
    assert len(render(chat.PLAIN_TEMPLATE, long)) == 5_000_017
