"""The command line: one thin module per command; nothing heavy is imported before a command runs."""

from __future__ import annotations

import sys

import typer

from guestmem.cli import check, diff, doctor, explain, fuzz, lab, plan, prove, rules, run, schema
from guestmem.version import __version__

__all__ = ("app", "main")

app = typer.Typer(
    name="guestmem",
    help="KVM's guest-private memory: run it, check it, prove it.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
app.command("run", epilog=run.EXAMPLES)(run.run)
app.command("diff", epilog=diff.EXAMPLES)(diff.diff)
app.command("fuzz", epilog=fuzz.EXAMPLES)(fuzz.fuzz)
app.command("explain", epilog=explain.EXAMPLES)(explain.explain)
app.command("prove", epilog=prove.EXAMPLES)(prove.prove)
app.command("check", epilog=check.EXAMPLES)(check.check)
app.command("rules", epilog=rules.EXAMPLES)(rules.rules)
app.command("plan", epilog=plan.EXAMPLES)(plan.plan)
app.command("schema")(schema.schema)
app.command("doctor", epilog=doctor.EXAMPLES)(doctor.doctor)
app.add_typer(lab.app, name="lab")


def _version(value: bool) -> None:
    if value:
        typer.echo(f"guestmem {__version__}")
        raise typer.Exit


@app.callback()
def _guestmem(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    """KVM's guest-private memory: run it, check it, prove it."""


def main() -> None:
    """The console script: one line on stderr and exit 1 for what failed, 2 for bad input, 4 for what is missing here.

    ctrl-C is 130.
    """
    from guestmem.errors import BackendUnavailable
    from guestmem.lab.errors import BuildFailed, LabFailed, SessionFailed
    from guestmem.transcript.reader import RecordingError

    try:
        app()
    except (RecordingError, ValueError) as error:
        _fail(str(error))
    except BackendUnavailable as error:
        _fail(str(error), 4)
    except BuildFailed as error:
        _fail(str(error), 1)
    except (LabFailed, SessionFailed) as error:
        _fail(error.line, 1)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of a pipe went away: nothing left to say
        raise SystemExit(0) from None
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _fail(message: str, code: int = 2) -> None:
    typer.echo(f"guestmem: {message}", err=True)
    raise SystemExit(code)
