"""The command line: one thin module per command; nothing heavy is imported before a command runs."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

import typer

from guestmem.cli import check, diff, doctor, explain, fuzz, host, kernels, lab, plan, prove, rules, run, schema, trace
from guestmem.cli import exec as exec_command
from guestmem.cli.ending import BROKEN_PIPE, stopped_by_signals, whole_output
from guestmem.version import __version__

__all__ = ("app", "main")

_UsageError: type[typer.BadParameter] = typer.BadParameter.__bases__[0]  # typer has moved the module that it is in
LAYOUTS, RECORDINGS, KERNELS, PROOFS = "Layouts of VMs", "Recordings and comparing", "Kernels and hosts", "Proofs"

app = typer.Typer(
    name="guestmem",
    help="KVM's guest-private memory: run it, check it, prove it.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
app.command("check", rich_help_panel=LAYOUTS, epilog=check.EXAMPLES)(check.check)
app.command("rules", rich_help_panel=LAYOUTS, epilog=rules.EXAMPLES)(rules.rules)
app.command("plan", rich_help_panel=LAYOUTS, epilog=plan.EXAMPLES)(plan.plan)
app.command("host", rich_help_panel=KERNELS, epilog=host.EXAMPLES)(host.host)
app.command("schema", rich_help_panel=LAYOUTS)(schema.schema)
app.command("run", rich_help_panel=RECORDINGS, epilog=run.EXAMPLES)(run.run)
app.command("explain", rich_help_panel=RECORDINGS, epilog=explain.EXAMPLES)(explain.explain)
app.command("diff", rich_help_panel=RECORDINGS, epilog=diff.EXAMPLES)(diff.diff)
app.command("kernels", rich_help_panel=RECORDINGS, epilog=kernels.EXAMPLES)(kernels.kernels)
app.command("fuzz", rich_help_panel=RECORDINGS, epilog=fuzz.EXAMPLES)(fuzz.fuzz)
app.command(
    "exec",
    rich_help_panel=KERNELS,
    epilog=exec_command.EXAMPLES,
    context_settings={"allow_interspersed_args": False},
)(exec_command.exec_)
app.command("prove", rich_help_panel=PROOFS, epilog=prove.EXAMPLES)(prove.prove)
app.command("doctor", rich_help_panel=KERNELS, epilog=doctor.EXAMPLES)(doctor.doctor)
app.add_typer(lab.app, name="lab", rich_help_panel=KERNELS)
app.add_typer(trace.app, name="trace", rich_help_panel=KERNELS)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"guestmem {__version__}")
        raise typer.Exit


@app.callback()
def _guestmem(
    version: bool = typer.Option(False, "--version", "-V", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    """KVM's guest-private memory: run it, check it, prove it."""


def main() -> None:
    """The console script: one line on stderr and exit 1 for what failed, 2 for bad input, 4 for what is missing here.

    128 + a signal's number if one stopped it: 130 for ctrl-C, 141 if nobody reads its output. 70 is a bug in guestmem,
    whose traceback is in a file that the line names.
    """
    from guestmem.errors import BackendUnavailable, InputError, KvmError
    from guestmem.lab.errors import BuildFailed, LabFailed, SessionFailed

    try:
        with stopped_by_signals(), whole_output():
            raise SystemExit(app(prog_name="guestmem", standalone_mode=False))
    except _UsageError as error:
        _fail_usage(error)
    except InputError as error:
        _fail(str(error))
    except BackendUnavailable as error:
        _fail(str(error), 4)
    except BuildFailed as error:
        _fail(str(error), 1)
    except (LabFailed, SessionFailed) as error:
        _fail(error.line, 1)
    except BrokenPipeError:
        raise SystemExit(BROKEN_PIPE) from None
    except KvmError as error:  # a refusal that nobody expected, and no file of the user's
        _fail_as_bug(error)
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error))
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Exception as error:
        _fail_as_bug(error)


def _fail_usage(error: typer.BadParameter) -> None:
    said, context = error.format_message(), error.ctx
    if not said:  # no arguments at all: that was the help
        raise SystemExit(2)
    _fail(f"{said.rstrip('.')}; see {context.command_path if context else 'guestmem'} --help")


def _fail_as_bug(error: Exception) -> None:
    what = f"{type(error).__name__}: {error}"
    _fail(f"bug in guestmem: {what}; its traceback is in {_traceback_file()}", os.EX_SOFTWARE)


def _traceback_file() -> str:
    """Write the traceback of the exception that is being handled to a new file; its path."""
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile(
        "w", prefix="guestmem-bug-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
    ) as file:
        file.write(f"guestmem {__version__}: {sys.argv}\n\n{traceback.format_exc()}")
    return file.name


def _fail(message: str, code: int = 2) -> None:
    from guestmem.text import safe

    with suppress(OSError):  # nobody listens
        typer.echo(f"guestmem: {safe(' '.join(message.split()))}", err=True)
    raise SystemExit(code)
