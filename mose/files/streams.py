"""Standard output and error: no text from data can control the terminal that shows it, and no message holds a credential.

Names of files, texts of repositories and errors of libraries reach the console through these streams only, so each command is
safe without a call at each `print`. `escaping_streams` covers what is printed, `make_console` what rich draws.
"""

import contextlib
import io
import re
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TextIO, cast

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

# Wide enough for every column of a report, so that a pipe or a log file never folds a row.
_TEXT_WIDTH = 220
# What would move the cursor, ring, change colours or turn the direction of writing; line feed and tab stay. Lone surrogates are
# how Python holds a file name that is not UTF-8: no stream could encode them.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
# A user name alone is no secret where it names a container or an account (abfs://container@account); over HTTP it is a token.
# A secret may hold a slash (those of S3 do), so that a slash ends it only behind a port. The bounds keep a search linear.
_USER_INFO = re.compile(
    r"(?P<scheme>\b[a-z][a-z0-9+.-]{0,20}://)(?:"
    r"[^\s/?#:@'\"]{0,256}:(?:[^\s/?#'\"]{0,2048}|(?!\d+/)[^\s?#@'\"]{0,2048})@|(?<=http://|ttps://)[^\s/?#'\"]{0,2048}@)",
    re.IGNORECASE,
)
# Parameters of signed URLs (S3, GCS, Azure), and the usual names of keys.
_PARAMETER = re.compile(
    r"(?P<name>[?&](?:X-(?:Amz|Goog)-(?:Signature|Credential|Security-Token)|AWSAccessKeyId|Signature|sig|"
    r"(?:access_?|auth_?|api_?|secret_?)?(?:token|key)|secret|password)=)(?P<secret>[^\s&#'\"<>]*[^\s&#'\"<>:;,.)])",
    re.IGNORECASE,
)
_HIDDEN = "***"


def escaped(text: str) -> str:
    """`text` with each character that could control a terminal as a Python escape."""
    return _UNSAFE.sub(lambda match: match.group().encode("unicode_escape").decode("ascii"), text)


def escaped_parts(text: str) -> Iterator[tuple[str, bool]]:
    """`text` in parts, each with whether it is an escape, so that a caller can mark escapes by a style."""
    end = 0
    for match in _UNSAFE.finditer(text):
        yield text[end : match.start()], False
        yield escaped(match.group()), True
        end = match.end()
    yield text[end:], False


def without_credentials(text: str) -> str:
    """`text` with `***` in place of passwords, tokens and signatures of the URLs in it."""
    if "://" not in text:
        return text
    hidden = _USER_INFO.sub(lambda match: f"{match['scheme']}{_HIDDEN}@", text)
    return _PARAMETER.sub(lambda match: f"{match['name']}{_HIDDEN}", hidden)


def presentable(text: str) -> str:
    """`text` as it may reach a terminal or a log: escaped, and without credentials."""
    return escaped(without_credentials(text))


class EscapingStream:
    """A text stream that makes presentable what is written to it; everything else is the stream's own."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        """Write `text`, presentable."""
        self._stream.write(presentable(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each line, presentable."""
        for line in lines:
            self.write(line)

    @property
    def rich_proxied_file(self) -> TextIO:
        """The stream behind this one, under the name that rich's own proxy has for it."""
        return self._stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def escaping_streams() -> Iterator[None]:
    """Within the block, standard output and error are presentable, whoever prints.

    An exception that leaves the block leaves the streams in place: the interpreter is about to print its traceback.
    """
    before = (sys.stdout, sys.stderr)
    cover_streams()
    yield
    sys.stdout, sys.stderr = before


def cover_streams() -> None:
    """Put an `EscapingStream` on standard output and error, where there is none."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, EscapingStream):
            setattr(sys, name, EscapingStream(stream))


def make_console(stderr: bool = False, **options: Any) -> "Console":
    """A rich console that draws presentable text; `options` are those of `rich.console.Console`, without markup by default.

    It writes to the stream behind `EscapingStream`, since rich's own sequences are meant.
    """
    # Imported late: most commands draw nothing, and rich is slow to import.
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

    class EscapingConsole(Console):
        """Escapes between layout and output: whatever a table or a bar holds has become text segments here."""

        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
            for segment in super().render(renderable, options):
                yield segment if segment.control else segment._replace(text=presentable(segment.text))

    file = options.pop("file", sys.stderr if stderr else sys.stdout)
    return EscapingConsole(**{"file": _bare(file), "markup": False, "highlight": False, **options})


def table_text(table: "Table") -> str:
    """A table as plain text, no line longer than its columns ask for."""
    file = io.StringIO()
    make_console(file=file, width=_TEXT_WIDTH, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def progress_bar(*columns: Any, console: "Console", **options: Any) -> "Progress":
    """A rich progress bar on a console of `make_console`; lines that others print while it is drawn are presentable too."""
    from rich.progress import Progress

    class EscapingProgress(Progress):
        def start(self) -> None:
            super().start()
            # rich has replaced the streams by its own proxy, which would interpret sequences in what is printed.
            cover_streams()

    return EscapingProgress(*columns, console=console, **options)


def _bare(stream: Any) -> TextIO:
    """The stream behind all proxies."""
    while (inner := getattr(stream, "rich_proxied_file", None)) is not None:
        stream = inner
    return cast(TextIO, stream)
