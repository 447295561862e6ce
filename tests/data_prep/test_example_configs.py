"""The example configs of data preparation: each is read by the command that its first lines name."""

import re
from pathlib import Path

import pytest

from data_prep.cli import commands
from mose.command import run_command

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted([*(ROOT / "configs" / "cluster" / "synthconl").glob("*.yaml"), ROOT / "configs" / "cluster" / "dedup.yaml"])


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_command_of_an_example_reads_it(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    place = path.relative_to(ROOT)
    named = re.compile(rf"^#   mose-(?:data|cluster launch) (\w+) --(?:run_)?config {place}$", re.MULTILINE)
    (command,) = named.findall(path.read_text("utf-8"))
    with pytest.raises(SystemExit) as end:
        run_command("mose-data", "", commands(), [command, "--config", str(place), "--print_config"])
    assert end.value.code == 0
    assert "output: data/" in capsys.readouterr().out
