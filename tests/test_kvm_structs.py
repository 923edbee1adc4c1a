"""The layouts handed to the kernel are the kernel's: each field's place, and each ioctl's number."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestmem.kvm import structs
from guestmem.kvm.structs import IOCTLS, STRUCTS, Ioctl, Struct
from guestmem.lab import cache
from guestmem.uapi import IOCTL_NUMBERS

HEADER = Path("/usr/include/linux/kvm.h")
MACHINE_HEADER = Path("/usr/include/x86_64-linux-gnu/asm/kvm.h")

# Written from the kernel's documentation (Documentation/virt/kvm/api.rst), not from the table under test.
LAYOUTS = {
    "kvm_userspace_memory_region": (
        32,
        [
            ("slot", 0, 4),
            ("flags", 4, 4),
            ("guest_phys_addr", 8, 8),
            ("memory_size", 16, 8),
            ("userspace_addr", 24, 8),
        ],
    ),
    "kvm_userspace_memory_region2": (
        160,
        [
            ("slot", 0, 4),
            ("flags", 4, 4),
            ("guest_phys_addr", 8, 8),
            ("memory_size", 16, 8),
            ("userspace_addr", 24, 8),
            ("guest_memfd_offset", 32, 8),
            ("guest_memfd", 40, 4),
            ("pad1", 44, 4),
            ("pad2", 48, 14 * 8),
        ],
    ),
    "kvm_enable_cap": (104, [("cap", 0, 4), ("flags", 4, 4), ("args", 8, 4 * 8), ("pad", 40, 64)]),
    "kvm_create_guest_memfd": (64, [("size", 0, 8), ("flags", 8, 8), ("reserved", 16, 6 * 8)]),
    "kvm_memory_attributes": (32, [("address", 0, 8), ("size", 8, 8), ("attributes", 16, 8), ("flags", 24, 8)]),
    "kvm_memory_attributes2": (
        128,
        [
            ("offset", 0, 8),
            ("size", 8, 8),
            ("attributes", 16, 8),
            ("flags", 24, 8),
            ("error_offset", 32, 8),
            ("reserved", 40, 11 * 8),
        ],
    ),
    "kvm_pre_fault_memory": (64, [("gpa", 0, 8), ("size", 8, 8), ("flags", 16, 8), ("padding", 24, 5 * 8)]),
    "kvm_run": (
        2352,
        [
            ("immediate_exit", 1, 1),
            ("exit_reason", 8, 4),
            ("mmio.phys_addr", 32, 8),
            ("mmio.data", 40, 8),
            ("mmio.len", 48, 4),
            ("mmio.is_write", 52, 1),
            ("memory_fault.flags", 32, 8),
            ("memory_fault.gpa", 40, 8),
            ("memory_fault.size", 48, 8),
        ],
    ),
    "kvm_regs": (
        144,
        [
            ("rax", 0, 8),
            ("rbx", 8, 8),
            ("rcx", 16, 8),
            ("rdx", 24, 8),
            ("rsi", 32, 8),
            ("rdi", 40, 8),
            ("rsp", 48, 8),
            ("rbp", 56, 8),
            ("rip", 128, 8),
            ("rflags", 136, 8),
        ],
    ),
    "kvm_segment": (
        24,
        [
            ("base", 0, 8),
            ("limit", 8, 4),
            ("selector", 12, 2),
            ("type", 14, 1),
            ("present", 15, 1),
            ("dpl", 16, 1),
            ("db", 17, 1),
            ("s", 18, 1),
            ("l", 19, 1),
            ("g", 20, 1),
        ],
    ),
    "kvm_sregs": (
        312,
        [
            ("cs", 0, 24),
            ("ds", 24, 24),
            ("es", 48, 24),
            ("fs", 72, 24),
            ("gs", 96, 24),
            ("ss", 120, 24),
            ("tr", 144, 24),
            ("ldt", 168, 24),
            ("cr0", 224, 8),
            ("cr3", 240, 8),
            ("cr4", 248, 8),
            ("efer", 264, 8),
        ],
    ),
    "kvm_cpuid2": (8, [("nent", 0, 4)]),
    "kvm_cpuid_entry2": (40, [("function", 0, 4), ("eax", 12, 4)]),
    "kvm_stats_header": (
        24,
        [
            ("flags", 0, 4),
            ("name_size", 4, 4),
            ("num_desc", 8, 4),
            ("id_offset", 12, 4),
            ("desc_offset", 16, 4),
            ("data_offset", 20, 4),
        ],
    ),
    "kvm_stats_desc": (
        16,
        [("flags", 0, 4), ("exponent", 4, 2), ("size", 6, 2), ("offset", 8, 4), ("bucket_size", 12, 4)],
    ),
}
NUMBERS = {
    "KVM_CREATE_VM": 0xAE01,
    "KVM_CHECK_EXTENSION": 0xAE03,
    "KVM_GET_VCPU_MMAP_SIZE": 0xAE04,
    "KVM_GET_SUPPORTED_CPUID": 0xC008AE05,
    "KVM_CREATE_VCPU": 0xAE41,
    "KVM_SET_USER_MEMORY_REGION": 0x4020AE46,
    "KVM_SET_USER_MEMORY_REGION2": 0x40A0AE49,
    "KVM_RUN": 0xAE80,
    "KVM_SET_REGS": 0x4090AE82,
    "KVM_GET_SREGS": 0x8138AE83,
    "KVM_SET_SREGS": 0x4138AE84,
    "KVM_SET_SIGNAL_MASK": 0x4004AE8B,
    "KVM_SET_CPUID2": 0x4008AE90,
    "KVM_ENABLE_CAP": 0x4068AEA3,
    "KVM_GET_STATS_FD": 0xAECE,
    "KVM_SET_MEMORY_ATTRIBUTES": 0x4020AED2,
    "KVM_SET_MEMORY_ATTRIBUTES2": 0xC080AED2,
    "KVM_CREATE_GUEST_MEMFD": 0xC040AED4,
    "KVM_PRE_FAULT_MEMORY": 0xC040AED5,
}
BY_NAME = {struct.name: struct for struct in STRUCTS}


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_field_is_where_the_kernel_documents_it(name: str) -> None:
    """Offset and size in bytes, and the size of the whole."""
    size, fields = LAYOUTS[name]
    struct = BY_NAME[name]

    assert struct.size == size
    found = {field.name: (field.offset, field.size) for field in struct.fields.values()}
    assert {name: found[name] for name, _, _ in fields} == {name: (offset, size) for name, offset, size in fields}


def test_no_structure_and_no_ioctl_is_left_untested() -> None:
    """A new one needs a line in the tables above."""
    assert set(BY_NAME) == set(LAYOUTS)
    assert set(IOCTLS) == set(NUMBERS)


@pytest.mark.parametrize(("name", "number"), NUMBERS.items())
def test_each_ioctl_has_its_number(name: str, number: int) -> None:
    """Direction, size, type and minor number, encoded."""
    assert IOCTLS[name].number == number


@pytest.mark.parametrize(
    ("ioctl", "struct"),
    [
        ("KVM_SET_USER_MEMORY_REGION", structs.REGION),
        ("KVM_SET_USER_MEMORY_REGION2", structs.REGION2),
        ("KVM_ENABLE_CAP", structs.ENABLE_CAP),
        ("KVM_CREATE_GUEST_MEMFD", structs.CREATE_GUEST_MEMFD),
        ("KVM_SET_MEMORY_ATTRIBUTES", structs.MEMORY_ATTRIBUTES),
        ("KVM_SET_MEMORY_ATTRIBUTES2", structs.MEMORY_ATTRIBUTES2),
        ("KVM_PRE_FAULT_MEMORY", structs.PRE_FAULT_MEMORY),
        ("KVM_SET_REGS", structs.REGS),
        ("KVM_SET_SREGS", structs.SREGS),
    ],
)
def test_an_ioctl_encodes_the_size_of_its_structure(ioctl: str, struct: Struct) -> None:
    """The kernel copies as many bytes as the number says."""
    assert IOCTLS[ioctl].size == struct.size


# What the header must declare for a field to be asked about: a structure, or a later member of one.
ASKED = {name: (name, "", f"struct {name} {{") for name in LAYOUTS if name != "kvm_run"}
# Queued for Linux 7.4: headers of released kernels do not declare it yet.
QUEUED = ("struct kvm_memory_attributes2 {", "#define KVM_SET_MEMORY_ATTRIBUTES2 ")
ASKED["kvm_run"] = ("kvm_run", "immediate_exit exit_reason mmio", "struct kvm_run {")
ASKED["kvm_run.memory_fault"] = ("kvm_run", "memory_fault", "} memory_fault;")


@pytest.fixture(scope="session")
def lab_headers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user-space headers in the source that the lab's kernel was built from."""
    [archive] = (cache.directory() / "sources").glob("linux-source-6.12.tar.*")
    directory = tmp_path_factory.mktemp("headers")
    wanted = [f"linux-source-6.12/{part}include/uapi" for part in ("", "arch/x86/")]
    subprocess.run(["tar", "-xf", archive, "-C", directory, "--strip-components=1", *wanted], check=True)
    for internal in ("compiler.h", "compiler_types.h"):  # "make headers_install" takes them out, with the word __user
        (directory / "include" / "uapi" / "linux" / internal).write_text("")
    return directory


@pytest.fixture(params=["installed", pytest.param("lab", marks=pytest.mark.lab)])
def include(request: pytest.FixtureRequest) -> list[Path]:
    """Where the compiler looks for headers first: the system's, or those of the lab's 6.12."""
    if request.param == "installed":
        return []
    headers: Path = request.getfixturevalue("lab_headers")
    return [headers / "include" / "uapi", headers / "arch" / "x86" / "include" / "uapi"]


@pytest.mark.parametrize(("name", "members", "needs"), ASKED.values(), ids=ASKED)
def test_the_header_agrees_on_each_field(
    name: str, members: str, needs: str, include: list[Path], tmp_path: Path
) -> None:
    """The C compiler is asked, so that padding and alignment are the ABI's."""
    expressions, expected = [f"sizeof(struct {name})"], [BY_NAME[name].size]
    for field in BY_NAME[name].fields.values():
        if not members or field.name.split(".")[0] in members.split():
            expressions.append(f"offsetof(struct {name}, {field.name})")
            expressions.append(f"sizeof(((struct {name} *)0)->{field.name})")
            expected += [field.offset, field.size]

    assert _ask_compiler(expressions, needs, include, tmp_path) == expected


@pytest.mark.parametrize("name", IOCTLS)
def test_the_header_agrees_on_each_number(name: str, include: list[Path], tmp_path: Path) -> None:
    """The macro of the header gives the number that is sent."""
    assert _ask_compiler([name], f"#define {name} ", include, tmp_path) == [IOCTLS[name].number]


def _ask_compiler(expressions: list[str], needs: str, include: list[Path], tmp_path: Path) -> list[int]:
    """The values of C expressions under linux/kvm.h; skips without a compiler or a header, or where it is too old."""
    compiler = shutil.which("cc")
    if compiler is None or not HEADER.exists():
        pytest.skip(f"needs a C compiler and {HEADER} (packages gcc and linux-libc-dev)")
    if not include and not _declares(HEADER.read_text() + MACHINE_HEADER.read_text(), needs):
        pytest.skip(f"the installed {HEADER} is too old to declare this; make test-lab has a newer one")
    if include and needs in QUEUED:
        assert not _declares((include[0] / "linux" / "kvm.h").read_text(), needs), "take it out of QUEUED"
        pytest.skip("queued for Linux 7.4: the headers of the lab's kernel do not declare it")
    prints = "\n".join(f'printf("%zu\\n", (size_t)({expression}));' for expression in expressions)
    source, program = tmp_path / "ask.c", tmp_path / "ask"
    source.write_text(
        f"#include <stddef.h>\n#include <stdio.h>\n#include <linux/kvm.h>\nint main(void) {{ {prints} return 0; }}\n"
    )
    options = ["-D__user=", *(f"-I{path}" for path in include)]
    subprocess.run([compiler, *options, "-o", program, source], check=True)
    return [int(line) for line in subprocess.run([program], check=True, capture_output=True, text=True).stdout.split()]


def _declares(header: str, needs: str) -> bool:
    return needs in " ".join(header.split()) or needs in header.replace("\t", " ")


@given(value=st.integers(-(1 << 70), 1 << 70))
def test_a_number_is_stored_modulo_the_width_of_its_field(value: int) -> None:
    """As C converts it: nothing is refused here, and no neighbour is touched."""
    block = structs.REGION2.pack(guest_memfd=value, guest_memfd_offset=value)

    assert structs.REGION2.get(block, "guest_memfd") == value % 2**32
    assert structs.REGION2.get(block, "guest_memfd_offset") == value % 2**64
    assert structs.REGION2.get(block, "pad1") == 0


def test_a_sequence_fills_the_words_of_an_array_from_the_first() -> None:
    """The rest is zero."""
    block = structs.CREATE_GUEST_MEMFD.pack(reserved=[1, 2])

    assert block[16:32] == b"\x01" + bytes(7) + b"\x02" + bytes(7)
    assert block[32:] == bytes(32)


def test_more_words_than_an_array_has_are_refused() -> None:
    """They would land in the next structure."""
    with pytest.raises(ValueError, match=r"reserved holds 6 words, not 7"):
        structs.CREATE_GUEST_MEMFD.pack(reserved=[0] * 7)


def test_an_unknown_field_is_named() -> None:
    """A misspelt name must not be a silent zero."""
    with pytest.raises(KeyError, match="struct kvm_regs has no field eax"):
        structs.REGS.pack(eax=1)


def test_direction_and_size_are_part_of_the_number() -> None:
    """The same minor number with another size is another ioctl."""
    assert Ioctl("x", 0x49, 1, 160).number != Ioctl("x", 0x49, 1, 32).number


@pytest.mark.parametrize("name", IOCTL_NUMBERS)
def test_the_numbers_that_traces_show_are_those_of_the_table(name: str) -> None:
    """uapi.IOCTL_NUMBERS, which readers of traces use, and kvm.structs.IOCTLS, which encodes them."""
    assert IOCTL_NUMBERS[name] == IOCTLS[name].number
