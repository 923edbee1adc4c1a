"""What is mapped, by page size: the count of KVM's statistics, on every backend that can tell."""

from __future__ import annotations

import errno
import struct

import pytest

import guestmem
from guestmem.backend import Statistics
from guestmem.errors import BackendUnavailable, KvmError, NotVisible
from guestmem.kvm import KvmBackend, statistics
from guestmem.kvm.guest import BOOT_PAGES
from guestmem.model.process import Process
from guestmem.objects import Vm
from guestmem.units import GIB, MIB

P = 4096


def file_of(name_size: int, *found: tuple[str, int, list[int]]) -> bytes:
    """A statistics file as Documentation/virt/kvm/api.rst (4.133) lays it out: header, id, descriptors, data."""
    desc_offset = 24 + name_size
    data_offset = desc_offset + len(found) * (16 + name_size)
    file = struct.pack("<6I", 0, name_size, len(found), 24, desc_offset, data_offset) + b"kvm-7".ljust(name_size, b"\0")
    data = b""
    for name, exponent, values in found:
        file += struct.pack("<IhHII", 0, exponent, len(values), len(data), 0) + name.encode().ljust(name_size, b"\0")
        data += struct.pack(f"<{len(values)}Q", *values)
    return file + data


def test_the_file_describes_itself_and_histograms_are_left_out() -> None:
    file = file_of(48, ("pages_4k", 0, [7]), ("halt_hist", -9, [1, 2, 3]), ("pages_1g", 0, [2**40]))

    assert list(statistics.counters(file)) == [("pages_4k", 7), ("pages_1g", 2**40)]


@pytest.mark.parametrize("name_size", [8, 48, 128])
def test_names_have_the_length_that_the_header_says(name_size: int) -> None:
    assert dict(statistics.counters(file_of(name_size, ("a", 0, [1]), ("b" * (name_size - 1), 0, [2])))) == {
        "a": 1,
        "b" * (name_size - 1): 2,
    }


def test_no_statistics_are_no_counters() -> None:
    assert list(statistics.counters(file_of(48))) == []


# -- the model -------------------------------------------------------------------------------------------------------


def test_the_model_counts_leaves_of_each_size_and_leaves_out_what_is_not_there() -> None:
    with Process() as backend:
        kvm = guestmem.objects.Kvm(backend)
        vm = kvm.create_vm()
        hva = backend.anonymous(2 * GIB, 3, GIB, page_order=18)
        vm.set_user_memory_region(0, gpa=GIB, size=GIB, userspace_addr=hva)
        vm.set_user_memory_region(1, gpa=8 * GIB, size=3 * MIB, userspace_addr=hva + GIB)
        vcpu = vm.create_vcpu()
        assert vm.mapped_pages() == {}
        for gpa in (GIB, 8 * GIB, 8 * GIB + 2 * MIB, 8 * GIB + 2 * MIB + P):
            vcpu.write(gpa, 1)
        assert vm.mapped_pages() == {GIB: 1, 2 * MIB: 1, P: 2}


@pytest.mark.parametrize(("fd", "refused"), [(-1, errno.EBADF), (9999, errno.EBADF)])
def test_what_is_no_vm_has_no_count(fd: int, refused: int) -> None:
    with Process() as backend, pytest.raises(KvmError) as error:
        backend.mapped_pages(fd)
    assert error.value.errno == refused


def test_a_backend_that_cannot_tell_says_so() -> None:
    with Process() as model:
        silent = type("Silent", (), {"name": "silent"})()
        assert not isinstance(silent, Statistics)
        assert isinstance(model, Statistics)
        with pytest.raises(NotVisible, match="silent"):
            Vm(silent, 3).mapped_pages()


# -- /dev/kvm --------------------------------------------------------------------------------------------------------


def test_dev_kvm_counts_the_vms_leaves_or_says_why_it_cannot() -> None:
    with KvmBackend() as backend:
        try:
            vm = backend.create_vm(backend.open_kvm(), 0)
        except BackendUnavailable as reason:
            pytest.skip(str(reason))
        hva = backend.anonymous(2 * MIB, 3, 2 * MIB)
        backend.madvise(hva, 2 * MIB, 15)  # MADV_NOHUGEPAGE
        backend.set_user_memory_region(vm, 0, 0, 0, 2 * MIB, hva)
        vcpu = backend.create_vcpu(vm, 0)
        backend.run_touch(vcpu, None, [guestmem.backend.Touch(gpa, "w", 8, 1) for gpa in (0, P, P)])
        for other, refused in ((vcpu, errno.EINVAL), (-1, errno.EBADF)):
            with pytest.raises(KvmError) as error:
                backend.mapped_pages(other)
            assert error.value.errno == refused
        try:
            mapped = backend.mapped_pages(vm)
        except NotVisible as reason:
            pytest.skip(str(reason))
        assert mapped == {P: BOOT_PAGES + 2}
