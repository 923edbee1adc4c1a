"""The HTML page in a real browser: Debian's chromium, headless, without a network."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from examples import layout

from guestmem.layout import HostLimits
from guestmem.layout.check import check
from guestmem.recordings.matrix import behaviour
from guestmem.report import trace_html
from guestmem.report.check_html import to_html
from guestmem.report.kernels import kernels_html
from guestmem.targets import target_named
from guestmem.trace.source import read_trace
from guestmem.trace.summary import summarise

DIRECTED = Path(__file__).parent.parent / "examples/recordings/v6.18-directed.jsonl.gz"
LOAD = Path(__file__).parent.parent / "examples/traces/kvm72-load.trace.dat.gz"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

# Clicks "zoom in" twice, then "all", on the first map and writes what the axis says after each into the document.
PROBE = """
<script>
const said = [], axis = document.querySelector(".axis").children, map = document.querySelector("svg.map");
const note = () => said.push(axis[0].textContent + ".." + axis[1].textContent);
note();
for (const how of ["in", "in", "all"]) { document.querySelector(`[data-zoom=${how}]`).click(); note(); }
const left = map.getBoundingClientRect().left;
map.dispatchEvent(new WheelEvent("wheel", { deltaY: -100, clientX: left + 10, cancelable: true }));
note();
document.body.dataset.said = said.join(" ");
const wide = (rect) => rect.getBoundingClientRect().width > 50;
document.body.dataset.rects = [...map.querySelectorAll("rect")].filter(wide).length;
document.body.dataset.bars = [...document.querySelectorAll(".bar")].filter((b) => b.offsetWidth >= 160).length;
</script></body>
"""


def dom(page: Path) -> str:
    """The document after scripts ran. Scripts that throw, or that a policy blocks, leave it unmarked."""
    assert CHROMIUM is not None
    profile = page.parent / "profile"
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={profile}", "--window-size=1200,900"]
    command += ["--virtual-time-budget=2000", "--dump-dom", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page for two layouts, with the probe at its end."""
    page = tmp_path_factory.mktemp("html") / "report.html"
    names = ("qemu72-pc-8G-booted.txt", "ch-zones-odd-virtio-mem.json")
    html = to_html([check(layout(name), HostLimits()) for name in names], "v7.2")
    page.write_text(html.replace("</body>", PROBE), encoding="utf-8")
    return dom(page)


def test_the_page_runs_its_script(rendered: str) -> None:
    assert 'data-ready="yes"' in rendered


def test_zooming_changes_what_the_axis_says(rendered: str) -> None:
    found = re.search(r'data-said="([^"]*)"', rendered)
    assert found is not None
    full, once, twice, back, wheel = found[1].split()
    # 9G of guest-physical space, zoomed in by four from its start.
    assert (full, once, twice, back) == ("0x0..0x240000000", "0x0..0x90000000", "0x0..0x24000000", "0x0..0x240000000")
    assert wheel != full


def test_map_and_bars_are_drawn(rendered: str) -> None:
    drawn = {name: int(count) for name, count in re.findall(r'data-(rects|bars)="(\d+)"', rendered)}
    assert drawn["rects"] >= 2  # the RAM below and above the hole
    assert drawn["bars"] == 14  # every slot of both layouts


def test_reasons_are_there_on_hover(rendered: str) -> None:
    assert "not with 2M pages: dirty logging is on" in rendered
    assert "GPA and HVA differ modulo the page size" in rendered


def test_the_time_lines_of_a_trace_are_drawn(tmp_path: Path) -> None:
    page = tmp_path / "trace.html"
    page.write_text(trace_html.to_html("load", summarise(read_trace(LOAD))), encoding="utf-8")

    drawn = dom(page)

    assert drawn.count("<svg") == drawn.count("<path") == 3
    assert "at most 13" in drawn


# Types two searches and writes how many rows each leaves, and what the page says of it.
SEARCH = """
<script>
const input = document.querySelector("input");
for (const [name, words] of [["one", "eEXist mEm"], ["none", "no such words"]]) {
  input.value = words;
  input.dispatchEvent(new Event("input"));
  const seen = [...document.querySelectorAll(".row")].filter((row) => row.checkVisibility());
  document.body.dataset[name] = seen.length + "; " + document.getElementById("count").textContent;
  document.body.dataset[name + "All"] = seen.every((row) => row.textContent.includes("EEXIST"));
}
</script></body>
"""


def test_a_search_leaves_the_rows_that_have_all_its_words(tmp_path: Path) -> None:
    matrix = behaviour([DIRECTED], [target_named("model:v6.18"), target_named("model:v7.3")], [])
    page = tmp_path / "kernels.html"
    page.write_text(kernels_html(matrix).replace("</body>", SEARCH), encoding="utf-8")
    found = dom(page)

    shown = re.search(r'data-one="(\d+); (\d+) of (\d+) rows" data-one-all="true"', found)
    assert shown is not None
    assert 0 < int(shown[1]) == int(shown[2]) < int(shown[3]) == len(matrix.rows)
    assert f'data-none="0; 0 of {len(matrix.rows)} rows"' in found
