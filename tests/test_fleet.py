"""Fleets: the vectorised path gives the sums of the scalar one, whatever the VMs hold."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import SMALL, hosts, small_layouts
from pyarrow import parquet
from typer.testing import CliRunner

from guestmem.cli import app
from guestmem.layout import HostLimits, Layout, LayoutError, cover
from guestmem.layout.fleet import FleetSums, check_fleet
from guestmem.layout.readers import fleet_jsonl, fleet_parquet
from guestmem.layout.readers.own import read_fleet
from guestmem.layout.recognise import read, recognise
from guestmem.report.check_json import fleet_entry
from guestmem.units import GIB, MIB

NAMES = {1: "log_dirty_pages", 2: "readonly", 4: "guest_memfd"}


def as_line(layout: Layout, name: str) -> dict[str, Any]:
    """The layout as a document of guestmem's own format."""
    slots = []
    for slot in layout.slots:
        document = {
            "gpa": f"{slot.gpa:#x}",
            "size": slot.size,
            "flags": slot.flags,
            "backing": {"kind": slot.backing.kind, "page_size": slot.backing.page_size},
            "address_space": slot.address_space,
        }
        optional = {"hva": slot.hva, "file": slot.file, "offset": slot.offset}
        slots.append(document | {key: value for key, value in optional.items() if value is not None})
    return {"name": name, "slots": slots}


def scalar(data: bytes, host: HostLimits) -> dict[str, Any]:
    """The sums of a fleet by the scalar path alone."""
    coverages = [cover(layout, host) for layout in read_fleet("f", data)]
    levels = range(len(host.sizes))
    return {
        "size": [coverage.size for coverage in coverages],
        "mapped": [[coverage.mapped[level] for coverage in coverages] for level in levels],
        "lost": [
            {(lost.reason, index): lost.size for index, coverage in enumerate(coverages) for lost in coverage.lost
             if lost.page_size == host.sizes[level]}
            for level in levels
        ],
    }  # fmt: skip


def vectorised(sums: FleetSums) -> dict[str, Any]:
    return {
        "size": sums.sums.size.tolist(),
        "mapped": [values.tolist() for values in sums.sums.mapped],
        "lost": [
            {
                (reason, index): size
                for reason, values in by_reason.items()
                for index, size in enumerate(values.tolist())
                if size
            }
            for by_reason in sums.sums.lost
        ],
    }


vms = st.lists(
    st.tuples(small_layouts(), st.sampled_from(["plain", "plain", "plain", "files", "private", "overlap"])), max_size=6
)


@given(vms, hosts())
@settings(max_examples=150, deadline=None)
def test_the_vectorised_path_and_the_scalar_path_agree_on_every_vm(
    many: list[tuple[Layout, str]], host: HostLimits
) -> None:
    documents = []
    for index, (layout, kind) in enumerate(many):
        document = as_line(layout, f"vm{index}")
        if kind == "files":
            document["files"] = [{"name": file.name, "flags": file.flags} for file in layout.files]
        if kind == "private":
            document["private"] = [{"gpa": run.start, "size": run.end - run.start} for run in layout.private]
        if kind == "overlap":
            document["slots"].append(document["slots"][0])
        documents.append(document)
    data = b"".join(json.dumps(document).encode() + b"\n" for document in documents)
    assert vectorised(check_fleet(fleet_jsonl.read("f", data), host)) == scalar(data, host)


@given(st.lists(small_layouts(), min_size=1, max_size=5), hosts())
@settings(max_examples=60, deadline=None)
def test_plain_vms_go_through_numpy_and_only_odd_ones_do_not(many: list[Layout], host: HostLimits) -> None:
    plain = [
        replace(layout, slots=tuple(slot for slot in layout.slots if slot.file is None and slot.flags < 2))
        for layout in many
    ]
    data = b"".join(json.dumps(as_line(layout, "v")).encode() + b"\n" for layout in plain)
    sums = check_fleet(fleet_jsonl.read("f", data), host)
    assert sums.scalar == 0
    odd = data + b'{"slots": [{"gpa": 1, "size": 4096}]}\n'
    assert check_fleet(fleet_jsonl.read("f", odd), host).scalar == 1


def table(**columns: list[Any]) -> bytes:
    """A Parquet file of these columns."""
    out = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), out)
    return out.getvalue()


def test_a_parquet_fleet_is_judged_like_the_same_layouts_as_lines() -> None:
    data = table(
        vm=["b", "a", "a", "b"],
        gpa=[0, 0, 4 * GIB, GIB],
        size=[GIB, 3 * GIB, GIB, GIB],
        hva=[0x7F0000000000, 0x7F0000001000, None, 0x7F0040000000],
        flags=[0, 0, 1, 2],
        backing=["hugetlb", "anonymous", "anonymous", "file"],
        page_size=[GIB, 4096, 4096, 4096],
    )
    assert recognise("f", data) == "guestmem-parquet"
    sums = check_fleet(fleet_parquet.read("f", data), HostLimits())
    assert sums.fleet.names == ["a", "b"]
    assert sums.mapped == (6 * GIB, GIB, GIB)
    lost = {reason.value: value for reason, value in sums.lost(1).items()}
    # a: 3G whose HVA is 4K off, 1G dirty-logged; b: 1G of plain file pages.
    assert lost == {"hva": (3 * GIB, 1), "dirty_log": (GIB, 1), "backing": (GIB, 1)}
    assert sums.worst(5) == [("a", 4 * GIB, 4 * GIB), ("b", 2 * GIB, GIB)]
    assert sums.scalar == 0


def test_a_parquet_vm_that_kvm_would_refuse_goes_the_scalar_way() -> None:
    data = table(vm=[1, 1], gpa=[0, MIB], size=[2 * MIB, 2 * MIB], guest_memfd=[1, 0])
    sums = check_fleet(fleet_parquet.read("f", data), HostLimits())
    assert sums.scalar == 1
    assert sums.lost(0)
    assert sums.severity == "error"


def test_parquet_rows_of_guest_memfds_are_private_in_released_kernels() -> None:
    data = table(vm=[1], gpa=[0], size=[4 * MIB], guest_memfd=[1])
    sums = check_fleet(fleet_parquet.read("f", data), HostLimits())
    assert {reason.value for reason in sums.lost(1)} == {"order_0"}


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (b"PAR1 and then nothing", "needed a Parquet table"),
        (table(gpa=[0], size=[1]), "column vm"),
        (table(vm=[0], size=[1]), "column gpa"),
        (table(vm=[0], gpa=[-1], size=[1]), "column gpa"),
        (table(vm=[0], gpa=["x"], size=[1]), "column gpa"),
        (table(vm=[0], gpa=[0.5], size=[1]), "column gpa"),
    ],
)
def test_a_table_that_is_no_fleet_is_one_line(data: bytes, wanted: str) -> None:
    with pytest.raises(LayoutError) as refused:
        fleet_parquet.read("f", data)
    assert wanted in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_parquet_fleet_is_for_check_only() -> None:
    with pytest.raises(LayoutError, match="guestmem check"):
        read("f", table(vm=[0], gpa=[0], size=[4096]))


def test_a_broken_line_is_named() -> None:
    with pytest.raises(LayoutError, match="f:2"):
        fleet_jsonl.read("f", b'{"slots": []}\n{"slots": 3}\n')


def test_one_vm_with_one_slot_is_no_plural(tmp_path: Path) -> None:
    path = tmp_path / "fleet.jsonl"
    path.write_text('{"name": "vm", "slots": [{"gpa": 0, "size": "0x40000000"}]}\n')

    result = CliRunner().invoke(app, ["check", "--format", "guestmem-fleet", str(path)])

    assert "1 VM, 1 slot, 1G" in result.stdout


def test_check_prints_totals_reasons_and_the_worst_vms(tmp_path: Path) -> None:
    lines = [
        {"name": f"vm{n}", "slots": [{"gpa": 0, "size": "0x40000000", "hva": 0x7F0000000000 + 4096 * (n % 2)}]}
        for n in range(4)
    ]
    path = tmp_path / "fleet.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = CliRunner().invoke(app, ["check", str(path)])
    assert result.exit_code == 1
    assert "4 VMs, 4 slots, 4G" in result.stdout
    assert "GPA and HVA differ modulo the page size" in result.stdout
    answer = json.loads(CliRunner().invoke(app, ["check", "--json", "--fail-on", "error", str(path)]).stdout)
    (fleet,) = answer["fleets"]
    assert (fleet["levels"]["2M"], fleet["vms"]) == (2 * GIB, 4)
    assert [vm["name"] for vm in fleet["worst"]] == ["vm3", "vm1"]


def test_a_fleet_of_perfect_vms_has_no_severity() -> None:
    data = b'{"slots": [{"gpa": 0, "size": "1G", "backing": {"kind": "hugetlb", "page_size": "1G"}}]}\n'
    sums = check_fleet(fleet_jsonl.read("f", data), HostLimits())
    assert sums.severity is None
    assert fleet_entry(sums).levels == {"4K": GIB, "2M": GIB, "1G": GIB}


def test_geometries_without_huge_pages_are_no_special_case() -> None:
    from guestmem.geometry import Geometry

    data = b'{"slots": [{"gpa": 0, "size": 8192}]}\n'
    flat = HostLimits(Geometry("flat", 4096, (0,)))
    assert check_fleet(fleet_jsonl.read("f", data), flat).mapped == (8192,)
    assert SMALL.page_sizes[0] == 4096


def test_odd_vms_cost_the_same_however_large_the_fleet_is() -> None:
    lines = [{"name": f"vm{at}", "slots": [{"gpa": 4096, "size": 8192, "hva": 1}]} for at in range(20_000)]
    fleet = fleet_jsonl.read("f", "\n".join(map(json.dumps, lines)).encode())
    sums = check_fleet(fleet, HostLimits())
    assert (sums.scalar, sums.size) == (20_000, 20_000 * 8192)


@pytest.mark.parametrize("form", ["--sarif", "--html"])
def test_a_fleet_has_no_form_that_shows_single_vms_and_says_so(form: str, tmp_path: Path) -> None:
    (tmp_path / "fleet.jsonl").write_text('{"slots": []}\n{"slots": []}\n')
    page = tmp_path / "page.html"
    arguments = [form, str(page)] if form == "--html" else [form]
    ended = CliRunner().invoke(app, ["check", *arguments, str(tmp_path / "fleet.jsonl")])
    assert isinstance(ended.exception, ValueError)
    assert "--json" in str(ended.exception)
    assert not page.exists()
