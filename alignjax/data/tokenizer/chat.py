"""Renders chat templates with jinja2, sandboxed and bounded: they are not trusted.

A template sees the same names as in transformers: ``messages``, ``tools`` and ``documents`` (None
if there are none), ``add_generation_prompt``, the special tokens by name (``bos_token``, ...),
``raise_exception``, ``strftime_now``, the filter ``tojson``, the statements ``break`` and
``continue``, and the block ``{% generation %}``. It can neither reach Python's attributes nor run
longer or write more than the limits below allow.
"""

import datetime
import functools
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox

from alignjax.data.records import DataError, Message
from alignjax.data.tokenizer import bounds
from alignjax.errors import UserError

# For conversational data with a tokenizer that has no template.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ '' if loop.first else '\n' }}"
    "{{ message.role | capitalize }}: {{ message.content }}{% endfor %}"
    "{{ '\nAssistant:' if add_generation_prompt }}"
)

REASONING = ("reasoning_content", "reasoning", "thinking")


def _guarded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    first = int(hasattr(function, "jinja_pass_arg"))  # the filtered value follows jinja's context

    @functools.wraps(function)  # keeps the mark that asks jinja for its context
    def guarded(*args: Any, **kwargs: Any) -> Any:
        bounds.check_time()
        if name in bounds.READING:
            args = (*args[:first], bounds.to_list(args[first]), *args[first + 1 :])
        value, *rest = args[first:]
        rest = [bounds.check_nested(x) for x in (*rest, *kwargs.values())]
        bounds.refuse_numbers(rest)
        if name in bounds.COMPARING:
            bounds.check_nested(value)
        elif name in ("string", "tojson", "join", "e", "escape", "forceescape") or (
            isinstance(value, bounds.HOLDERS) and not bounds.SHALLOW.fullmatch(name)
        ):
            bounds.charge_text(value)
        if name in bounds.GROWING:
            bounds.refuse_filter(name, inspect.signature(function).bind(*args, **kwargs).arguments)
        if name in ("batch", "slice", "groupby"):  # they copy the values into new lists
            numbers = [x for x in rest if isinstance(x, int)]
            bounds.charge(
                sum(numbers)
                + (len(value) if isinstance(value, bounds.SIZED) else bounds.MAX_NUMBER)
            )
        return bounds.charge_value(function(*args, **kwargs))

    return guarded


def _guarded_test(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def guarded(*args: Any) -> Any:
        bounds.check_time()
        first, *rest = args  # the tested value may be an iterator that is read later: leave it
        return function(bounds.check_nested(first), *(bounds.to_list(x) for x in rest))

    return guarded


class _Extension(jinja2.ext.Extension):
    """Renders ``{% generation %}`` blocks as their content; holds the functions of `bounds`."""

    tags = {"generation"}  # noqa: RUF012 (the name jinja looks for)
    tick, take_slice = staticmethod(bounds.tick), staticmethod(bounds.take_slice)
    check_nested, to_list = staticmethod(bounds.check_nested), staticmethod(bounds.to_list)
    charge_value = staticmethod(bounds.charge_value)
    concat = staticmethod(lambda *parts: "".join(str(bounds.charge_text(x)) for x in parts))

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node | list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Counts loop rounds, and checks operators, calls and filters that could use much memory."""

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
            if isinstance(node, jinja2.nodes.For) and node.test is not None:
                node.test = jinja2.nodes.Or(call, node.test).set_lineno(node.lineno)
        return _replace(tree, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        bounds.check_time()
        return super().getitem(obj, bounds.check_nested(argument))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        bounds.check_time()
        if operator == "**":
            bounds.refuse_numbers([left, right])
            if isinstance(right, int) and right > 1000:
                raise bounds.LimitError("raises to a power above 1000")
        if operator == "*":
            for items, times in ((left, right), (right, left)):
                size = len(items) if isinstance(items, str | list | tuple) else 0
                if size and isinstance(times, int) and size * times > bounds.budget.characters:
                    raise bounds.LimitError("writes too much text")
        if operator == "%" and isinstance(left, str):
            raise bounds.LimitError("formats text with '%'")
        return bounds.charge_value(super().call_binop(context, operator, left, right))

    def wrap_str_format(self, value: Any) -> Any:
        if isinstance(getattr(value, "__self__", None), str) and value.__name__.startswith(
            "format"
        ):
            raise bounds.LimitError("formats text with 'format'")
        return None

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        if __obj in (bounds.check_nested, bounds.to_list, bounds.charge_value):  # from `_replace`
            return __obj(*args)
        owner = None
        if __obj is not range and __obj is not __self.globals["range"]:
            bounds.check_time()
            owner = getattr(__obj, "__self__", None)
            name = getattr(__obj, "__name__", "")
            if isinstance(owner, str | int | float) and not bounds.METHODS.fullmatch(name):
                raise bounds.LimitError(f"calls {type(owner).__name__}.{name}")
            if not isinstance(__obj, jinja2.runtime.Macro):
                args = tuple(bounds.to_list(x) for x in args)
            values = [bounds.check_nested(x) for x in (owner, *args, *kwargs.values())]
            bounds.charge(len(values))
            bounds.refuse_numbers(values[1:])
            if isinstance(owner, str):
                bounds.refuse_method(name, owner, args)
        result = bounds.charge_value(super().call(__context, __obj, *args, **kwargs))
        return bounds.charge_parts(result) if isinstance(owner, str) else result


def _replace(tree: Any, attribute: Callable[[str], Any]) -> Any:
    """Replaces expressions that jinja's sandbox does not intercept by calls that check them.

    These are ``a ~ b``, ``a == b``, ``a in b``, ``{a: b}``, ``[a]``, ``a[:b]`` and ``set`` blocks.
    """
    for name, value in tree.iter_fields():
        if isinstance(value, list):
            value[:] = [
                _replace(item, attribute) if isinstance(item, jinja2.nodes.Node) else item
                for item in value
            ]
        elif isinstance(value, jinja2.nodes.Node):
            setattr(tree, name, _replace(value, attribute))

    def call(name: str, *parts: Any) -> Any:
        node = jinja2.nodes.Call(attribute(name), list(parts), [], None, None)
        return node.set_lineno(tree.lineno)

    if isinstance(tree, jinja2.nodes.Concat):
        return call("concat", *tree.nodes)
    if isinstance(tree, jinja2.nodes.Compare):
        tree.expr = call("check_nested", tree.expr)
    if isinstance(tree, jinja2.nodes.Operand):
        check = "to_list" if tree.op in ("in", "notin") else "check_nested"
        tree.expr = call(check, tree.expr)
    if isinstance(tree, jinja2.nodes.AssignBlock) and tree.filter is None:
        tree.filter = jinja2.nodes.Filter(
            None, "default", [], [], None, None
        )  # filters are charged
    if isinstance(tree, jinja2.nodes.List | jinja2.nodes.Dict) or (
        isinstance(tree, jinja2.nodes.Tuple) and tree.ctx == "load"
    ):
        return call("charge_value", tree)
    if isinstance(tree, jinja2.nodes.Pair):
        tree.key = call("check_nested", tree.key)
    if isinstance(tree, jinja2.nodes.Getitem) and isinstance(tree.arg, jinja2.nodes.Slice):
        ends = (tree.arg.start, tree.arg.stop, tree.arg.step)
        return call("take_slice", tree.node, *(x or jinja2.nodes.Const(None) for x in ends))
    return tree


class _TemplateError(UserError):
    """An error that a template raises through ``raise_exception``."""


class RefusedDialogueError(DataError):
    """A dialogue that the chat template refuses."""


def _raise(message: str) -> None:
    raise _TemplateError(message)


def _now(form: str) -> str:
    if len(form) > 1000:  # strftime needs many times the length in memory
        raise bounds.LimitError("writes a date of more than 1000 characters")
    return datetime.datetime.now().strftime(form)


def _reason(error: Exception) -> str:
    """Returns an error's message as one line of at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _to_json(value: Any, indent: int | None = None, ensure_ascii: bool = False) -> str:
    if indent is not None and not (isinstance(indent, int) and indent <= 16):
        raise bounds.LimitError("indents by more than 16")
    parts = []  # charged one by one: indentation makes the text far larger than the value
    for part in json.JSONEncoder(indent=indent, ensure_ascii=ensure_ascii).iterencode(value):
        if indent is not None:
            bounds.charge(len(part))
        parts.append(part)
    return "".join(parts)


@functools.cache
def _environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        # Nothing may run at compile time, before there is a budget: neither constant expressions
        # (optimized=False) nor constant output (a pass_eval_context function runs later).
        finalize=jinja2.pass_eval_context(lambda _, value: bounds.charge_text(value)),
        optimized=False,
        extensions=["jinja2.ext.loopcontrols", _Extension],
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    environment.filters["tojson"] = _to_json
    for key in bounds.REFUSED:
        environment.filters.pop(key, None)
    environment.filters = {
        key: _guarded_filter(key, function) for key, function in environment.filters.items()
    }
    del environment.globals["lipsum"]
    tests: dict[str, Any] = environment.tests  # jinja's types are too narrow
    environment.tests = {key: _guarded_test(test) for key, test in tests.items()}
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _now
    return environment


@functools.cache
def _compile(source: str, name: str) -> jinja2.Template:
    if len(source) > bounds.MAX_TEMPLATE:
        raise UserError(
            f"{name}: chat template: wanted at most {bounds.MAX_TEMPLATE} characters, found "
            f"{len(source)}"
        )
    try:
        return _environment().from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"{name}:{error.lineno}: chat template: {error.message}") from None
    except (RecursionError, MemoryError):
        raise UserError(f"{name}: chat template: nested too deeply") from None
    except Exception as error:  # the generated Python may be invalid in many ways
        raise UserError(f"{name}: chat template: {_reason(error)}") from None


def check_template(source: str, name: str) -> None:
    """Raises UserError, with ``name`` and the line, if a template has a syntax error."""
    _compile(source, name)


def reads(source: str, field: str) -> bool:
    """Whether a template mentions a variable or a field of messages, e.g. ``tools``."""
    return re.search(rf"\b{field}\b", source) is not None


def reads_reasoning(source: str) -> bool:
    """Whether a template renders the reasoning of a message, under any of its names."""
    return any(reads(source, field) for field in REASONING)


def _fields(turn: Message) -> dict[str, Any]:
    """Returns the fields of a turn, with reasoning under every name that templates read."""
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
      add_generation_prompt: whether to end with the beginning of the assistant's next turn.
      special_tokens: e.g. ``{"bos_token": "<s>"}``, visible to the template by these names.
      name: the file of the template, for messages.

    Raises:
      RefusedDialogueError: the template refuses this dialogue (``raise_exception``).
      UserError: the template is not valid, not safe, or over one of the limits.
    """
    template = _compile(source, name)
    turns = [_fields(turn) for turn in messages if turn.role != "tools"]
    tools = next((json.loads(turn.content) for turn in messages if turn.role == "tools"), None)
    bounds.budget.start(sum(len(x.content) + len(x.role) + len(x.more) for x in messages))
    limit = bounds.budget.characters
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
                raise bounds.LimitError("writes too much text")
            parts.append(part)
        text = "".join(parts)
        text.encode()  # fails on half of a surrogate pair, which no tokenizer accepts
        return text
    except _TemplateError as error:
        message = f"{name}: chat template refuses the dialogue: {_reason(error)}"
        raise RefusedDialogueError(message) from None
    except bounds.LimitError as error:
        raise UserError(f"{name}: chat template stopped: it {error}") from None
    except jinja2.sandbox.SecurityError as error:
        raise UserError(f"{name}: chat template is not safe: {_reason(error)}") from None
    except Exception as error:  # a template can raise any Python error
        raise UserError(f"{name}: chat template failed: {_reason(error)}") from None
