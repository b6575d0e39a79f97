"""From a Dockerfile's text to its instructions: directives, comments, continued lines, here-documents, flags.

See the Dockerfile reference, "Format", "Parser directives" and "Here-documents". What the words of an instruction mean is
said in `instructions.py`.
"""

from __future__ import annotations

import re

import msgspec
from msgspec import Struct

from insula.errors import Invalid

MAX_BYTES = 16 * 1024 * 1024  # a file
MAX_LINE_BYTES = 1024 * 1024  # an instruction with its continued lines
MAX_INSTRUCTIONS = 100_000

_DIRECTIVE = re.compile(r"#[ \t]*([A-Za-z][A-Za-z0-9]*)[ \t]*=[ \t]*(.+?)[ \t]*")
_DIRECTIVES = frozenset({"syntax", "escape", "check"})
_HEREDOC = re.compile(r"\d*<<(-?)([^<]+)")
_WITH_HEREDOCS = frozenset({"ADD", "COPY", "RUN"})


class DockerfileFault(Invalid):
    """A Dockerfile cannot be read; the lines are counted from 1, both ends included."""

    def __init__(self, message: str, start: int, end: int) -> None:
        super().__init__(f"dockerfile parse error on line {start}: {message}" if start else message, field="dockerfile")
        self.start = start
        self.end = end


class Heredoc(Struct, frozen=True, kw_only=True):
    """A here-document: `expand` when its name was not quoted, `chomp` when it began with `<<-`."""

    name: str
    content: str
    expand: bool = True
    chomp: bool = False

    @property
    def data(self) -> str:
        """The content, its leading tabs gone where that was asked."""
        return re.sub(r"(?m)^\t+", "", self.content) if self.chomp else self.content


class Line(Struct, frozen=True, kw_only=True):
    """One instruction: its name in capitals, its flags (`--name=value`, without quotes), and the rest as it was written."""

    word: str
    rest: str
    flags: tuple[str, ...] = ()
    heredocs: tuple[Heredoc, ...] = ()
    text: str = ""
    start: int = 0
    end: int = 0
    comments: tuple[str, ...] = ()


class Text(Struct, frozen=True, kw_only=True):
    """A Dockerfile taken apart. `empty_continuations` are lines where the reference promises an error one day."""

    lines: tuple[Line, ...]
    escape: str = "\\"
    directives: dict[str, str] = {}
    empty_continuations: tuple[int, ...] = ()


def read(text: str) -> Text:
    """Take a Dockerfile apart. Raises DockerfileFault."""
    if len(text) > MAX_BYTES:
        raise DockerfileFault(f"the Dockerfile is larger than {MAX_BYTES} bytes", 0, 0)
    source = text.removeprefix("\ufeff").split("\n")
    directives = _directives(source)
    reader = _Reader(source, directives.get("escape", "\\"))
    lines = reader.run()
    if not lines:
        raise DockerfileFault("file with no instructions", 0, 0)
    return Text(
        lines=tuple(lines),
        escape=reader.escape,
        directives=directives,
        empty_continuations=tuple(reader.empty_continuations),
    )


def _directives(source: list[str]) -> dict[str, str]:
    """The leading `# name=value` lines; the first line of another form ends them."""
    found: dict[str, str] = {}
    for number, line in enumerate(source, 1):
        if number == 1 and line.startswith("#!"):
            continue
        match = _DIRECTIVE.fullmatch(line.strip())
        if match is None or match[1].lower() not in _DIRECTIVES:
            return found
        name = match[1].lower()
        if name in found:
            raise DockerfileFault(f"only one {name} parser directive can be used", number, number)
        if name == "escape" and match[2] not in ("\\", "`"):
            raise DockerfileFault(f"invalid escape token '{match[2]}' does not match ` or \\", number, number)
        found[name] = match[2]
    return found


class _Reader:
    """Goes through the lines once."""

    def __init__(self, source: list[str], escape: str) -> None:
        self._source = source
        self._next = 0
        self.escape = escape
        # A doubled escape at the end is a character, not a continuation.
        mark = re.escape(escape)
        self._continued = re.compile(rf"(^|[^{mark}]){mark}[ \t]*$")
        self.empty_continuations: list[int] = []

    def run(self) -> list[Line]:
        found: list[Line] = []
        comments: list[str] = []
        while self._next < len(self._source):
            raw = self._take().lstrip()
            if raw.startswith("#"):
                comments.append(raw[1:].strip())
                continue
            start = self._next
            whole, complete = self._cut(raw)
            if complete and not whole.strip():
                comments = []
                continue
            whole = self._continue(whole, complete, start)
            if not whole.strip():
                continue
            found.append(self._instruction(whole, start, tuple(comments)))
            comments = []
            if len(found) > MAX_INSTRUCTIONS:
                raise DockerfileFault(f"there are more than {MAX_INSTRUCTIONS} instructions", start, start)
        return found

    def _take(self) -> str:
        line = self._source[self._next]
        self._next += 1
        return line.removesuffix("\r")

    def _cut(self, line: str) -> tuple[str, bool]:
        """A line without its continuation mark, and whether it ends the instruction."""
        if self._continued.search(line) is None:
            return line, True
        return line[: line.rindex(self.escape)], False

    def _continue(self, first: str, complete: bool, start: int) -> str:
        pieces, size = [first], len(first)
        while not complete and self._next < len(self._source):
            raw = self._take()
            if raw.lstrip().startswith("#"):
                continue
            if not raw.strip():
                if self._next < len(self._source):
                    self.empty_continuations.append(self._next)
                continue
            piece, complete = self._cut(raw)
            pieces.append(piece)
            size += len(piece)
            if size > MAX_LINE_BYTES:
                break
        if size > MAX_LINE_BYTES:
            raise DockerfileFault(f"an instruction is longer than {MAX_LINE_BYTES} characters", start, self._next)
        return "".join(pieces)

    def _instruction(self, whole: str, start: int, comments: tuple[str, ...]) -> Line:
        whole = whole.strip()
        word, rest = _first_word(whole)
        flags, rest = take_flags(rest)
        heredocs: tuple[Heredoc, ...] = ()
        name = word.upper()
        inner = _first_word(rest)[0].upper() if name == "ONBUILD" else name
        if inner in _WITH_HEREDOCS and "<<" in rest and strings_of_json(rest) is None:
            heredocs = tuple(self._heredoc(mark, start) for mark in heredoc_marks(rest, self.escape))
        return Line(
            word=name,
            rest=rest,
            flags=flags,
            heredocs=heredocs,
            text=whole,
            start=start,
            end=self._next,
            comments=comments,
        )

    def _heredoc(self, mark: Heredoc, start: int) -> Heredoc:
        content: list[str] = []
        size = 0
        while self._next < len(self._source):
            line = self._source[self._next]
            self._next += 1
            end = line.removesuffix("\r")
            if (end.lstrip("\t") if mark.chomp else end) == mark.name:
                return msgspec.structs.replace(mark, content="".join(content))
            content.append(line + "\n")
            size += len(line)
            if size > MAX_LINE_BYTES:
                raise DockerfileFault(f"a here-document is longer than {MAX_LINE_BYTES} characters", start, self._next)
        raise DockerfileFault("unterminated heredoc", start, self._next)


def _first_word(text: str) -> tuple[str, str]:
    """The instruction's name and the rest. `RUN<<EOF` needs no blank."""
    match = re.match(r"[^\s<]+(?=<<)|\S+", text)
    if match is None:
        return "", ""
    return match.group(), text[match.end() :].strip()


def heredoc_marks(text: str, escape: str = "\\") -> list[Heredoc]:
    """The here-documents that an instruction's words announce, still without content."""
    return [mark for word in split_quoted(text, escape) if (mark := heredoc_mark(word)) is not None]


def heredoc_mark(word: str) -> Heredoc | None:
    """The here-document that a word announces, if it does."""
    match = _HEREDOC.fullmatch(word)
    if match is None:
        return None
    raw = match[2]
    name = raw.replace('"', "").replace("'", "")
    if not name or any(character.isspace() for character in name):
        return None
    return Heredoc(name=name, content="", chomp=bool(match[1]), expand=name == raw)


def split_quoted(text: str, escape: str = "\\") -> list[str]:
    """Words at blanks; quotes keep blanks together and stay, as do escapes."""
    words: list[str] = []
    word: list[str] = []
    quote, position, open_word = "", 0, False
    while position < len(text):
        character = text[position]
        position += 1
        if not quote and character.isspace():
            if open_word:
                words.append("".join(word))
            word, open_word = [], False
            continue
        open_word = True
        word.append(character)
        if character == escape and quote != "'":
            if position < len(text):
                word.append(text[position])
                position += 1
            else:
                word.pop()
        elif character == quote:
            quote = ""
        elif not quote and character in "'\"":
            quote = character
    if open_word and word:
        words.append("".join(word))
    return words


def take_flags(text: str) -> tuple[tuple[str, ...], str]:
    """The leading `--words` of an instruction, their quotes and escapes gone, and the rest. A lone `--` ends them."""
    flags: list[str] = []
    position = 0
    while True:
        while position < len(text) and text[position].isspace():
            position += 1
        if not text.startswith("--", position):
            return tuple(flags), text[position:]
        word, position = _flag_word(text, position)
        if word == "--":
            return tuple(flags), text[position:].lstrip()
        flags.append(word)


def _flag_word(text: str, position: int) -> tuple[str, int]:
    word: list[str] = []
    quote = ""
    while position < len(text):
        character = text[position]
        if not quote and character.isspace():
            break
        position += 1
        if character == "\\":
            if position < len(text):
                word.append(text[position])
                position += 1
        elif character == quote:
            quote = ""
        elif not quote and character in "'\"":
            quote = character
        else:
            word.append(character)
    return "".join(word), position


def strings_of_json(text: str) -> tuple[str, ...] | None:
    """The exec form: a JSON array of strings; None for anything that is no JSON array. Raises Invalid for an array that holds
    other things."""
    if not text.lstrip().startswith("["):
        return None
    try:
        found = msgspec.json.decode(text.strip())
    except (msgspec.DecodeError, RecursionError):
        return None
    if not isinstance(found, list):
        return None
    if not all(isinstance(each, str) for each in found):
        raise Invalid("when using JSON array syntax, arrays must be comprised of strings only")
    return tuple(found)
