"""Masks what looks like a credential, whoever's it is. Time is linear in the length of the text."""

from __future__ import annotations

import base64
import binascii
import re

MASK = "(token hidden)"

# A value's name ends in one of these words, whatever stands before it: access_token, apiToken, QISKIT_IBM_TOKEN.
_PASSWORDS = r"passw(?:or)?d(?:_ntlm)?|passphrase"
_NAMES = rf"token|jwt|secret|(?:api|access|secret|private|signing)[\s_-]?key|authorization|cookie|{_PASSWORDS}"
# Quotes as they are, behind the backslashes of strings in strings, in addresses, and in HTML
_QUOTE = r"(?:\\|%5C)*(?:[\"'`]|%2[27]|&quot;|&\#(?:3[49]|x2[27]);)"
_SPACE = r"(?:\s|\\+[nrt]|%20)"
# A quoted name may be followed by a comma: headers as pairs, arguments as a list
_NAMED = re.compile(
    rf"(?P<option>(?<![\w-])--[\w-]{{0,40}})?(?P<name>{_NAMES}|pwd)"
    rf"(?:(?P<quote>{_QUOTE}){_SPACE}{{0,64}}(?P<after>=>|[:=]|%3[AD]|,(?:\s{{0,9}}(?:{_QUOTE})value(?:{_QUOTE})\s?:)?"
    rf"|(?:\\+r|\r)?(?:\\+n|\n)(?:\\+r|\r)?(?:\\+n|\n)){_SPACE}{{0,64}}"
    rf"|[ \t]{{0,8}}(?P<sep>=>|[:=]=?|%3[AD])(?:[ \t]|%20){{0,64}}"
    rf"|(?(option)[ ]{{1,8}}|(?!)))",
    re.IGNORECASE | re.VERBOSE,
)
_ENDS = re.compile(rf"(?:{_NAMES})$", re.IGNORECASE)
_OPEN = re.compile(rf"(?:[bBuUrR]{{0,2}})(?P<quote>{_QUOTE})", re.VERBOSE | re.IGNORECASE)
_BRACKET = re.compile(rf"(?:[\[({{]\s{{0,64}}){{1,3}}(?=[bBuUrR]{{0,2}}(?:{_QUOTE}))", re.VERBOSE | re.IGNORECASE)
# Within brackets: what closes them, unless it stands in a string
_INSIDE = re.compile(rf"(?<!\\)(?<!%5C)(?P<quote>{_QUOTE})|[\[\](){{}}\n]", re.VERBOSE | re.IGNORECASE)
# Without quotes a value ends at a space, a quote, the next parameter of an address or form, the next item of a list
_BARE = re.compile(r"(?:[^\s\"'`&<>,;]++|[,;](?!\s|[\w.-]{1,40}[=:]))++")
_BARE_CODED = re.compile(r"(?:(?!%2[267])[^\s\"'`&<>,;])++")
_LINE = re.compile(r"[^\r\n]+")
_SCHEME = re.compile(
    r"(?i)(basic|bearer|api-?key|token|negotiate|ntlm|digest|oauth|hawk|aws4-[\w-]+)(?:\s|%20|\+){1,8}"
)
_OF_MANY_PARTS = ("digest", "oauth", "hawk", "aws4")
_TRAILING = "\\.,;:!?)]}"
# A quote that closes a text instead of opening one: before the name stands its fellow, behind it a bracket or comma, as
# in input("API key: ")
_OPENED_BEFORE = re.compile(r"\(([\"'])[\w ]{0,40}$")
_CLOSED = re.compile(r"[)\]}](?=[\s,;:)\]}]|$)|,\s")
# Source code in place of a value: self.token, get_token(
_CODE = re.compile(r"(?:[A-Za-z_]+\.)*(?P<last>[A-Za-z_]+)(?P<call>\()?")

# A name and, behind signs alone or a word such as "is", something long: masked if it can only be a credential. So it is
# behind a mask, where the rest of a value stands that goes on in the next line. Names within long words are base64.
_NEAR = re.compile(
    rf"(?<![A-Za-z0-9+/]{{24}})(?:(?:{_NAMES}|credential|passcode|auth)s?|(?<=\(token[ ])hidden)(?![+/])"
    r"(?:\x1b\[[\d;]{0,16}m|\\+(?:x[0-9a-f]{2}|u[0-9a-f]{4}|[nrt])|\W|_?(?:is|was|value|str|string)\b){1,48}+"
    r"(?P<value>[\w+/=.~-]{16,}+)",
    re.IGNORECASE | re.VERBOSE,
)
_MIXED = re.compile(r"(?=.*[a-z])(?=.*[A-Z])(?=.*[A-Za-z].*\d.*[A-Za-z])[\w+=~-]{12,}")

_ALONE = re.compile(r"(?i)\b(basic|bearer|apikey)(?:\s{1,8}|%20|=)([^\s\"'`,;&<>(){}]+)")
_USERINFO = re.compile(r"(:(?:\\*/){2}|%3A%2F%2F)(?:(?!%2F)[^\s/?#\"'`<>])*(@|%40)", re.IGNORECASE)
# curl -u user:password; ApiKey("…")
_OPTION_USER = re.compile(r"((?:^|\s)(?:-u|--user|--proxy-user)[ =]?[\"']?[^\s:\"']{1,100}:)(?!\(token )[^\s\"']+")
_CALLED = re.compile(rf"((?:{_NAMES})\(\s{{0,8}}[bBuUrR]{{0,2}}(?:{_QUOTE}))[^\"'`\\]{{6,}}", re.IGNORECASE)
_DOTTED = re.compile(r"[\w.-]+")
_SIGNED = re.compile(r"(?i)([?&](?:x-(?:amz|goog)-(?:signature|credential)|sig|signature)=)(?!\(token)[^&\s\"'<>]+")
_OF_CURL = re.compile(r"(\s(?:-[uUb]|--user|--proxy-user)[\s=]\s{0,8})(?!\(token)(?:'[^'\n]*'|\"[^\"\n]*\"|[^\s'\"]+)")
_LINE_OF_CURL = re.compile(r"\bcurl\b[^\n]+")
_BASE64_WORD = re.compile(r"[\w+/-]{24,}+(?:\r?\n[\w+/-]{4,}+)*+={0,2}", re.ASCII)
_PEM = re.compile(r"(-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----)[^-]+")
_WORD = re.compile(r"[A-Za-z][a-z]{0,15}(?:[-'/][a-z]{1,15}){0,3}")
_NOTHING = frozenset({"none", "null", "true", "false", "nil", "undefined"})


def without_shapes(text: str) -> str:
    """`text` with the value of everything that is named like a credential, or has the form of one, replaced by `MASK`.

    Names: ``token``, ``apikey``, ``password``, ``Authorization`` and their like, with ``=`` or ``:``, in JSON, strings
    in strings, Python's reprs, pairs, addresses, forms, options of a command; next to such a name also what has small
    and capital letters and digits mixed. Forms: user and password in an address or of curl, signatures of an address,
    bearer and basic credentials, JSON web tokens, private keys, base64 of any of these. Words of a sentence stay, and
    source code.
    """
    parts, at = [], 0
    for match in _NAMED.finditer(text):
        if match.start() < at:  # inside of a value that is masked already
            continue
        start, end, shown = _value(text, match)
        if start < end:
            parts += [text[at:start], shown]
            at = end
    text = "".join([*parts, text[at:]])
    text = _NEAR.sub(_near, text)
    text = _ALONE.sub(_alone, text)
    text = _USERINFO.sub(lambda found: found[1] + MASK + found[2], text)
    text = _SIGNED.sub(rf"\1{MASK}", text)
    text = _LINE_OF_CURL.sub(lambda line: _OF_CURL.sub(rf"\1{MASK}", line[0]), text)
    text = _BASE64_WORD.sub(_of_base64, text)
    text = _CALLED.sub(rf"\1{MASK}", _OPTION_USER.sub(rf"\1{MASK}", text))
    return without_web_tokens(_PEM.sub(rf"\1{MASK}", text))


def values_in(text: str) -> set[str]:
    """The values that `without_shapes` would mask because of their names."""
    places = [_value(text, match) for match in _NAMED.finditer(text)]
    return {text[start:end] for start, end, _ in places if start < end}


def is_name(name: str) -> bool:
    """Whether a value of this name is a credential: ``apiToken``, ``password_ntlm``, ``QISKIT_IBM_TOKEN``."""
    return _ENDS.search(name) is not None


def without_web_tokens(text: str) -> str:
    """`text` without JSON web tokens."""
    return _DOTTED.sub(_web_token, text) if "eyJ" in text else text


def _web_token(found: re.Match[str]) -> str:
    word = found[0]
    at = word.find("eyJ")
    pieces = word[at:].split(".")
    return word[:at] + MASK if at >= 0 and len(pieces) > 1 and len(pieces[0]) > 7 and len(pieces[1]) > 3 else word


def _value(text: str, named: re.Match[str]) -> tuple[int, int, str]:
    """Where the value behind a name stands in the text, and what to show instead; an empty place to leave it."""
    at = named.end()
    name, sep = named["name"].lower(), named["sep"] or named["after"] or " "
    scheme = _SCHEME.match(text, at) if name == "authorization" else None
    if scheme is not None:
        at = scheme.end()
    if text.startswith(MASK, at):
        return at, at, ""
    if opened := _OPEN.match(text, at):
        end = _closed(text, opened)
        inside = text[opened.end() : end]
        harmless = _says_nothing(inside) or (sep == "," and _WORD.fullmatch(inside) is not None)
        harmless = harmless or _closes(text[max(0, named.start() - 42) : named.start()], opened["quote"], inside)
        return opened.end(), opened.end() if harmless else end, MASK
    if opened := _BRACKET.match(text, at):
        return opened.end(), _unbracketed(text, at), f"'{MASK}'"
    if sep.startswith(","):
        return at, at, ""
    whole = name == "cookie" or (scheme is not None and scheme[1].lower().startswith(_OF_MANY_PARTS))
    found = (_LINE if whole else _BARE_CODED if sep.startswith("%") else _BARE).match(text, at)
    value = found[0].rstrip(_TRAILING) if found else ""
    prose = scheme is None and not whole and (_is_prose(value, name, sep) or _is_code(value, name, text[at:]))
    return at, at if prose else at + len(value), MASK


def _is_prose(value: str, name: str, sep: str) -> bool:
    """Whether a value without quotes is a word, a count or an address rather than a credential."""
    if _says_nothing(value) or value.startswith(("http://", "https://", "--")):
        return True
    if name == "pwd" and value.startswith("/"):  # the working directory
        return True
    if sep == " ":  # of a command: the name of what is to be given
        return value.isupper() and value.replace("_", "").isalpha()
    if name == "pwd" or re.fullmatch(_PASSWORDS, name):
        return False
    word = _WORD.fullmatch(value) is not None or (value.isalpha() and value.isupper() and len(value) < 16)
    return (value.isdigit() and len(value) < 4) or (sep.startswith(":") and word)


def _is_code(value: str, name: str, rest: str) -> bool:
    """Whether a value without quotes is a variable of a credential's name, or a call; `rest` is the text from it on."""
    code = _CODE.fullmatch(value)
    if code is None:
        return False
    if code["call"]:
        return rest[len(value) : len(value) + 1] in ("'", '"', ")")
    return re.fullmatch(_PASSWORDS, name) is None and is_name(code["last"])


def _closes(before: str, quote: str, after: str) -> bool:
    """Whether a quote between these texts is the end of a call's argument that began before."""
    began = _OPENED_BEFORE.search(before)
    return began is not None and began[1] == quote and _CLOSED.match(after) is not None


def _says_nothing(value: str) -> bool:
    return not any(c.isalnum() for c in value) or value.lower() in _NOTHING or value == MASK


def _closed(text: str, opened: re.Match[str]) -> int:
    """Where the string ends that `opened` begins: at the next quote of its kind without more backslashes before it.

    A string within a string has some before its own quotes, and more before those that are part of it. One that is cut
    off ends with its line. A value that itself ends in a backslash is taken to go on; too much is hidden then.
    """
    level, bare = _split(opened["quote"])
    line = text.find("\n", opened.end())
    line = len(text) if line < 0 else line
    at = text.find(bare, opened.end(), line)
    while at >= 0:
        start, before = at, 0
        while start > opened.end() and (text[start - 1] == "\\" or text[start - 3 : start] in ("%5C", "%5c")):
            start -= 1 if text[start - 1] == "\\" else 3
            before += 1
        if before <= level:
            return start
        at = text.find(bare, at + 1, line)
    return line


def _split(quote: str) -> tuple[int, str]:
    """The number of backslashes before a quote, and the quote."""
    bare = re.sub(r"(?i)^(?:\\|%5c)+", "", quote)
    before = quote[: len(quote) - len(bare)]
    return before.count("\\") + before.lower().count("%5c"), bare


def _unbracketed(text: str, at: int) -> int:
    """Where the bracket at `at` is closed, strings left out; the end of the line if it never is."""
    depth = 0
    while found := _INSIDE.search(text, at):
        if found["quote"]:
            at = _closed(text, found) + len(found["quote"])
            continue
        depth += (found[0] in "[({") - (found[0] in "])}")
        if depth <= 0 or found[0] == "\n":
            return found.start()
        at = found.end()
    return len(text)


def _alone(found: re.Match[str]) -> str:
    """Credentials behind the name of their scheme, outside of a header."""
    value = found[2].rstrip(_TRAILING)
    if len(value) < 6 or _WORD.fullmatch(value) or value == MASK:
        return found[0]
    if found[1].lower() == "basic":
        try:
            if b":" not in base64.b64decode(value + "=" * (-len(value) % 4), validate=True):
                return found[0]
        except (binascii.Error, ValueError):
            return found[0]
    whole = found[0]
    at = found.start(2) - found.start()
    return whole[:at] + MASK + whole[at + len(value) :]


def _near(found: re.Match[str]) -> str:
    """What stands next to the name of a credential."""
    value = found["value"]
    if not any(_MIXED.fullmatch(piece) for piece in re.split("[/.]", value)):
        return found[0]
    return found[0][: -len(value)] + MASK


def _of_base64(found: re.Match[str]) -> str:
    """A word of base64, or lines of it."""
    word = "".join(found[0].split()).rstrip("=").replace("-", "+").replace("_", "/")
    word = word[: len(word) - (len(word) % 4 == 1)]  # one character too many is no byte
    text = base64.b64decode(word + "=" * (-len(word) % 4)).decode(errors="replace")
    binary = text.count("\N{REPLACEMENT CHARACTER}") > 4  # a picture; a word that happens to follow gives some
    return found[0] if binary or without_shapes(text) == text else MASK
