"""A command line made of a typed function, by the library tyro.

A command is a function whose parameters are typed and documented (Google style):

    def evaluate(run: Positional[Path], *, seeds: int = 5, training: GuidanceTraining = GuidanceTraining()) -> int:
        '''Evaluate a run. …'''

with an entry for each parameter under "Args:" of its docstring.

A parameter becomes a flag, or with `Positional` an argument. One that holds a dataclass becomes one flag per field,
nested dataclasses included, with the field's documentation as help; `FromFlags` beside its type says what differs. A
flag has the field's name; where two would have the same, the parent's name stands in front.

What the user gives is collected as changes, and one function makes the value of them: by default the parameter's own
default, changed. So a folder's saved settings, or those of `--quick`, are changed in the same way.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    NoReturn,
    TypedDict,
    Union,
    get_args,
    get_origin,
)

from qhw_diffusion.config import Config, field_docs, field_hints
from qhw_diffusion.errors import InvalidInputError, QhwError, UnknownNameError

if TYPE_CHECKING:
    from qhw_diffusion.runs.place import Place


class UsageError(Exception):
    """Words of a command line that its command does not take."""


@dataclass
class Call:
    """A command with its arguments, ready to run."""

    run: Callable[[], int]
    place: Place | None = None
    """Run folder the command works in, if it has one."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """What the command is called with."""


@dataclass(frozen=True)
class FromFlags:
    """What differs between a dataclass and its flags, beside a parameter's type: `Annotated[Class, FromFlags(…)]`.

    Paths are dotted names of fields, such as ``guidance.n_steps``.
    """

    make: Callable[..., Any] | None = None
    """Function that makes the value from the changes given on the command line, a nested mapping of fields: its first
    parameter. Its other parameters are those of the command that stand before this one, by name. Without it the
    parameter's default is changed (`changed`)."""
    skip: tuple[str, ...] = ()
    """Fields without a flag."""
    rename: Mapping[str, str] = field(default_factory=dict)
    """Flags of single fields, without the dashes."""
    prefix: Mapping[str, str] = field(default_factory=dict)
    """Prefix of the flags of a nested configuration."""
    help: Mapping[str, str] = field(default_factory=dict)
    """Help texts of single fields in this command, in place of the field's own."""


class Repeated:
    """Mark of a tuple of texts that are one word each: `Annotated[…, Repeated]`.

    A flag is given several times, once for each; an argument (`Positional`) takes all words one after the other.
    Other tuples are one word with commas between their entries, which a text may hold itself.
    """


@dataclass(frozen=True)
class Flag:
    """One flag or argument of a command."""

    name: str
    """Name with its dashes; the upper-case name of an argument."""
    help: str
    """Help text."""
    default: str
    """Default as it is shown; empty where there is none."""


def changed(default: Any, given: Mapping[str, Any]) -> Any:
    """A copy of a dataclass with fields changed, nested ones too; checked again.

    Args:
        default: the dataclass, or None where `given` is to be empty.
        given: new values by field; a mapping changes a nested dataclass.

    Raises:
        InvalidInputError: values that the dataclass does not take.
    """
    if not given:
        return default
    changes = {}
    for name, value in given.items():
        if isinstance(value, Mapping):
            if not value:
                continue
            inner = getattr(default, name)
            if inner is None:
                kind = _dataclass_of(field_hints(type(default))[name])
                assert kind is not None
                value = _checked(kind, kind, value)
            else:
                value = changed(inner, value)
        changes[name] = value
    return _checked(type(default), partial(dataclasses.replace, default), changes)


def _checked(cls: type, make: Callable[..., Any], values: Mapping[str, Any]) -> Any:
    try:
        return make(**values)
    except QhwError:
        raise
    except (TypeError, ValueError) as error:  # a configuration of a user's own
        raise InvalidInputError(f"{cls.__name__} does not take these values: {error}") from error


def read_call(function: Callable[..., int], words: Sequence[str], *, prog: str, command_line: str) -> Call:
    """A typed function with the arguments that `words` give.

    Args:
        function: the command (see the head of this module).
        words: command line without the command's own words.
        prog: command's own words, for help and messages.
        command_line: whole command line, masked: what a run folder records.

    Raises:
        UsageError: words that it does not take.
        SystemExit: after its help.
    """
    from qhw_diffusion.runs.place import Place

    parameters = list(_parameters(function))
    given = _parsed(function, parameters, words, prog)
    arguments: dict[str, Any] = {p.name: given[p.name] for p in parameters if p.cls is None}
    place = None
    for parameter in parameters:
        if parameter.cls is not None:
            value = parameter.made(given.get(parameter.name, {}), arguments)
            if isinstance(value, Place):
                place = value = dataclasses.replace(value, command=command_line)
            arguments[parameter.name] = value
    return Call(lambda: function(**arguments), place, arguments)


def flags_of(function: Callable[..., int]) -> list[Flag]:
    """All flags and arguments of a command."""
    return [flag for parameter in _parameters(function) for flag in parameter.flags]


@dataclass
class _Parameter:
    """A parameter of a command: its annotation and default for tyro, and its flags."""

    name: str
    annotation: Any
    default: Any
    flags: list[Flag]
    cls: type | None = None
    settings: FromFlags = FromFlags()
    shown: Any = None

    def made(self, given: Mapping[str, Any], arguments: Mapping[str, Any]) -> Any:
        if self.settings.make is None:
            return changed(self.shown, given)
        others = list(inspect.signature(self.settings.make).parameters)[1:]
        return self.settings.make(given, **{name: arguments[name] for name in others})


def _parameters(function: Callable[..., int]) -> Iterator[_Parameter]:
    from docstring_parser import parse

    entries = parse(function.__doc__ or "").params
    docs = {entry.arg_name: _sentence(" ".join((entry.description or "").split())) for entry in entries}
    parameters = inspect.signature(function, eval_str=True).parameters
    names = _Names([name.rstrip("_") for name, p in parameters.items() if _dataclass_of(p.annotation) is None])
    for name, parameter in parameters.items():
        cls = _dataclass_of(parameter.annotation)
        if cls is None:
            yield _plain(parameter, docs.get(name, ""))
        else:
            yield _settings(parameter, cls, docs.get(name, ""), names)


def _plain(parameter: inspect.Parameter, text: str) -> _Parameter:
    """A parameter of one value."""
    hint, missing = parameter.annotation, parameter.default is inspect.Parameter.empty
    base = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    default = None if missing else _text(parameter.default)
    word = parameter.name.rstrip("_")  # the ending of a word that Python keeps for itself
    if Repeated in getattr(hint, "__metadata__", ()):
        from tyro.conf import UseAppendAction

        argument = _is_positional(hint)
        metavar = f"{_upper(word)} [{_upper(word)} …]" if argument else "TEXT"
        several: Any = _annotated(list[str], text, default, name=word, metavar=metavar)
        several = Annotated[several, _positional_mark() if argument else UseAppendAction]
        return _Parameter(parameter.name, several, [], [Flag(_upper(word) if argument else _dashed(word), text, "")])
    if not _is_positional(hint):
        annotation, shown = _annotated(base, text, default, name=word), _dashed(word)
    else:
        shown = _upper(word)
        metavar = shown if missing else f"[{shown}]"
        annotation = Annotated[_annotated(base, text, default, name=word, metavar=metavar), _positional_mark()]
    return _Parameter(parameter.name, annotation, parameter.default, [Flag(shown, text, default or "")])


def _settings(parameter: inspect.Parameter, cls: type, text: str, names: _Names) -> _Parameter:
    """A parameter that holds a dataclass."""
    from tyro.conf import arg

    marks = getattr(parameter.annotation, "__metadata__", ())
    settings = next((mark for mark in marks if isinstance(mark, FromFlags)), FromFlags())
    missing = parameter.default is inspect.Parameter.empty
    shown = _shown_instance(cls) if missing else parameter.default
    flags: list[Flag] = []
    named = names.add(cls, settings, parameter.name)
    changes = _changes_type(cls, shown, named, (parameter.name,), flags, settings.help)
    # a flat configuration is a group of flags with a head of its own; the rest stands among the command's options
    flat = issubclass(cls, Config) and not any(_dataclass_of(hint) for hint in field_hints(cls).values())
    head = arg(name=parameter.name, help=text) if flat else arg(name="", help="")
    annotation = Annotated[changes, head]  # type: ignore[valid-type]
    return _Parameter(parameter.name, annotation, inspect.Parameter.empty, flags, cls, settings, shown)


class _Names:
    """Flag names of a command: a field's own name where it is unique, with its parent's in front where it is not."""

    def __init__(self, plain: Sequence[str]) -> None:
        self.plain = {name.replace("_", "-") for name in plain}

    def add(self, cls: type, settings: FromFlags, parameter: str) -> dict[tuple[str, ...], str]:
        """Names of the fields of one dataclass, by path; those without a flag are left out."""
        found: dict[tuple[str, ...], str] = {}
        fixed: set[tuple[str, ...]] = set()
        for path in _paths(cls, settings.skip):
            dotted = ".".join(path)
            parent = ".".join(path[:-1])
            if dotted in settings.rename:
                found[path] = settings.rename[dotted]
            elif parent in settings.prefix:
                found[path] = f"{settings.prefix[parent]}-{path[-1]}"
            else:
                found[path] = path[-1]
                continue
            fixed.add(path)
        names = list(found.values())
        for path, name in list(found.items()):
            rivals = [other for other, its in found.items() if its == name and other != path]
            nearest = all(len(other) > len(path) for other in rivals) and not any(other in fixed for other in rivals)
            if path not in fixed and ((rivals and not nearest) or name in self.plain):
                names[list(found).index(path)] = f"{path[-2] if len(path) > 1 else parameter}-{name}"
        named = {path: name.replace("_", "-") for path, name in zip(found, names, strict=True)}
        for path, name in named.items():
            if name in self.plain:
                raise InvalidInputError(f"{cls.__name__}.{'.'.join(path)}: there is a flag --{name} already")
            self.plain.add(name)
        return {(parameter, *path): name for path, name in named.items()}


def _paths(cls: type, skip: tuple[str, ...], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    hints = field_hints(cls)
    for entry in dataclasses.fields(cls):
        here = (*path, entry.name)
        if ".".join(here) in skip or not entry.init:
            continue
        nested = _dataclass_of(hints[entry.name])
        if nested is not None:
            yield from _paths(nested, skip, here)
        elif hints[entry.name] is bool or _reader(hints[entry.name]) is not None:
            yield here


def _changes_type(
    cls: type,
    shown: Any,
    names: Mapping[tuple[str, ...], str],
    path: tuple[str, ...],
    flags: list[Flag],
    texts: Mapping[str, str],
) -> Any:
    """A dictionary type with an entry for each flag of a dataclass: an entry that is not given is not in it."""
    from tyro.conf import arg

    hints, docs, entries = field_hints(cls), field_docs(cls), {}
    for entry in dataclasses.fields(cls):
        here = (*path, entry.name)
        value = getattr(shown, entry.name) if shown is not None else _default_of(entry)
        text = _sentence(texts.get(".".join(here[1:])) or docs.get(entry.name, ""))
        nested = _dataclass_of(hints[entry.name])
        if nested is not None and any(name[: len(here)] == here for name in names):
            inner = _changes_type(nested, value, names, here, flags, texts)
            entries[entry.name] = Annotated[inner, arg(help=text)]
        elif here in names:
            hint = "" if value is dataclasses.MISSING else _text(value)
            entries[entry.name] = _annotated(hints[entry.name], text, hint, name=names[here])
            flags.append(Flag(_dashed(names[here]), text, hint))
    return TypedDict(f"{cls.__name__}Changes", entries, total=False)  # type: ignore[operator]


def _annotated(
    hint: Any, text: str, default: str | None, *, name: str | None = None, metavar: str | None = None
) -> Any:
    from tyro.conf import arg

    reader = _reader(hint)
    if metavar is None and hint is not bool and reader is not None:
        metavar = reader[0]
    shown = None if default is None else f"(default: {default})" if default else ""
    if get_origin(hint) in (Union, types.UnionType):  # of which tyro is to see what words can give
        hint = Union[tuple(part for part in get_args(hint) if part is type(None) or _reader(part) is not None)]  # noqa: UP007
    return Annotated[hint, arg(name=name, help=text, help_behavior_hint=shown, metavar=metavar)]


def _parsed(
    function: Callable[..., int], parameters: Sequence[_Parameter], words: Sequence[str], prog: str
) -> dict[str, Any]:
    """The arguments given, by parameter; a dataclass's as a nested mapping of what was given."""
    import tyro
    from docstring_parser import parse

    def collect(**arguments: Any) -> dict[str, Any]:
        return arguments

    kind = inspect.Parameter.KEYWORD_ONLY
    collect.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(p.name, kind, default=p.default, annotation=p.annotation) for p in parameters]
    )
    collect.__annotations__ = {p.name: p.annotation for p in parameters}
    names = [flag.name for p in parameters for flag in p.flags]

    def refuse(event: Any) -> NoReturn:
        raise UsageError(_refusal(event, names))

    doc = parse(function.__doc__ or "")
    about = "\n\n".join(part for part in (doc.short_description, doc.long_description) if part)
    with _refused_by(refuse):
        return tyro.cli(  # type: ignore[no-any-return]
            collect,
            prog=prog,
            description=about,
            args=list(words),
            config=(tyro.conf.OmitArgPrefixes,),
            registry=_registry(),
        )


def _refused_by(refuse: Callable[[Any], NoReturn]) -> AbstractContextManager[None]:
    """Within it `refuse` is given tyro's refusals as data; tests/test_cli.py guards that.

    The one way to them is a private module of tyro. Should a version lack it, tyro tells what is wrong in its own words
    and ends the command with its code 2, which is ours too.
    """
    try:
        from tyro._errors import on_parse_error
    except ImportError:
        return nullcontext()
    return on_parse_error(refuse)


def _refusal(event: Any, names: Sequence[str]) -> str:
    """What is wrong with a command line, in one sentence."""
    kind = type(event).__name__
    if kind == "MissingArgs":
        return f"these are missing: {', '.join(_shown_name(context.arg) for context in event.missing_arguments)}"
    if kind == "UnrecognizedArgs":
        text = f"unrecognized arguments: {' '.join(event.tokens)}"
        near = [
            name
            for token in event.tokens
            if token.startswith("--")
            for name in difflib.get_close_matches(token.partition("=")[0].replace("_", "-"), names, n=3)
        ]
        return f"{text}; did you mean {', '.join(near)}?" if near else text
    if kind == "BadValue":
        return f"{_shown_name(event.argument)} needs a value"
    if kind == "InstantiationFailure" and event.argument is not None:
        return f"{_shown_name(event.argument)}: {event.message}"
    return f"{getattr(event, 'message', '') or kind}; --help tells the options"


def _shown_name(argument: Any) -> str:
    return str(argument.lowered.metavar).strip("[]") if argument.is_positional() else str(argument.display_name())


# -- values ------------------------------------------------------------------------------------------------------------


def _registry() -> Any:
    """Rules by which tyro reads values: one word each, tuples with commas between their entries."""
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec

    registry = ConstructorRegistry()

    @registry.primitive_rule
    def rule(info: Any) -> Any:
        found = _reader(info.type)
        if found is None:
            return None
        metavar, read = found
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar=metavar,
            instance_from_str=lambda words: read(words[0]),
            is_instance=lambda value: True,
            str_from_instance=lambda value: [_text(value)],
        )

    return registry


def _reader(hint: Any) -> tuple[str, Callable[[str], Any]] | None:
    """What stands for a value in help, and how a word is read; None for a type that no word can give.

    The function raises ValueError for a word that is no such value.
    """
    if hint in _WORDS:
        return _WORDS[hint]
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "{" + ",".join(map(str, parts)) + "}", lambda word: _one_of(word, parts)
    if origin in (Union, types.UnionType):
        # what no word gives, such as a function of a user's own, is named by a text beside it
        ordered = sorted((part for part in parts if part is not type(None)), key=lambda part: part is str)
        known = [reader for reader in map(_reader, ordered) if reader is not None]
        if not known:
            return None
        return "|".join(metavar for metavar, _ in known), lambda word: _first(word, [r for _, r in known], parts)
    if origin is tuple:
        many = len(parts) == 2 and parts[1] is Ellipsis
        inner = [_reader(part) for part in (parts[:1] if many else parts)]
        if None in inner:
            return None
        known = [reader for reader in inner if reader is not None]
        metavar = f"{known[0][0]},…" if many else ",".join(metavar for metavar, _ in known)
        return metavar, lambda word: _entries(word, [read for _, read in known], many=many)
    return None


def _whole(word: str) -> int:
    try:
        number = int(word)
    except ValueError:
        raise ValueError(f"{word[:40]!r} is no whole number") from None
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{word[:40]} has more than 64 bits")
    return number


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise ValueError(f"{word!r} is no number") from None


def _truth(word: str) -> bool:
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if word.lower() not in known:
        raise ValueError(f"{word!r} is neither yes nor no")
    return known[word.lower()]


_WORDS: dict[Any, tuple[str, Callable[[str], Any]]] = {
    int: ("N", _whole),
    float: ("X", _number),
    str: ("TEXT", str),
    Path: ("PATH", Path),
    bool: ("YES|NO", _truth),
}


def _one_of(word: str, allowed: Sequence[Any]) -> Any:
    for value in allowed:
        if str(value) == word:
            return value
    raise UnknownNameError.of("value", word, map(str, allowed))


def _first(word: str, readers: Sequence[Callable[[str], Any]], parts: Sequence[Any]) -> Any:
    if word == "None" and type(None) in parts:
        return None
    problems = []
    for read in readers:
        try:
            return read(word)
        except ValueError as error:
            problems.append(str(error))
    raise ValueError("; ".join(problems))


def _entries(word: str, readers: Sequence[Callable[[str], Any]], *, many: bool) -> tuple[Any, ...]:
    words = [entry.strip() for entry in word.split(",") if entry.strip()]
    if many:
        return tuple(readers[0](entry) for entry in words)
    if len(words) != len(readers):
        raise ValueError(f"{word!r} has {len(words)} entries; {len(readers)} are needed, with commas between them")
    return tuple(read(entry) for read, entry in zip(readers, words, strict=True))


def _text(value: Any) -> str:
    """A default as help shows it, and as the command line takes it; empty for none."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (tuple, list)):
        return ",".join(_text(entry) for entry in value)
    return str(value)


def _dataclass_of(annotation: Any) -> type | None:
    """The dataclass that an annotation is, or holds beside None."""
    if get_origin(annotation) is Annotated:
        return _dataclass_of(get_args(annotation)[0])
    options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return next((o for o in options if isinstance(o, type) and dataclasses.is_dataclass(o)), None)


def _is_positional(annotation: Any) -> bool:
    return get_origin(annotation) is Annotated and _positional_mark() in annotation.__metadata__


def _positional_mark() -> Any:
    from tyro.conf import Positional

    return get_args(Positional[int])[1]


def _shown_instance(cls: type) -> Any:
    """An instance of defaults, or None for a class with fields that have none."""
    return None if any(_default_of(f) is dataclasses.MISSING for f in dataclasses.fields(cls)) else cls()


def _default_of(entry: dataclasses.Field[Any]) -> Any:
    return entry.default if entry.default_factory is dataclasses.MISSING else entry.default_factory()


def _sentence(text: str) -> str:
    """The text with a capital letter in front, unless it begins with a name such as g0 or *.csv."""
    text = text.replace("``", "")
    first = text.split(" ")[0].strip(",.:;")
    return text[:1].upper() + text[1:] if first.isascii() and first.isalpha() else text


def _upper(name: str) -> str:
    return name.replace("_", "-").upper()


def _dashed(name: str) -> str:
    return "--" + name.replace("_", "-")
