"""Secrets and personal data: what is found, what stands in its place, and what the filters count."""

from pathlib import Path

import pytest

from data_prep.filters.config import FiltersConfig
from data_prep.filters.dropped_log import DroppedLines
from data_prep.filters.filters import PERSONAL_DATA, REPLACED, SECRET, FilterCounts, filter_repository
from data_prep.sources.detection.secrets import find, replaced
from data_prep.sources.repositories import SourceFile, content_sha1

# Made up here, in pieces, so that no scanner takes this file for a leak.
AWS = "AKIA" + "Q3EGRZNKTL5M2WXY"
GITHUB = "ghp_" + "x7Kq" * 9
BODY = "\n" + "MIIEpQIBAAKCAQEAyQaX1kZWr\n" * 4
BLOCK = f"-----BEGIN RSA PRIVATE KEY-----{BODY}-----END RSA PRIVATE KEY-----\n"


def cleaned(text: str) -> str:
    return replaced(text, find(text, text.encode(), secrets=True, personal=True))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"key = '{AWS}'", "key = '<KEY>'"),
        (f"token: {GITHUB}\n", "token: <KEY>\n"),
        (BLOCK, "-----BEGIN RSA PRIVATE KEY-----<KEY>-----END RSA PRIVATE KEY-----\n"),
        ("# (c) Ada Lovelace <ada.l+x@analytical.co.uk>, é", "# (c) Ada Lovelace <<EMAIL>>, é"),
        ("mail me at ada@analytical.org.", "mail me at <EMAIL>."),
        ("a@b.io,c@d.io", "<EMAIL>,<EMAIL>"),
    ],
)
def test_findings_are_replaced(text: str, expected: str) -> None:
    assert cleaned(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "ACCAACCAACTTTCGATCTC",
        "-----BEGIN RSA PRIVATE KEY-----",
        "@app.route('/')\n@pytest.mark.slow\n",
        "git@github.com:owner/name.git",
        "icon@2x.png user@example.com a@localhost",
        "127.0.0.1 10.1.2.3 192.168.0.1 8.8.8.8 version 4.0.2.5 1.2.3 999.1.1.1 12:30:45:10",
        "sha = 'da39a3ee5e6b4b0d3255bfef95601890afd80709'",
    ],
)
def test_what_names_nobody_stays(text: str) -> None:
    assert cleaned(text) == text


def test_an_address_becomes_the_same_private_one_everywhere() -> None:
    first, second = cleaned("host = '93.184.215.14'"), cleaned("connect 93.184.215.14:80, 2606:2800:21f:cb07:6820:80da:af6b:8b2c")
    assert "93.184" not in first + second and "2606" not in second
    assert first.split("'")[1] == second.split()[1].split(":")[0]


def file_of(text: str, encoding: str = "UTF-8") -> SourceFile:
    content = text.encode(encoding)
    return SourceFile("o/r", "/a.py", content, "Python", (), "unknown", content_sha1(content), encoding)


def test_the_filters_replace_count_and_log(tmp_path: Path) -> None:
    text = f"# é ada@analytical.org, ada@analytical.org\nkey = '{AWS}'\n"
    for encoding in ("UTF-8", "latin-1"):
        file, counts, dropped = file_of(text, encoding), FilterCounts(), DroppedLines()
        (kept,) = filter_repository([file], FiltersConfig(), counts, dropped)
        assert kept.text == "# é <EMAIL>, <EMAIL>\nkey = '<KEY>'\n" and kept.utf8 == kept.text.encode()
        assert kept.source.blob_id == file.blob_id and kept.source.num_bytes == len(file.content)
        assert {kind: tally.files for kind, tally in counts.replaced.items()} == {"email": 2, "key": 1}
        assert counts.reasons["kept"].bytes == len(file.content)
        assert dropped.take() == [("o/r", "/a.py", file.blob_id, REPLACED, 0, "email 2, key 1")]
        merged = FilterCounts.merge([counts.to_plain(), counts.to_plain()])
        assert merged.replaced["email"].files == 4
    earlier = {name: value for name, value in FilterCounts().to_plain().items() if name != "replaced"}
    assert FilterCounts.merge([earlier]).replaced == {}


@pytest.mark.parametrize(
    ("config", "outcome"),
    [
        (FiltersConfig(secrets="drop"), SECRET),
        (FiltersConfig(personal_data="drop"), PERSONAL_DATA),
        (FiltersConfig(secrets="keep", personal_data="keep"), "kept"),
    ],
)
def test_or_drop_the_file_or_leave_it(config: FiltersConfig, outcome: str) -> None:
    text, counts = f"ada@analytical.org {AWS}\n", FilterCounts()
    kept = [found.text for found in filter_repository([file_of(text)], config, counts)]
    assert kept == ([text] if outcome == "kept" else []) and counts.reasons[outcome].files == 1
