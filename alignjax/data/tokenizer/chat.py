"""Renders chat templates with jinja2, sandboxed and bounded, because models bring their own.

A template sees what Hugging Face's do: ``messages``, ``tools`` and ``documents`` (None: there are
none), ``add_generation_prompt``, the special tokens by name (``bos_token``, ...),
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

# For conversational data where the tokenizer brings no template.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ '' if loop.first else '\n' }}"
    "{{ message.role | capitalize }}: {{ message.content }}{% endfor %}"
    "{{ '\nAssistant:' if add_generation_prompt }}"
)

REASONING = ("reasoning_content", "reasoning", "thinking")


def _guarded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    first = int(hasattr(function, "jinja_pass_arg"))  # where the value is, after jinja's context

    @functools.wraps(function)  # keeps the mark that asks jinja for its context
    def guarded(*args: Any, **kwargs: Any) -> Any:
        bounds.check_time()
        if name in bounds.READING:
            args = (*args[:first], bounds.listed(args[first]), *args[first + 1 :])
        value, *rest = args[first:]
        rest = [bounds.held(x) for x in (*rest, *kwargs.values())]
        bounds.refuse_numbers(rest)
        if name in bounds.COMPARING:
            bounds.held(value)
        elif name in ("string", "tojson", "join", "e", "escape", "forceescape") or (
            isinstance(value, bounds.HOLDERS) and not bounds.SHALLOW.fullmatch(name)
        ):
            bounds.written(value)
        if name in bounds.GROWING:
            bounds.refuse_filter(name, inspect.signature(function).bind(*args, **kwargs).arguments)
        if name in ("batch", "slice", "groupby"):  # their lists hold it all again
            numbers = [x for x in rest if isinstance(x, int)]
            bounds.charge(
                sum(numbers)
                + (len(value) if isinstance(value, bounds.SIZED) else bounds.MAX_NUMBER)
            )
        return bounds.built(function(*args, **kwargs))

    return guarded


def _guarded_test(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def guarded(*args: Any) -> Any:
        bounds.check_time()
        first, *rest = args  # of which an iterator stays as it is: it may be read later
        return function(bounds.held(first), *(bounds.listed(x) for x in rest))

    return guarded


class _Extension(jinja2.ext.Extension):
    """``{% generation %}...{% endgeneration %}``, rendered as its content; and the loop counter."""

    tags = {"generation"}  # noqa: RUF012 (the name jinja looks for)
    tick = staticmethod(bounds.tick)
    held, cut = staticmethod(bounds.held), staticmethod(bounds.cut)
    listed, built = staticmethod(bounds.listed), staticmethod(bounds.built)
    joined = staticmethod(lambda *parts: "".join(str(bounds.written(part)) for part in parts))

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
            if isinstance(node, jinja2.nodes.For) and node.test is not None:
                node.test = jinja2.nodes.Or(call, node.test).set_lineno(node.lineno)
        return _replace(tree, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        bounds.check_time()
        return super().getitem(obj, bounds.held(argument))

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
        return bounds.built(super().call_binop(context, operator, left, right))

    def wrap_str_format(self, value: Any) -> Any:
        if isinstance(getattr(value, "__self__", None), str) and value.__name__.startswith(
            "format"
        ):
            raise bounds.LimitError("formats text with 'format'")
        return None

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        if __obj in (bounds.held, bounds.listed, bounds.built):  # of our own making
            return __obj(*args)
        owner = None
        if __obj is not range and __obj is not __self.globals["range"]:
            bounds.check_time()
            owner = getattr(__obj, "__self__", None)
            name = getattr(__obj, "__name__", "")
            if isinstance(owner, str | int | float) and not bounds.METHODS.fullmatch(name):
                raise bounds.LimitError(f"calls {type(owner).__name__}.{name}")
            if not isinstance(__obj, jinja2.runtime.Macro):
                args = tuple(bounds.listed(x) for x in args)
            given = [bounds.held(x) for x in (owner, *args, *kwargs.values())]
            bounds.charge(len(given))
            bounds.refuse_numbers(given[1:])
            if isinstance(owner, str):
                bounds.refuse_method(name, owner, args)
        result = bounds.built(super().call(__context, __obj, *args, **kwargs))
        return bounds.pieces(result) if isinstance(owner, str) else result


def _replace(tree: Any, attribute: Callable[[str], Any]) -> Any:
    """Makes calls of what no hook of jinja's sees.

    That is ``a ~ b``, ``a == b``, ``a in b``, ``{a: b}``, ``[a]``, ``a[:b]`` and blocks of text.
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
        made = jinja2.nodes.Call(attribute(name), list(parts), [], None, None)
        return made.set_lineno(tree.lineno)

    if isinstance(tree, jinja2.nodes.Concat):
        return call("joined", *tree.nodes)
    if isinstance(tree, jinja2.nodes.Compare):
        tree.expr = call("held", tree.expr)
    if isinstance(tree, jinja2.nodes.Operand):
        tree.expr = call("listed" if tree.op in ("in", "notin") else "held", tree.expr)
    if isinstance(tree, jinja2.nodes.AssignBlock) and tree.filter is None:
        tree.filter = jinja2.nodes.Filter(None, "default", [], [], None, None)  # which is counted
    if isinstance(tree, jinja2.nodes.List | jinja2.nodes.Dict) or (
        isinstance(tree, jinja2.nodes.Tuple) and tree.ctx == "load"
    ):
        return call("built", tree)
    if isinstance(tree, jinja2.nodes.Pair):
        tree.key = call("held", tree.key)
    if isinstance(tree, jinja2.nodes.Getitem) and isinstance(tree.arg, jinja2.nodes.Slice):
        ends = (tree.arg.start, tree.arg.stop, tree.arg.step)
        return call("cut", tree.node, *(x or jinja2.nodes.Const(None) for x in ends))
    return tree


class _TemplateError(UserError):
    """An error that a template raises about a row through ``raise_exception``."""


class RefusedDialogueError(DataError):
    """A dialogue that the chat template does not take."""


def _raise(message: str) -> None:
    raise _TemplateError(message)


def _now(form: str) -> str:
    if len(form) > 1000:  # the C library takes many times as much memory
        raise bounds.LimitError("writes a date of more than 1000 characters")
    return datetime.datetime.now().strftime(form)


def _reason(error: Exception) -> str:
    """What is wrong, in one line of a length that can be read."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _to_json(value: Any, indent: int | None = None, ensure_ascii: bool = False) -> str:
    if indent is not None and not (isinstance(indent, int) and indent <= 16):
        raise bounds.LimitError("indents by more than 16")
    parts = []  # one by one: an indented list is far larger than what it holds
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
        # Constant expressions must not run at compile time, before any budget: nor what is printed.
        finalize=jinja2.pass_eval_context(lambda _, value: bounds.written(value)),
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
    tests: dict[str, Any] = environment.tests  # as jinja has typed them, they take nothing
    environment.tests = {key: _guarded_test(test) for key, test in tests.items()}
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _now
    return environment


@functools.cache
def _compile(source: str, name: str) -> jinja2.Template:
    if len(source) > bounds.MAX_TEMPLATE:
        raise UserError(
            f"{name}: chat template: it has {len(source)} characters, of {bounds.MAX_TEMPLATE}"
        )
    try:
        return _environment().from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"{name}:{error.lineno}: chat template: {error.message}") from None
    except (RecursionError, MemoryError):
        raise UserError(f"{name}: chat template: nested too deeply") from None
    except Exception as error:  # the Python that it becomes may be wrong in many ways
        raise UserError(f"{name}: chat template: {_reason(error)}") from None


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
        text.encode()  # a half of a character, which no tokenizer takes
        return text
    except _TemplateError as error:
        said = f"{name}: chat template refuses the dialogue: {_reason(error)}"
        raise RefusedDialogueError(said) from None
    except bounds.LimitError as error:
        raise UserError(f"{name}: chat template stopped: it {error}") from None
    except jinja2.sandbox.SecurityError as error:
        raise UserError(f"{name}: chat template is not safe: {_reason(error)}") from None
    except Exception as error:  # whatever Python says of what the template does
        raise UserError(f"{name}: chat template failed: {_reason(error)}") from None
