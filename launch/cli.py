"""The `nemo-run` command: one typer application, each command in a file of `commands/`."""

from __future__ import annotations

import atexit
import gc
import sys
import warnings

import typer

from common.disk import problem_of
from common.errors import NemoRunError
from launch.commands import (
    compare,
    convert,
    doctor,
    evaluate,
    inspect,
    launch_recipe,
    monitor,
    plan,
    prepare,
    route,
    serve,
)

app = typer.Typer(
    name="nemo-run",
    help="Fine-tune gpt-oss on labelled tickets with NeMo and Megatron-core, from Hugging Face and back.",
    epilog="nemo-run COMMAND --help has an example of each; nemo-run --debug COMMAND shows the traceback of an error.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
DATA, TRAINING, CHECKPOINTS, SERVING = "Data", "Training", "Checkpoints", "Serving"
app.command("prepare", rich_help_panel=DATA)(prepare.prepare_tickets)
app.command("doctor", rich_help_panel=TRAINING)(doctor.examine)
app.command("plan", rich_help_panel=TRAINING)(plan.plan_layouts)
app.command("launch", rich_help_panel=TRAINING)(launch_recipe.launch)
app.command("status", rich_help_panel=TRAINING)(monitor.status)
app.command("logs", rich_help_panel=TRAINING)(monitor.logs)
app.command("cancel", rich_help_panel=TRAINING)(monitor.cancel)
app.command("evaluate", rich_help_panel=TRAINING)(evaluate.evaluate_model)
app.command("inspect", rich_help_panel=TRAINING)(inspect.inspect_run)
app.command("compare", rich_help_panel=TRAINING)(compare.compare_runs)
app.add_typer(convert.app, name="convert", rich_help_panel=CHECKPOINTS)
app.command("serve", rich_help_panel=SERVING)(serve.serve_model)
app.command("route", rich_help_panel=SERVING)(route.route_tickets)


def main() -> None:
    """Run the command line; exit status 0 or 1, or 130 by Ctrl-C.

    An error of the user's or of a disk becomes one sentence on stderr.
    """
    # torch, numba and NeMo make a million objects that stay: looking through them took a fifth of every start
    gc.set_threshold(100_000)
    atexit.register(gc.freeze)  # and looking through them at the end 0.7 s of every command
    # torch 2.13 says on every import that NeMo's dependency pynvml has a successor
    warnings.filterwarnings("ignore", message="The pynvml package is deprecated")
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        app(args=arguments)
    except SystemExit as stop:  # typer refuses an unknown command or option with 2
        raise SystemExit(1 if stop.code == 2 else stop.code) from None
    except NemoRunError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except OSError as error:
        said = problem_of(error)
        if debug or said is None:
            raise
        print(f"error: {said}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("interrupted: what was finished is kept; the same command goes on from there.", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
