"""The licence of a repository's files: from SPDX tags, the nearest licence file, or the manifest of a package.

infer-license compares licence files with full texts: it knows the fifteen most frequent and takes milliseconds. A matcher of
all SPDX texts was tried, too: .3 to 27 seconds per file. Other licences are recognised by their titles.
"""

import functools
import re
from dataclasses import dataclass, field

PERMISSIVE, COPYLEFT, NO_LICENCE, UNKNOWN = "permissive", "copyleft", "no_license", "unknown"
LONGEST_TEXT = 1 << 17
_FILE_NAME = re.compile(r"(?:un)?licen[cs]e(?:s|[-._].*)?|(?:.*[-._])licen[cs]e(?:\.(?:txt|md|rst))?|copying(?:[-._].*)?", re.I)
_SOURCE_SUFFIX = re.compile(r"\.(?:py|js|ts|go|c|h|cpp|java|rb|rs|php|html|json|ya?ml|png)$", re.I)
_MANIFESTS = frozenset({"package.json", "Cargo.toml", "pyproject.toml", "setup.cfg", "composer.json"})
_MANIFEST_LICENCE = re.compile(
    r"""^\s*"?license"?\s*[=:]\s*(?:\{\s*text\s*=\s*)?"?([A-Za-z0-9.+() -]{2,60}?)"?\s*[,}]*\s*$""", re.M
)
_TAG = re.compile(rb"SPDX-License-Identifier:[ \t]*([A-Za-z0-9.+()\- ]{2,120})")
_TAG_BYTES = 2000
# The title that stands in the text of a licence, and its SPDX id; the first that stands in the head of a file counts.
_TITLES = (
    (r"server side public license", "SSPL-1.0"),
    (r"gnu affero general public license", "AGPL-3.0-only"),
    (r"gnu (?:lesser|library) general public license", "LGPL-2.1-only"),
    (r"gnu general public license\s+version 3", "GPL-3.0-only"),
    (r"gnu general public license", "GPL-2.0-only"),
    (r"gnu free documentation license", "GFDL-1.3-only"),
    (r"mozilla public license,? version 2", "MPL-2.0"),
    (r"mozilla public license", "MPL-1.1"),
    (r"eclipse public license", "EPL-2.0"),
    (r"european union public licence", "EUPL-1.2"),
    (r"common development and distribution license", "CDDL-1.0"),
    (r"cecill", "CECILL-2.1"),
    (r"attribution-sharealike", "CC-BY-SA-4.0"),
    (r"apache license\s+version 2|apache license, version 2", "Apache-2.0"),
    (r"permission is hereby granted, free of charge", "MIT"),
    (r"redistribution and use in source and binary forms", "BSD-3-Clause"),
    (r"permission to use, copy, modify, and/?(?:or)? distribute this software", "ISC"),
    (r"this is free and unencumbered software released into the public domain", "Unlicense"),
    (r"boost software license", "BSL-1.0"),
    (r"cc0 1\.0 universal", "CC0-1.0"),
    (r"python software foundation license", "PSF-2.0"),
    (r"the zlib license|altered source versions must be plainly marked", "Zlib"),
    (r"artistic license 2", "Artistic-2.0"),
)
_TITLE = tuple((re.compile(pattern), name) for pattern, name in _TITLES)
_TITLE_CHARACTERS = 4000
_COPYLEFT_ID = re.compile(
    r"(?:A?GPL|LGPL|MPL|EPL|CDDL|EUPL|OSL|SSPL|CC-BY-(?:NC-)?SA|CECILL|MS-RL|APSL|RPL|QPL|Sleepycat|GFDL)", re.I
)
_PERMISSIVE_ID = re.compile(
    r"(?:MIT|BSD|0BSD|Apache|ISC|Zlib|Unlicense|CC0|CC-BY-[0-9]|BSL|PSF|Python|WTFPL|NCSA|PostgreSQL|Artistic-2|X11|HPND|curl|Ruby"
    r"|BlueOak|UPL|AFL|ECL|MS-PL|libpng|Libpng|OFL|Vim|W3C|ICU|Unicode)",
    re.I,
)


def is_licence_file(path: str) -> bool:
    """Whether a file states a licence: LICENSE, COPYING and their kin in any folder, or the manifest of a package."""
    name = path.rpartition("/")[2]
    return name in _MANIFESTS or bool(_FILE_NAME.fullmatch(name) and not _SOURCE_SUFFIX.search(name))


@dataclass
class FolderLicences:
    """The licences that the licence files of a repository state, by the folder in which they lie."""

    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Sorted SPDX ids; an empty tuple for a text that is not recognised."""

    def add(self, path: str, content: bytes) -> None:
        """Read one licence file; `path` has no leading `/`."""
        folder, _, name = path.rpartition("/")
        # REUSE keeps the texts of all licences of the project in a folder of its own.
        folder = folder.removesuffix("LICENSES").rstrip("/") if folder.split("/")[-1] == "LICENSES" else folder
        text = content[:LONGEST_TEXT].decode("utf-8", "replace")
        if name in _MANIFESTS:
            # A manifest says what the file beside it says, or stands alone.
            if folder not in self.names and (stated := _MANIFEST_LICENCE.search(text)):
                self.names[folder] = (stated[1].strip(),)
            return
        known = licence_of_text(text)
        there = self.names.get(folder, ())
        self.names[folder] = tuple(sorted({*there, *([known] if known else [])}))

    def of_file(self, path: str, content: bytes) -> tuple[tuple[str, ...], str]:
        """Licence names and type of a file: its own SPDX tag, else what the nearest folder states."""
        tag = _TAG.search(content[:_TAG_BYTES])
        if tag:
            name = tag[1].decode("ascii").strip()
            return (name,), type_of_expression(name)
        folder = path
        while folder:
            folder = folder.rpartition("/")[0]
            if folder in self.names:
                names = self.names[folder]
                types = {type_of_expression(name) for name in names}
                # Several files beside each other are several licences, of which the strictest counts.
                return names, next((kind for kind in (COPYLEFT, UNKNOWN) if kind in types), PERMISSIVE if types else UNKNOWN)
        return (), NO_LICENCE


def licence_of_text(text: str) -> str:
    """The SPDX id of a licence text; empty if it is not recognised."""
    # Imported late: only repositories without metadata need it.
    from infer_license.api import guess_text

    guess = guess_text(text)
    if guess is not None:
        return str(guess.shortname)
    head = re.sub(r"\s+", " ", text[:_TITLE_CHARACTERS].lower())
    # Of two titles at one place, the earlier in the table is the more exact.
    places = [(match.start(), order) for order, (pattern, _) in enumerate(_TITLE) if (match := pattern.search(head))]
    return _TITLE[min(places)[1]][1] if places else ""


@functools.lru_cache(maxsize=1 << 10)
def type_of_expression(expression: str) -> str:
    """`permissive`, `copyleft` or `unknown` for an SPDX expression: one side of an OR suffices, all sides of an AND count."""
    options = [_type_of_all(option) for option in re.split(r"\s+OR\s+|\s*/\s*", expression.strip("() "), flags=re.I)]
    return next((kind for kind in (PERMISSIVE, COPYLEFT) if kind in options), UNKNOWN)


def _type_of_all(expression: str) -> str:
    types = {_type_of_id(part.strip("() ")) for part in re.split(r"\s+AND\s+", expression, flags=re.I)}
    return next((kind for kind in (COPYLEFT, UNKNOWN) if kind in types), PERMISSIVE)


def _type_of_id(name: str) -> str:
    if _COPYLEFT_ID.match(name):
        # An exception such as Classpath or GCC's lets other programs link, but the file itself stays under the licence.
        return COPYLEFT
    return PERMISSIVE if _PERMISSIVE_ID.match(name) else UNKNOWN
