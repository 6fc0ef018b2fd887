"""Renders chat templates with jinja2, sandboxed and bounded: they come with models, from strangers.

A template sees what Hugging Face's do: ``messages``, ``tools`` and ``documents`` (None: there are
none), ``add_generation_prompt``, the special tokens by name (``bos_token``, ...),
``raise_exception``, ``strftime_now``, the filter ``tojson``, the statements ``break`` and
``continue``, and the block ``{% generation %}``. It can neither reach Python's attributes nor run
longer or write more than the limits below allow.
"""

import datetime
import functools
import json
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from alignjax.data.records import DataError, Message
from alignjax.errors import UserError

# For conversational data where the tokenizer brings no template.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ '' if loop.first else '\n' }}"
    "{{ message.role | capitalize }}: {{ message.content }}{% endfor %}"
    "{{ '\nAssistant:' if add_generation_prompt }}"
)

REASONING = ("reasoning_content", "reasoning", "thinking")

MAX_SECONDS = 10.0  # for one rendering
MAX_STEPS = 1_000_000  # loop rounds and macro calls in one rendering
MAX_EXTRA = 1_000_000  # characters a rendering may write or build beyond 8 times its input
MAX_NUMBER = 100_000  # the largest integer a template may pass to a function or filter
MAX_INTEGER = 2**63  # in size, of what a template computes
# What a template may call of texts. Others build much from little (translate, expandtabs), or what
# is not counted here (encode).
METHODS = re.compile(
    r"[lr]?strip|r?(find|index|partition|split)|splitlines|(starts|ends)with|remove(pre|suf)fix|upper|"
    r"lower|title|capitalize|casefold|swapcase|count|join|replace|center|[lr]just|zfill|is[a-z]+"
)
# Filters that chat templates do not use, and whose work is hard to bound.
REFUSED = ("format", "xmlattr", "wordwrap", "urlize", "striptags", "pprint")


class _Budget(threading.local):
    steps = 0
    characters = 0
    deadline = 0.0

    def start(self, characters: int) -> None:
        self.steps = MAX_STEPS
        self.characters = 8 * characters + MAX_EXTRA
        self.deadline = time.monotonic() + MAX_SECONDS


_budget = _Budget()


class _LimitError(jinja2.sandbox.SecurityError):
    """A template that asks for too much."""


def _tick() -> str:
    """Runs once per loop round and macro call."""
    _budget.steps -= 1
    if _budget.steps < 0:
        raise _LimitError(f"loops more than {MAX_STEPS} times")
    if time.monotonic() > _budget.deadline:
        raise _LimitError(f"runs longer than {MAX_SECONDS:g} seconds")
    return ""


def _built(value: Any) -> Any:
    """Charges the text or list an operation has built, and refuses a number that is too long."""
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        raise _LimitError("computes with integers beyond 64 bits")
    if isinstance(value, str | bytes | list | tuple):
        _budget.characters -= len(value)
        if _budget.characters < 0:
            raise _LimitError("writes too much text")
    return value


def _written(value: Any) -> Any:
    """Charges the text a value turns into: nested lists may be far larger written than held."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            pending.extend(item.keys())
            item = list(item.values())
        if isinstance(item, list | tuple):
            pending.extend(item)
        _budget.characters -= len(item) if isinstance(item, str | list | tuple) else 1
        if _budget.characters < 0:
            raise _LimitError("writes too much text")
    return value


def _refuse_growth(value: Any, args: Sequence[Any], name: str = "") -> None:
    """Refuses calls whose result may be far larger than what goes in."""
    if any(isinstance(arg, int) and abs(arg) > MAX_NUMBER for arg in args):
        raise _LimitError(f"uses a number above {MAX_NUMBER}")
    if name == "replace" and isinstance(value, str) and len(args) >= 2:
        old, new = str(args[0]), str(args[1])
        if value.count(old) * len(new) > max(_budget.characters, 0):
            raise _LimitError("writes too much text")
    if name == "indent" and isinstance(value, str):
        width = max((len(x) if isinstance(x, str) else int(x) for x in args), default=4)
        if (value.count("\n") + 1) * width > max(_budget.characters, 0):
            raise _LimitError("writes too much text")
    if name == "join" and args and isinstance(value, str | list | tuple):
        glue, items = (value, args[0]) if isinstance(value, str) else (str(args[0]), value)
        if len(glue) * len(list(items)) > max(_budget.characters, 0):
            raise _LimitError("writes too much text")


def _guarded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    takes_context = hasattr(function, "jinja_pass_arg")

    @functools.wraps(function)  # keeps the mark that asks jinja for its context
    def guarded(*args: Any, **kwargs: Any) -> Any:
        value, *rest = args[1:] if takes_context else args
        _refuse_growth(value, [*rest, *kwargs.values()], name)
        if name in ("string", "tojson", "pprint", "join", "e", "escape", "forceescape"):
            _written(value)
        return _built(function(*args, **kwargs))

    return guarded


class _Extension(jinja2.ext.Extension):
    """``{% generation %}...{% endgeneration %}``, rendered as its content; and the loop counter."""

    tags = {"generation"}  # noqa: RUF012 (the name jinja looks for)
    tick = staticmethod(_tick)
    joined = staticmethod(lambda *parts: "".join(str(_written(part)) for part in parts))

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node | list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Counts loop rounds, and checks operators, calls and filters that can blow up memory."""

    intercepted_binops = frozenset(["*", "**", "+", "%", "//"])

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        tree = super()._parse(source, name, filename)

        def attribute(field: str) -> jinja2.nodes.ExtensionAttribute:
            return jinja2.nodes.ExtensionAttribute(_Extension.identifier, field)

        bodies = (jinja2.nodes.For, jinja2.nodes.Macro, jinja2.nodes.CallBlock)
        node: Any
        for node in tree.find_all(bodies):
            call = jinja2.nodes.Call(attribute("tick"), [], [], None, None)
            node.body.insert(0, jinja2.nodes.ExprStmt(call).set_lineno(node.lineno))
        return _replace_concat(tree, attribute)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            _refuse_growth(None, [left, right])
            if isinstance(right, int) and right > 1000:
                raise _LimitError("raises to a power above 1000")
        if operator == "*":
            for items, times in ((left, right), (right, left)):
                size = len(items) if isinstance(items, str | list | tuple) else 0
                if size and isinstance(times, int) and size * times > _budget.characters:
                    raise _LimitError("writes too much text")
        if operator == "%" and isinstance(left, str):
            raise _LimitError("formats text with '%'")
        return _built(super().call_binop(context, operator, left, right))

    def wrap_str_format(self, value: Any) -> Any:
        if isinstance(getattr(value, "__self__", None), str) and value.__name__.startswith(
            "format"
        ):
            raise _LimitError("formats text with 'format'")
        return None

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        if __obj is not range and __obj is not __self.globals["range"]:
            owner = getattr(__obj, "__self__", None)
            name = getattr(__obj, "__name__", "")
            if isinstance(owner, str | int | float) and not METHODS.fullmatch(name):
                raise _LimitError(f"calls {type(owner).__name__}.{name}")
            _refuse_growth(owner, [*args, *kwargs.values()], name)
        return _built(super().call(__context, __obj, *args, **kwargs))


def _replace_concat(tree: Any, attribute: Callable[[str], Any]) -> Any:
    """Turns ``a ~ b``, which no hook of jinja's sees, into a call that is counted."""
    for name, value in tree.iter_fields():
        if isinstance(value, list):
            value[:] = [
                _replace_concat(item, attribute) if isinstance(item, jinja2.nodes.Node) else item
                for item in value
            ]
        elif isinstance(value, jinja2.nodes.Node):
            setattr(tree, name, _replace_concat(value, attribute))
    if isinstance(tree, jinja2.nodes.Concat):
        call = jinja2.nodes.Call(attribute("joined"), tree.nodes, [], None, None)
        return call.set_lineno(tree.lineno)
    return tree


class _TemplateError(UserError):
    """An error that a template raises about a row through ``raise_exception``."""


class RefusedDialogueError(DataError):
    """A dialogue that the chat template does not take."""


def _raise(message: str) -> None:
    raise _TemplateError(message)


def _to_json(value: Any, indent: int | None = None, ensure_ascii: bool = False) -> str:
    if indent is not None and not (isinstance(indent, int) and indent <= 16):
        raise _LimitError("indents by more than 16")
    return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii)


@functools.cache
def _compile(source: str, name: str) -> jinja2.Template:
    environment = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_written,
        optimized=False,  # constant expressions must not run at compile time, before any budget
        extensions=["jinja2.ext.loopcontrols", _Extension],
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    environment.filters["tojson"] = _to_json
    for key in REFUSED:
        environment.filters.pop(key, None)
    environment.filters = {
        key: _guarded_filter(key, function) for key, function in environment.filters.items()
    }
    del environment.globals["lipsum"]
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"{name}:{error.lineno}: chat template: {error.message}") from None
    except RecursionError:
        raise UserError(f"{name}: chat template: nested too deeply") from None


def check_template(source: str, name: str) -> None:
    """Raises UserError, naming ``name`` and the line, if a template has a syntax error."""
    _compile(source, name)


def reads(source: str, field: str) -> bool:
    """Tells whether a template mentions a variable or a field of messages, ``tools`` say."""
    return re.search(rf"\b{field}\b", source) is not None


def reads_reasoning(source: str) -> bool:
    """Tells whether a template renders the reasoning of a message, under any of its names."""
    return any(reads(source, field) for field in REASONING)


def _fields(turn: Message) -> dict[str, Any]:
    """What a template sees of a turn; reasoning under every name that templates look for."""
    fields = turn.fields()
    if "reasoning_content" in fields:
        fields |= dict.fromkeys(REASONING, fields["reasoning_content"])
    return fields


def render(
    source: str,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool,
    special_tokens: Mapping[str, str],
    name: str,
) -> str:
    """Renders a dialogue.

    Args:
      source: the template's text.
      messages: the turns.
      add_generation_prompt: whether to end with what introduces the assistant's next turn.
      special_tokens: e.g. ``{"bos_token": "<s>"}``, visible to the template by these names.
      name: the file of the template, for messages.

    Raises:
      RefusedDialogueError: the template refuses this dialogue (``raise_exception``).
      UserError: the template is not valid, not safe, or over one of the limits.
    """
    template = _compile(source, name)
    turns = [_fields(turn) for turn in messages if turn.role != "tools"]
    tools = next((json.loads(turn.content) for turn in messages if turn.role == "tools"), None)
    _budget.start(sum(len(x.content) + len(x.role) + len(x.more) for x in messages))
    limit = _budget.characters
    parts, size = [], 0
    try:
        for part in template.generate(
            messages=turns,
            tools=tools,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **special_tokens,
        ):
            size += len(part)
            if size > limit:
                raise _LimitError("writes too much text")
            parts.append(part)
    except _TemplateError as error:
        raise RefusedDialogueError(f"{name}: chat template refuses the dialogue: {error}") from None
    except _LimitError as error:
        raise UserError(f"{name}: chat template stopped: it {error}") from None
    except jinja2.sandbox.SecurityError as error:
        raise UserError(f"{name}: chat template is not safe: {error}") from None
    except (jinja2.TemplateError, RecursionError, OverflowError, MemoryError, ArithmeticError) as e:
        raise UserError(f"{name}: chat template failed: {str(e) or type(e).__name__}") from None
    except (TypeError, ValueError, AttributeError, LookupError) as error:
        raise UserError(f"{name}: chat template failed: {error}") from None
    return "".join(parts)
