"""Finds keys and personal data in texts: tokens by the patterns of detect-secrets, e-mail and IP addresses as StarCoder did.

detect-secrets searches each line with each detector, a hundredth of a tokenizer's speed. Here a pass of RE2, whose time
does not depend on the number of alternatives, finds the few texts on which the patterns have to be tried. Its detectors without a
literal (high entropy, keywords, Twilio, Discord, Telegram) are left out: most of what they find in source code are hashes.
"""

import functools
import importlib
import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mose.seeding import derive_key

KEY, EMAIL, IP_ADDRESS, PRIVATE_KEY = "key", "email", "ip_address", "private_key"
SECRETS = (KEY, PRIVATE_KEY)

# Module and detector of detect-secrets, and texts of which one stands in each match.
_DETECTORS = (
    ("aws", "AWSKeyDetector", ("AKIA", "ASIA", "ABIA", "ACCA", "A3T", "aws")),
    ("azure_storage_key", "AzureStorageKeyDetector", ("AccountKey=",)),
    ("github_token", "GitHubTokenDetector", ("ghp_", "gho_", "ghu_", "ghs_", "ghr_")),
    ("gitlab_token", "GitLabTokenDetector", ("glpat-", "gldt-", "glft-", "glsoat-", "glrt-", "GR1348941")),
    ("gitlab_token", "GitLabTokenDetector", ("glcbt-", "glimt-", "glptt-", "glagent-", "gloas-")),
    ("jwt", "JwtTokenDetector", ("eyJ",)),
    ("npm", "NpmDetector", ("_authToken",)),
    ("openai", "OpenAIDetector", ("T3BlbkFJ",)),
    ("pypi_token", "PypiTokenDetector", ("pypi-AgE",)),
    ("sendgrid", "SendGridDetector", ("SG.",)),
    ("slack", "SlackDetector", ("xox", "hooks.slack.com")),
    ("square_oauth", "SquareOAuthDetector", ("sq0csp-",)),
    ("stripe", "StripeDetector", ("k_live_",)),
)
# AWS key ids are in base 32; sequences of bases are not.
_NO_KEY = re.compile(r"[A-Z]+")
_KEY_BLOCK = re.compile(
    r"-----BEGIN (?P<kind>[A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?)-----(?P<body>[^-]*(?:-(?!----)[^-]*)*)(?:-----END (?P=kind)-----)?"
)
# The part behind the @; what stands before it is looked up backwards, because a pattern that begins with any word is slow.
_DOMAIN = re.compile(r"@((?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?\.)+([A-Za-z]{2,24}))(?![\w@(-])")
_LOCAL_PART = re.compile(r"[A-Za-z0-9_][\w.%+-]*\Z")
_LONGEST_LOCAL_PART = 64
# RFC 2606, addresses of services instead of persons, and names of pictures such as icon@2x.png.
_NOBODY = re.compile(r"(?:^|\.)example\.(?:com|org|net)$|\.(?:example|test|invalid|local|localhost)$", re.I)
_SERVICES = frozenset({"git", "noreply", "no-reply", "hg", "svn"})
_FILE_SUFFIXES = frozenset(
    [
        "png",
        "jpg",
        "jpeg",
        "gif",
        "svg",
        "webp",
        "pdf",
        "js",
        "ts",
        "css",
        "py",
        "java",
        "json",
        "xml",
        "html",
        "yml",
        "yaml",
        "md",
        "txt",
        "so",
    ]
)
_IPV4 = re.compile(r"(?<![\w.-])\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}(?![\w-]|\.\w)")
# Global unicast addresses are 2000::/3.
_IPV6 = re.compile(r"(?<![\w:.])[23][0-9A-Fa-f]{3}:(?:[0-9A-Fa-f]{0,4}:){1,6}[0-9A-Fa-f]{0,4}(?![\w:])")
# Public resolvers, which name nobody.
_KNOWN = frozenset(
    ["8.8.8.8", "8.8.4.4", "1.1.1.1", "1.0.0.1", "9.9.9.9", "208.67.222.222", "208.67.220.220", "4.4.4.4", "114.114.114.114"]
)
_PRIVATE_ADDRESSES = {
    4: ("172.16.31.10", "172.16.58.3", "192.168.127.12", "192.168.3.11", "192.168.127.12"),
    6: ("fd00::1", "fd00::2", "fd00::3", "fd00::4", "fd00::5"),
}


@dataclass(frozen=True, order=True)
class Finding:
    """A secret or an address in a text."""

    start: int
    end: int
    """Exclusive, in characters."""
    kind: str


def find(text: str, utf8: bytes, *, secrets: bool, personal: bool) -> list[Finding]:
    """The wanted findings in order, without overlaps; `utf8` is the same text."""
    found: list[Finding] = list(_emails(text)) if personal else []
    # One pass for both: most texts have neither a trigger nor a candidate.
    wanted = "|".join([_SECRET_TRIGGER] * secrets + [_ADDRESS_CANDIDATE] * personal)
    if wanted and _linear(wanted).search(utf8):
        if secrets and _linear(_SECRET_TRIGGER).search(utf8):
            found += _secrets(text)
        if personal:
            found += _addresses(text, utf8)
    kept: list[Finding] = []
    for finding in sorted(found, key=lambda item: (item.start, -item.end)):
        if not kept or finding.start >= kept[-1].end:
            kept.append(finding)
    return kept


def replaced(text: str, findings: list[Finding]) -> str:
    """The text with `<KEY>` and `<EMAIL>` in place of findings, and for each public address always the same private one."""
    parts, end = [], 0
    for finding in findings:
        parts += [text[end : finding.start], _placeholder(text[finding.start : finding.end], finding.kind)]
        end = finding.end
    return "".join([*parts, text[end:]])


def _placeholder(found: str, kind: str) -> str:
    if kind == IP_ADDRESS:
        choices = _PRIVATE_ADDRESSES[6 if ":" in found else 4]
        return choices[derive_key(0, "address", found) % len(choices)]
    return "<EMAIL>" if kind == EMAIL else "<KEY>"


# What a text holds that has a secret, and where an address may be, in RE2's syntax.
_SECRET_TRIGGER = "|".join(["PRIVATE KEY", *(re.escape(literal) for _, _, literals in _DETECTORS for literal in literals)])
_ADDRESS_CANDIDATE = r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}|[23][0-9A-Fa-f]{3}:(?:[0-9A-Fa-f]{0,4}:){1,6}[0-9A-Fa-f]{0,4}"
# In front of a number of four parts that is no address.
_VERSION = re.compile(r"ersion|evision|\$Id|elease|@\(#\)|==")
_VERSION_CHARACTERS = 40


@functools.cache
def _linear(pattern: str) -> Any:
    # Imported late: only packing needs it.
    import re2

    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    return re2.compile(pattern.encode(), options)


@functools.cache
def _patterns() -> list[tuple[tuple[str, ...], list[re.Pattern[str]]]]:
    """Literals and patterns; loaded by the first text, because the library costs a tenth of a second."""
    modules = {name: importlib.import_module(f"detect_secrets.plugins.{name}") for name, _, _ in _DETECTORS}
    return [(literals, list(getattr(modules[name], detector).denylist)) for name, detector, literals in _DETECTORS]


def _secrets(text: str) -> Iterator[Finding]:
    if "PRIVATE KEY" in text:
        for match in _KEY_BLOCK.finditer(text):
            # A header alone is the name of a format in code that reads keys.
            if len(match["body"].strip()) >= 40:
                yield Finding(match.start("body"), match.end("body"), PRIVATE_KEY)
    for literals, patterns in _patterns():
        if any(literal in text for literal in literals):
            for pattern in patterns:
                for match in pattern.finditer(text):
                    # A group that takes in most of the match is the secret; GitHub's holds only the kind of the token.
                    group = 1 if pattern.groups and match[1] and len(match[1]) >= 20 else 0
                    if not _NO_KEY.fullmatch(match[group]):
                        yield Finding(*match.span(group), KEY)


def _emails(text: str) -> Iterator[Finding]:
    if "@" not in text:
        return
    for match in _DOMAIN.finditer(text):
        if match[2].lower() in _FILE_SUFFIXES or _NOBODY.search(match[1]):
            continue
        local = _LOCAL_PART.search(text[max(0, match.start() - _LONGEST_LOCAL_PART) : match.start()])
        if local is not None and local[0].lower() not in _SERVICES:
            yield Finding(match.start() - len(local[0]), match.end(), EMAIL)


def _addresses(text: str, utf8: bytes) -> Iterator[Finding]:
    for candidate in _linear(_ADDRESS_CANDIDATE).finditer(utf8):
        start = candidate.start()
        if len(text) < len(utf8):
            start = len(utf8[:start].decode("utf-8"))
        match = _IPV4.match(text, start) or _IPV6.match(text, start)
        if match is None or match[0] in _KNOWN or not _is_public(match[0]):
            continue
        if not _VERSION.search(text, max(0, start - _VERSION_CHARACTERS), start):
            yield Finding(*match.span(), IP_ADDRESS)


def _is_public(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False
