"""Building the lab's kernel, once for each source and configuration.

The stages are fetch, unpack, configure, compile, install. Each leaves its result in the cache, so a build that was
interrupted goes on where it was: make knows what is compiled, and an archive is unpacked under another name and
then renamed. A finished kernel is renamed into its place together with its record, so it is there whole or not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from guestmem.errors import BackendUnavailable, InputError
from guestmem.lab import cache, copied, intact, package
from guestmem.lab.config import REQUIRED, asked_for, config_key, fragment, missing
from guestmem.lab.errors import BuildFailed
from guestmem.lab.qemu import Bootable
from guestmem.lab.source import Archive, Source, Tree, find_source, is_version, spec_of
from guestmem.outfile import write_text

__all__ = ("DEFAULT", "TOOLS", "Kernel", "Progress", "bootable", "build", "built", "find_kernel", "missing_tools")

DEFAULT = "6.12"
# Commands a kernel build calls, and the Debian package of each.
TOOLS = {
    "make": "make",
    "gcc": "gcc",
    "ld": "binutils",
    "strip": "binutils",
    "pahole": "dwarves",
    "flex": "flex",
    "bison": "bison",
    "bc": "bc",
    "perl": "perl",
    "tar": "tar",
    "xz": "xz-utils",
}
_LIBELF = "libelf-dev"  # objtool, a program of the build itself, includes gelf.h
_STEPS = 1270  # lines make prints for 6.12: a scale for the progress bar, not a promise
_ELF, _BZIMAGE, _BZIMAGE_AT = b"\x7fELF", b"HdrS", 0x202  # Documentation/arch/x86/boot.rst
_PACKAGED = "package"
_TAIL = 40  # lines of the log in which the reason of a failure is looked for

Stage = Literal["wait", "fetch", "unpack", "configure", "compile", "install"]


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a build is. done and total count steps of the stage; total is an estimate, 0 if there is none."""

    stage: Stage
    done: int = 0
    total: int = 0


class Kernel(msgspec.Struct, frozen=True):
    """A finished kernel: its record, kept as kernel.json in the same directory.

    spec is what the user asked for (a version, or a full path); release is what uname -r says in it; config the key of
    the configuration, "package" for a distribution's; without the options that this source does not offer; seconds what
    the last run of the build took; size and digest are the file's in bytes and SHA-256 (0 and "" in records of earlier
    versions), modules_size and modules_digest the same of a package's modules. host_files: programs of the host can run
    on it.
    """

    key: str
    spec: str
    release: str
    config: str
    compiler: str
    without: tuple[str, ...]
    seconds: float
    built: float
    size: int = 0
    digest: str = ""
    modules_size: int = 0
    modules_digest: str = ""
    host_files: bool = True

    @property
    def image(self) -> Path:
        """The kernel itself: an ELF file with a PVH entry, or the bzImage of a package."""
        return _kernels() / self.key / "vmlinux"

    @property
    def is_packaged(self) -> bool:
        """Whether it is a distribution's package."""
        return self.config == _PACKAGED

    @property
    def is_current(self) -> bool:
        """Whether it has today's configuration; a package's is its own."""
        return self.is_packaged or self.config == config_key(fragment())

    @property
    def bootable(self) -> Bootable:
        """What a machine is started with."""
        return Bootable(self.image, self._modules if self.is_packaged else None, self.host_files)

    @property
    def _modules(self) -> Path:
        return self.image.with_name("modules.cpio")

    def damage(self) -> str:
        """What happened to the kernel's files since it was built, in words; "" if nothing. They are read whole."""
        damage = intact.damage(self.image, self.size, self.digest)
        if not damage and self.is_packaged:
            damage = intact.damage(self._modules, self.modules_size, self.modules_digest)
        return damage


def build(spec: str = DEFAULT, jobs: int = 0, progress: Callable[[Progress], None] = lambda _: None) -> Kernel:
    """Build a kernel unless it is built already; BuildFailed says why not. jobs 0: as many as there are CPUs.

    BackendUnavailable names the packages whose tools are missing, ValueError a path where nothing is. From a tree of
    the user's it always runs make, which does what changed there. A kernel package is unpacked.
    """
    if package.is_package_name(spec) or package.is_package_path(Path(spec_of(spec))):
        return _unpacked(spec_of(spec), progress)
    lacking = missing_tools()
    if lacking:
        raise BackendUnavailable(f"a kernel build needs more tools; on Debian: apt install {' '.join(lacking)}")
    progress(Progress("fetch"))
    source = find_source(spec)
    key = _key(source)
    progress(Progress("wait"))
    with cache.locked(key), _as_build_failure():
        done = _read(_kernels() / key)
        if done is not None and isinstance(source, Archive) and not done.damage():
            return done if done.digest else _recorded(done, _kernels() / key)
        return _Build(spec, source, key, jobs or os.cpu_count() or 1, progress).run()


def built() -> list[Kernel]:
    """Every finished kernel in the cache, the newest first."""
    found = [_read(path) for path in _kernels().glob("*")]
    return sorted((kernel for kernel in found if kernel is not None), key=lambda kernel: -kernel.built)


def find_kernel(spec: str = DEFAULT) -> Kernel:
    """The newest whole kernel for spec with today's configuration; BackendUnavailable if there is none."""
    wanted = spec_of(spec)
    why = f"the lab has no kernel {spec} of this configuration"
    for kernel in built():
        if kernel.spec == wanted and kernel.is_current:
            damage = kernel.damage()
            if not damage:
                return kernel
            why = f"the lab's kernel {spec} is damaged: {damage}"
    raise BackendUnavailable(f"{why}; run: guestmem lab build --kernel {spec}")


def bootable(spec: str = DEFAULT) -> Bootable:
    """What to boot for spec: a kernel that was built for it, or the file that it names, a vmlinux or a bzImage.

    BackendUnavailable if none was built; InputError for a file that is neither a kernel nor the source of one.
    """
    path = Path(spec_of(spec))
    if is_version(spec) or not path.is_file():
        return find_kernel(spec).bootable
    with path.open("rb") as file:
        head = file.read(_BZIMAGE_AT + len(_BZIMAGE))
    if head.startswith(_ELF) or head[_BZIMAGE_AT:] == _BZIMAGE:
        return Bootable(path)
    if package.is_package_path(path) or any(kernel.spec == str(path) for kernel in built()):
        return find_kernel(spec).bootable
    raise InputError(
        f"{path} is no kernel: neither an uncompressed vmlinux (ELF) nor a bzImage; of a source, run: guestmem lab "
        f"build --kernel {path}"
    )


def missing_tools() -> list[str]:
    """Debian packages without which a kernel cannot be built here."""
    lacking = [package for command, package in TOOLS.items() if shutil.which(command) is None]
    if not lacking:
        probe = subprocess.run(["gcc", "-E", "-include", "gelf.h", "-x", "c", os.devnull], capture_output=True)
        lacking = [_LIBELF] if probe.returncode else []
    return lacking


def _unpacked(spec: str, progress: Callable[[Progress], None]) -> Kernel:
    """The kernel of a package: read again each time from a path, fetched once by name."""
    named = package.is_package_name(spec)
    key = hashlib.sha256(f"package {spec}".encode()).hexdigest()[:16]
    started = time.monotonic()
    progress(Progress("wait"))
    with cache.locked(key), _as_build_failure():
        done = _read(_kernels() / key)
        if named and done is not None and not done.damage():
            return done
        work = cache.directory() / "work" / key
        shutil.rmtree(work, ignore_errors=True)
        (work / "kernel").mkdir(parents=True)
        (work / "package").mkdir()
        try:
            if named:
                progress(Progress("fetch"))
                package.fetch(spec, work)
            progress(Progress("unpack"))
            found = package.read_package(package.unpack(work if named else Path(spec), work / "package"))
            progress(Progress("install"))
            shutil.copy(found.image, work / "kernel" / "vmlinux")
            package.write_modules(found.modules, work / "kernel" / "modules.cpio")
            seconds = round(time.monotonic() - started, 1)
            kernel = Kernel(key, spec, found.release, _PACKAGED, "", found.without, seconds, time.time())
            kernel = msgspec.structs.replace(kernel, host_files=found.host_files)
            return _installed(_recorded(kernel, work / "kernel"), work / "kernel")
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _installed(kernel: Kernel, made: Path) -> Kernel:
    """Rename a finished directory into its place."""
    _kernels().mkdir(exist_ok=True)
    shutil.rmtree(_kernels() / kernel.key, ignore_errors=True)
    made.rename(_kernels() / kernel.key)
    return kernel


class _Build:
    def __init__(self, spec: str, source: Source, key: str, jobs: int, progress: Callable[[Progress], None]) -> None:
        self.spec, self.source, self.key, self.jobs, self.progress = spec_of(spec), source, key, jobs, progress
        self.work = cache.directory() / "work" / key
        self.out = self.work / "build"
        in_place = isinstance(source, Tree) and copied.is_clean(source.path)
        self.tree = source.path if in_place else self.work / "source"
        self.started = time.monotonic()

    def run(self) -> Kernel:
        self.out.mkdir(parents=True, exist_ok=True)
        self.unpack()
        without = self.configure()
        self.progress(Progress("compile", 0, _STEPS))
        self.make("vmlinux", f"-j{self.jobs}", stage="compile")
        return self.install(without)

    def unpack(self) -> None:
        if isinstance(self.source, Tree):
            if self.tree != self.source.path:
                self.progress(Progress("unpack"))
                copied.update(self.source.path, self.tree)
                self.call(["make", "-C", str(self.tree), "mrproper"], "unpack")
            return
        if self.tree.is_dir():
            return
        self.progress(Progress("unpack"))
        partial = self.work / "source.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        self.call(["tar", "-xf", str(self.source.path), "-C", str(partial), "--strip-components=1"], "unpack")
        partial.rename(self.tree)

    def configure(self) -> tuple[str, ...]:
        """Write .config if it is not there; the options that the source does not offer."""
        if not (self.tree / "Kconfig").is_file():
            raise BuildFailed(f"{self.source.path} holds no kernel source: there is no Kconfig")
        made = self.out / ".config"
        if not made.is_file():
            self.progress(Progress("configure"))
            asked = self.work / "fragment"
            write_text(asked, asked_for(fragment()))
            self.make("allnoconfig", f"KCONFIG_ALLCONFIG={asked}", stage="configure")
        without = missing(fragment(), made.read_text())
        lacking = set(without) & set(REQUIRED)
        if lacking:
            raise BuildFailed(
                f"this source does not offer {', '.join(sorted(lacking))}: is it older than 6.8, or not Linux?"
            )
        return without

    def install(self, without: tuple[str, ...]) -> Kernel:
        self.progress(Progress("install"))
        release = (self.out / "include" / "config" / "kernel.release").read_text().strip()
        compiler = subprocess.run(
            ["gcc", "-dumpfullversion"], capture_output=True, text=True, check=True
        ).stdout.strip()
        seconds = round(time.monotonic() - self.started, 1)
        config = config_key(fragment())
        kernel = Kernel(self.key, self.spec, release, config, f"gcc {compiler}", without, seconds, time.time())
        partial = self.work / "kernel"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        shutil.copy(self.out / "vmlinux", partial)
        self.call(["strip", "--strip-debug", str(partial / "vmlinux")], "install")  # 80 MB; the types (BTF) stay
        shutil.copy(self.out / ".config", partial / "config")
        kernel = _installed(_recorded(kernel, partial), partial)
        if isinstance(self.source, Archive):  # 2 GB that a finished kernel does not need
            shutil.rmtree(self.work)
        return kernel

    def make(self, *arguments: str, stage: Stage) -> None:
        # No name of this machine or its user goes into the kernel.
        fixed = ["ARCH=x86_64", "KBUILD_BUILD_USER=guestmem", "KBUILD_BUILD_HOST=lab", "KBUILD_BUILD_VERSION=1"]
        self.call(["make", "-C", str(self.tree), f"O={self.out}", *fixed, *arguments], stage)

    def call(self, command: list[str], stage: Stage) -> None:
        """Run a command with its output in the log; BuildFailed shows the most useful lines of it."""
        tail: deque[str] = deque(maxlen=_TAIL)
        log = self.work / "log"
        with log.open("a") as kept, _process_group(command) as process:
            assert process.stdout, "bug in guestmem: asked for a pipe"
            for count, line in enumerate(process.stdout, 1):
                kept.write(line)
                tail.append(line)
                self.progress(Progress(stage, count, max(_STEPS, count) if stage == "compile" else 0))
        if process.returncode != 0:
            raise BuildFailed(f"{command[0]} failed ({process.returncode}): {_telling(tail)}; the whole log is {log}")


def _telling(tail: Iterable[str]) -> str:
    """The line of a failed command's output that most likely says why: make goes on after it for a while."""
    lines = [line.strip() for line in tail if line.strip()] or ["it printed nothing"]
    return next((line for line in lines if "error:" in line or "o space" in line), lines[-1])


@contextmanager
def _process_group(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A command and all it starts: ended together, whatever happens here (ctrl-C, a full disk, an error of ours)."""
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            yield process
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise


@contextmanager
def _as_build_failure() -> Iterator[None]:
    """An error of the file system (no space, no permission) is a build that failed, and says which file."""
    try:
        yield
    except OSError as wrong:
        raise BuildFailed(
            f"{wrong}; what is done stays in {cache.directory()}, building again goes on from there"
        ) from wrong


def _key(source: Source) -> str:
    asked = f"{source.identity()}\n{config_key(fragment())}"
    return hashlib.sha256(asked.encode()).hexdigest()[:16]


def _kernels() -> Path:
    return cache.directory() / "kernels"


def _recorded(kernel: Kernel, directory: Path) -> Kernel:
    """Write the record of the kernel in a directory, with the sizes and the digests that its files have now."""
    image, modules = directory / "vmlinux", directory / "modules.cpio"
    kernel = msgspec.structs.replace(kernel, size=image.stat().st_size, digest=intact.digest_of(image))
    if kernel.is_packaged:
        kernel = msgspec.structs.replace(
            kernel, modules_size=modules.stat().st_size, modules_digest=intact.digest_of(modules)
        )
    write_text(directory / "kernel.json", msgspec.json.format(msgspec.json.encode(kernel)).decode())
    return kernel


def _read(path: Path) -> Kernel | None:
    """The record of a finished kernel; None if there is none that this version understands."""
    try:
        return msgspec.json.decode((path / "kernel.json").read_bytes(), type=Kernel)
    except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
        return None
