"""Variables and quotes in the words of a Dockerfile: `$v`, `${v:-x}`, `${v+x}`, `${v#pat}`, `${v/pat/new}`, quotes, escapes.

The rules are the Dockerfile reference's ("Environment replacement"), which follow those of a POSIX shell.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from insula.errors import Invalid
from insula.images.dockerfile.globs import places_of

_SPECIAL = "@*#?-!$0"
MAX_REPLACED = 4096
MAX_NESTING = 50  # `${a:-${b:-...}}`


class _Lex:
    """One pass over one word. `words` collects what unquoted blanks separate."""

    def __init__(self, text: str, variables: Mapping[str, str], escape: str, keep_unset: bool) -> None:
        self.text = text
        self.position = 0
        self.variables = variables
        self.escape = escape
        self.keep_unset = keep_unset
        self.words: list[str] = []
        self._open: list[str] | None = None

    def peek(self) -> str:
        return self.text[self.position] if self.position < len(self.text) else ""

    def next(self) -> str:
        character = self.peek()
        self.position += 1
        return character

    # --- collecting words ---

    def _raw(self, text: str) -> None:
        """Text that blanks do not split: quoted, escaped, or written."""
        if self._open is None:
            self._open = []
        self._open.append(text)

    def _split(self, text: str) -> None:
        """A variable's value outside of quotes: its blanks separate words."""
        for piece in re.split(r"(\s+)", text):
            if piece.isspace():
                self._finish()
            elif piece:
                self._raw(piece)

    def _finish(self) -> None:
        if self._open is not None:
            self.words.append("".join(self._open))
            self._open = None

    # --- the grammar ---

    def run(self, stop: str = "", *, raw_escapes: bool = False, depth: int = 0) -> str:
        """Everything up to `stop` (taken, too) or the end, expanded. Raises Invalid."""
        if depth > MAX_NESTING:
            raise Invalid("syntax error: the substitutions are nested too deep")
        out: list[str] = []
        top = depth == 0
        while character := self.peek():
            if character == stop:
                self.position += 1
                return "".join(out)
            if character == "'":
                piece = self._single()
            elif character == '"':
                piece = self._double(depth)
            elif character == "$":
                piece = self.dollar(depth)
                out.append(piece)
                if top:
                    self._split(piece)
                continue
            elif character == self.escape:
                self.position += 1
                if not self.peek():
                    break
                piece = (character if raw_escapes else "") + self.next()
            else:
                self.position += 1
                piece = character
                if top and character.isspace():
                    out.append(piece)
                    self._finish()
                    continue
            out.append(piece)
            if top:
                self._raw(piece)
        if stop:
            raise Invalid("unexpected end of statement while looking for matching " + stop)
        if top:
            self._finish()
        return "".join(out)

    def _single(self) -> str:
        end = self.text.find("'", self.position + 1)
        if end < 0:
            raise Invalid("unexpected end of statement while looking for matching single-quote")
        quoted = self.text[self.position + 1 : end]
        self.position = end + 1
        return quoted

    def _double(self, depth: int) -> str:
        self.position += 1
        out: list[str] = []
        while True:
            character = self.peek()
            if not character:
                raise Invalid("unexpected end of statement while looking for matching double-quote")
            if character == '"':
                self.position += 1
                return "".join(out)
            if character == "$":
                out.append(self.dollar(depth))
                continue
            self.position += 1
            if character == self.escape:
                following = self.peek()
                if not following:
                    raise Invalid("unexpected end of statement while looking for matching double-quote")
                if following in ('"', "$", self.escape):
                    character = self.next()
            out.append(character)

    def dollar(self, depth: int) -> str:
        start = self.position
        self.position += 1
        if self.peek() != "{":
            name = self._name()
            if not name:
                return "$"
            return self._value(name, self.text[start : self.position])
        self.position += 1
        if self.peek() in ("", "{", "}", ":"):
            raise Invalid("syntax error: bad substitution" if self.peek() else "syntax error: missing '}'")
        name = self._name()
        sign = self.next()
        if sign == "}":
            return self._value(name, self.text[start : self.position])
        return self._modified(name, sign, depth + 1)

    def _value(self, name: str, written: str) -> str:
        value = self.variables.get(name)
        if value is None:
            return written if self.keep_unset else ""
        return value

    def _modified(self, name: str, sign: str, depth: int) -> str:
        null_is_unset = sign == ":"
        if null_is_unset:
            sign = self.next()
        shown = (":" if null_is_unset else "") + sign
        value = self.variables.get(name)
        found = value is not None and not (null_is_unset and value == "")
        if sign in ("-", "+", "?") and sign:
            word = self._word("}", depth)
            if sign == "-":
                return value or "" if found else word
            if sign == "+":
                return word if found else ""
            if not found:
                raise Invalid(f"{name}: {word or 'is not allowed to be unset'}")
            return value or ""
        if sign in ("#", "%") and sign and not null_is_unset:
            greedy = self.peek() == sign
            if greedy:
                self.position += 1
            pattern = _pattern(self._word("}", depth, raw=True), self.escape)
            return _trim(value or "", pattern, front=sign == "#", greedy=greedy)
        if sign == "/" and not null_is_unset:
            every = self.peek() == "/"
            if every:
                self.position += 1
            pattern = _pattern(self._word("/", depth, raw=True), self.escape)
            return _replace(value or "", pattern, self._word("}", depth), every=every)
        if not sign:
            raise Invalid("syntax error: missing '}'")
        raise Invalid(f"unsupported modifier ({shown}) in substitution")

    def _word(self, stop: str, depth: int, *, raw: bool = False) -> str:
        try:
            return self.run(stop, raw_escapes=raw, depth=depth)
        except Invalid:
            if not self.peek():
                raise Invalid("syntax error: missing '}'") from None
            raise

    def _name(self) -> str:
        character = self.peek()
        if not character:
            return ""
        if character in _SPECIAL:
            return self.next()
        match = re.compile(r"[0-9]+|[A-Za-z_][A-Za-z0-9_]*").match(self.text, self.position)
        if match is None:
            return ""
        self.position = match.end()
        return match.group()


_ANY, _SOME = object(), object()  # `?` and `*` of a shell pattern


def _pattern(text: str, escape: str) -> list[object]:
    """A shell pattern's parts: characters, `_ANY`, `_SOME`."""
    parts: list[object] = []
    characters = iter(text)
    for character in characters:
        if character == escape:
            parts.append(next(characters, character))
        else:
            parts.append({"*": _SOME, "?": _ANY}.get(character, character))
    return parts


def _ends(size: int, places: Mapping[str, int], pattern: list[object], start: int = 0) -> int:
    """Where matches that begin at `start` may end, as the bits of a number: linear, whatever the pattern."""
    every = (1 << (size + 1)) - 1
    here = 1 << start
    for part in pattern:
        if part is _SOME:
            here = every & -(here & -here) if here else 0
        elif part is _ANY:
            here = here << 1 & every
        else:
            here = (here & places.get(str(part), 0)) << 1
    return here


def _trim(value: str, pattern: list[object], *, front: bool, greedy: bool) -> str:
    """Take the shortest (or, greedy, longest) match of a pattern away from an end."""
    if not front:
        return _trim(value[::-1], pattern[::-1], front=True, greedy=greedy)[::-1]
    ends = _ends(len(value), places_of(value), pattern)
    if not ends:
        return value
    return value[ends.bit_length() - 1 if greedy else (ends & -ends).bit_length() - 1 :]


def _replace(value: str, pattern: list[object], new: str, *, every: bool) -> str:
    """The longest match at the first place (or every place) where there is one that is not empty."""
    if len(value) > MAX_REPLACED:
        raise Invalid(f"a value to replace in is longer than {MAX_REPLACED} characters")
    places = places_of(value)
    out, position = [], 0
    while position < len(value):
        end = _ends(len(value), places, pattern, position).bit_length() - 1
        if end > position:
            out.append(new)
            position = end
            if not every:
                break
        else:
            out.append(value[position])
            position += 1
    return "".join(out) + value[position:]


def expand(text: str, variables: Mapping[str, str], *, escape: str = "\\", keep_unset: bool = False) -> str:
    """One word with its variables in place and its quotes gone. `keep_unset` leaves unknown variables as written. Raises
    Invalid."""
    if "$" not in text and "'" not in text and '"' not in text and escape not in text:
        return text
    try:
        return _Lex(text, variables, escape, keep_unset).run()
    except Invalid as fault:
        raise Invalid(f"failed to process {_quoted(text)}: {fault.message}") from None


def expand_words(text: str, variables: Mapping[str, str], *, escape: str = "\\") -> list[str]:
    """Likewise, split where unquoted blanks are, those of a variable's value too. Raises Invalid."""
    lex = _Lex(text, variables, escape, keep_unset=False)
    try:
        lex.run()
    except Invalid as fault:
        raise Invalid(f"failed to process {_quoted(text)}: {fault.message}") from None
    return lex.words


def expand_text(text: str, variables: Mapping[str, str], *, escape: str = "\\") -> str:
    """A here-document with its variables in place: quotes are ordinary there, an escape counts before `$` and itself only. Raises
    Invalid."""
    lex = _Lex(text, variables, escape, keep_unset=False)
    out: list[str] = []
    while character := lex.peek():
        if character == "$":
            out.append(lex.dollar(1))
            continue
        lex.position += 1
        if character == escape and lex.peek() in ("$", escape) and lex.peek():
            character = lex.next()
        out.append(character)
    return "".join(out)


def _quoted(text: str) -> str:
    shown = text if len(text) <= 200 else text[:200] + "…"
    return '"' + shown.replace("\\", "\\\\").replace('"', '\\"') + '"'
