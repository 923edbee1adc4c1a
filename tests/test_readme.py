"""The README shows real output: every command in it is run again and must print what stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"^```console\n\$ (.+?)\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
MEASURED = {"make bench", "make test"}  # times and counts differ from run to run
COMMANDS = {
    "make run": [sys.executable, "-m", "guestmem", "run", *sorted(ROOT.glob("examples/recordings/*.gz"))],
}


@pytest.mark.parametrize(("command", "shown"), [block for block in BLOCKS if block[0] not in MEASURED])
def test_every_command_of_the_readme_prints_what_stands_there(command: str, shown: str) -> None:
    words = [sys.executable if word == "python" else word for word in command.split()]
    if words[0] == "guestmem":
        words = [sys.executable, "-m", *words]
    run = [str(word).replace(f"{ROOT}/", "") for word in COMMANDS.get(command, words)]

    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True)

    assert done.stdout == shown


def test_the_readme_shows_the_two_commands_a_new_user_needs() -> None:
    text = (ROOT / "README.md").read_text()
    makefile = (ROOT / "Makefile").read_text()

    assert "$ make run" in text
    assert "$ make test" in text
    assert re.search(r"^run:", makefile, re.MULTILINE)
    assert re.search(r"^test:", makefile, re.MULTILINE)
    assert "\t@$(BIN)/guestmem run examples/recordings/*.jsonl.gz" in makefile
