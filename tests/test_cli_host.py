"""The command host as a user runs it, over looks that were recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from live import look
from typer.testing import CliRunner, Result

from guestmem.cli import app, main
from guestmem.errors import BackendUnavailable
from guestmem.host import machine
from guestmem.host.counters import survey_counters
from guestmem.host.document import HostReport
from guestmem.host.loss import lost_bytes, severity_of
from guestmem.host.survey import survey
from guestmem.report.host_text import strip_rows

MIB = 1 << 20


def seen(kernel: str, stage: str, **options: Any) -> HostReport:
    recorded = look(kernel, stage)
    return survey(recorded.kernel, recorded.processes, **options)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> list[HostReport]:
    """What the machine answers, look after look; the last again and again."""
    looks: list[HostReport] = []

    def answer(pid: int | None = None, reader: str = "auto", **_: bool) -> HostReport:
        report = looks.pop(0) if len(looks) > 1 else looks[0]
        vms = [vm for vm in report.vms if pid is None or vm.pid == pid]
        return msgspec.structs.replace(report, vms=vms)

    monkeypatch.setattr(machine, "look_at_machine", answer)
    return looks


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["host", *arguments], catch_exceptions=False)


def test_the_table_names_each_vm_its_bytes_and_the_cause_of_most_loss(host: list[HostReport]) -> None:
    host.append(seen("7.2", "B"))

    lines = run().stdout.splitlines()

    assert lines[0].split()[:4] == ["PID", "name", "memory", "mapped"]
    row = lines[1].split()
    assert row[:2] == ["117", "kvmstory"]
    assert row[4:7] == ["1G", "8M", "18.06M"]  # 1G, 2M and 4K pages
    assert lines[1].endswith("dirty logging on slots 1 and 5")


def test_the_closing_lines_say_how_it_was_read_and_that_the_count_agrees(host: list[HostReport]) -> None:
    host.append(seen("6.12", "A"))

    said = run().stdout

    assert "1 VM, 1.03G mapped: 1G with 1G pages, 26M with 2M pages, 52K with 4K pages; 52K lost" in said
    assert "the walk found as many leaves as KVM counts" in said


def test_vms_are_sorted_by_what_they_lost(host: list[HostReport]) -> None:
    little, much = seen("7.2", "A").vms[0], seen("7.2", "B").vms[0]
    first = msgspec.structs.replace(little, pid=1)
    host.append(msgspec.structs.replace(seen("7.2", "A"), vms=[first, msgspec.structs.replace(much, pid=2)]))

    pids = [line.split()[0] for line in run().stdout.splitlines()[1:3]]

    assert pids == ["2", "1"]


def test_one_process_is_shown_slot_by_slot_with_a_strip_and_what_to_change(host: list[HostReport]) -> None:
    host.append(seen("7.2", "A", strips=True))

    said = run("117").stdout

    rows = {line.split()[0]: line for line in said.splitlines() if line.strip()}
    assert "hva 16K" in rows["0x10000000"]
    assert "order 0 12K" in rows["0x3a000000"]
    assert rows["mapped"].endswith("1" * 20)  # the upper half is one 1G page
    assert "one page off" in said
    assert "change: " in said


def test_a_strip_shows_what_lies_where() -> None:
    (vm,) = seen("7.2", "A", strips=True).vms

    rows = strip_rows(vm, 64)  # of 2 GiB: 32M each

    assert rows is not None
    possible, backed, mapped = rows
    assert possible[32:] == backed[32:] == mapped[32:] == "1" * 32
    assert (possible[0], backed[0]) == ("2", "2")
    assert possible[8] == "4"  # the slot that is off by a page
    assert possible[4] == " "


def test_json_has_the_documented_shape(host: list[HostReport]) -> None:
    host.append(seen("7.2", "A"))

    answer = json.loads(run("--json").stdout)

    assert answer["format"] == "guestmem-host/1"
    assert {"vms", "reader", "seconds", "exact"} <= set(answer)
    (vm,) = answer["vms"]
    assert {"pid", "name", "slots", "totals"} <= set(vm)
    slot = next(slot for slot in vm["slots"] if slot["gpa"] == "0x3a000000")
    assert slot["size"] == 4 * MIB
    assert slot["flags"] == 4
    assert slot["address_space"] == 0
    assert slot["guest_memfd"]["offset"] == "0x0"
    assert slot["possible"] == {"4K": 4 * MIB, "2M": 0, "1G": 0}
    assert slot["mapped"] == {"4K": 12288, "2M": 0, "1G": 0}
    assert slot["lost"] == [{"level": "2M", "reason": "order_0", "bytes": 12288}]
    assert int(slot["hva"], 16) > 0


def test_json_fits_its_schema(host: list[HostReport]) -> None:
    host.append(seen("6.1", "H"))

    assert msgspec.json.decode(run("--json").stdout, type=HostReport).exact
    schema = json.loads(CliRunner().invoke(app, ["schema", "host"]).stdout)
    assert schema["title"] == "guestmem host"
    assert set(schema["$defs"]["HostSlot"]["required"]) >= {"gpa", "size", "hva", "possible", "mapped", "lost"}


def test_a_saved_look_is_a_source_of_check(host: list[HostReport], tmp_path: Path) -> None:
    host.append(seen("7.2", "A"))
    path = tmp_path / "saved.json"

    assert run("--save", str(path), "--fail-on", "never").exit_code == 0
    checked = CliRunner().invoke(app, ["check", "--json", "--fail-on", "never", str(path)])

    (source,) = json.loads(checked.stdout)["sources"]
    assert [slot["gpa"] for slot in source["slots"]] == [slot.gpa for slot in host[0].vms[0].slots]
    assert source["assumptions"] == []


def test_a_saved_look_holds_neither_kernel_addresses_nor_command_lines(host: list[HostReport], tmp_path: Path) -> None:
    host.append(seen("7.2", "A", strips=True))
    path = tmp_path / "saved.json"
    run("--save", str(path))

    addresses = [
        int(word.strip('",'), 16) for word in path.read_text().replace("[", " ").split() if word.startswith('"0x')
    ]

    assert addresses
    assert max(addresses) < 1 << 47  # the user's half
    assert "cmdline" not in path.read_text()


@pytest.mark.parametrize(
    ("stage", "level", "status"),
    [
        ("A", "warning", 0),  # 12K on memory without huge pages, 12K by dirty logging: less than a frame
        ("A", "note", 1),
        ("A", "never", 0),
        ("H", "warning", 1),  # 2M on the host's 4K pages
        ("H", "error", 0),
    ],
)
def test_the_status_says_whether_loss_reaches_fail_on(
    host: list[HostReport], stage: str, level: str, status: int
) -> None:
    host.append(seen("7.2", stage))

    assert run("--fail-on", level).exit_code == status


def test_a_vm_that_could_not_be_read_is_an_error_and_said(host: list[HostReport]) -> None:
    report = seen("7.2", "A")
    totals = msgspec.structs.replace(report.vms[0].totals, size=None)
    unread = msgspec.structs.replace(report.vms[0], slots=[], totals=totals, note="slots are changing")
    host.append(msgspec.structs.replace(report, vms=[unread], exact=False))

    result = run()

    assert severity_of(host[0]) == "error"
    assert result.exit_code == 1
    assert "process 117: slots are changing" in result.stdout


@pytest.mark.parametrize(("count", "words"), [(20, "4 leaves of 4K fewer"), (17, "1 leaf of 4K fewer")])
def test_a_count_that_differs_is_said_with_the_difference(host: list[HostReport], count: int, words: str) -> None:
    report = seen("7.2", "A")
    counted = {**report.vms[0].totals.counted, "4K": count}
    vm = msgspec.structs.replace(report.vms[0], totals=msgspec.structs.replace(report.vms[0].totals, counted=counted))
    host.append(msgspec.structs.replace(report, vms=[vm], exact=False))

    assert f"process 117: {words} than KVM counts" in run().stdout


def test_what_changed_is_shown_while_watching(host: list[HostReport], monkeypatch: pytest.MonkeyPatch) -> None:
    host += [seen("7.2", "A"), seen("7.2", "B")]
    waits = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("guestmem.cli.host.time.sleep", sleep)
    result = CliRunner().invoke(app, ["host", "--watch", "3"])

    assert waits == [3, 3]
    assert "-18M with 2M, +18M with 4K" in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    "arguments",
    [["--watch", "1", "--json"], ["--watch", "1", "--save", "x"], ["--fail-on", "x"], ["--reader", "x"], ["999"]],
)
def test_misuse_is_one_line_and_status_2(
    host: list[HostReport],
    arguments: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host.append(seen("7.2", "A"))
    monkeypatch.setattr("sys.argv", ["guestmem", "host", *arguments])

    with pytest.raises(SystemExit) as ended:
        main()

    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_page_holds_every_vm_and_needs_no_network(host: list[HostReport], tmp_path: Path) -> None:
    report = seen("7.2", "A", strips=True)
    hostile = msgspec.structs.replace(report.vms[0], name="<script>x</script>")
    host.append(msgspec.structs.replace(report, vms=[hostile]))
    path = tmp_path / "host.html"

    run("--html", str(path))

    page = path.read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "default-src 'none'" in page
    assert "http://" not in page
    assert "https://" not in page
    assert page.count("<rect") >= 3 * len(report.vms[0].slots)


def debugfs(directory: Path) -> Path:
    vm = directory / "117-12"
    vm.mkdir(parents=True)
    for name, value in (("pages_4k", 3), ("pages_2m", 2), ("pages_1g", 1)):
        (vm / name).write_text(f"{value}\n")
    (directory / "exits").write_text("5\n")
    return directory


def test_counters_stand_in_where_kernel_memory_is_refused(host: list[HostReport], tmp_path: Path) -> None:
    report = survey_counters(look("7.2", "A").processes, None, "refused", debugfs(tmp_path / "kvm"))
    host.append(report)

    said = run().stdout

    assert report.vms[0].totals.mapped == {"4K": 3 * 4096, "2M": 4 * MIB, "1G": 1 << 30}
    assert not report.exact
    assert lost_bytes(report.vms[0]) == 0
    assert "KVM's counters in debugfs" in said
    assert "slots and reasons cannot be seen this way" in said


def test_without_counters_too_one_line_names_both_causes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(reader: str) -> None:
        raise BackendUnavailable("kernel memory cannot be read: BPF answers EPERM")

    def no_debugfs(processes: object, pid: int | None, why: str) -> HostReport:
        return survey_counters(look("7.2", "A").processes, pid, why, tmp_path / "missing")

    monkeypatch.setattr(machine, "open_kernel", refused)
    monkeypatch.setattr(machine, "survey_counters", no_debugfs)
    monkeypatch.setattr("sys.argv", ["guestmem", "host"])

    with pytest.raises(SystemExit) as ended:
        main()

    said = capsys.readouterr().err
    assert ended.value.code == 4
    assert said.count("\n") == 1
    assert "EPERM" in said
    assert "No such file" in said
