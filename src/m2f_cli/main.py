"""The `m2f` command. Each subcommand's module is imported only when called: no command needs another one's extra."""

from __future__ import annotations

import difflib
import importlib
from importlib.util import find_spec
from typing import Any, NamedTuple

import click

from m2f_cli.surroundings import prepare, surroundings


class Lazy(NamedTuple):
    """Where a command is, and what the list of commands says of it.

    Attributes:
        module: module of the command.
        attribute: name of the command in the module.
        extra: extra with the command's requirements.
        requirement: a module of that extra; without it the command is not installed.
        summary: first sentence of the command's help.
    """

    module: str
    attribute: str
    extra: str
    requirement: str
    summary: str


COMMANDS = {
    "predict": Lazy("m2f_cli.predict", "predict", "client", "tritonclient", "Find the instances of images."),
    "eval": Lazy("m2f_cli.eval", "evaluate", "eval", "faster_coco_eval", "Measure a server on a COCO data set."),
    "merge": Lazy("m2f_cli.merge", "merge", "client", "tritonclient", "Merge the journals of all shards."),
    "models": Lazy("m2f_cli.models", "models", "client", "tritonclient", "List the public models of a server."),
    "bench": Lazy("m2f_cli.bench", "bench", "client", "tritonclient", "Measure a server with your own images."),
    "capacity": Lazy(
        "m2f_cli.capacity", "capacity", "client", "click", "Compute what a number of images a second needs."
    ),
    "demo": Lazy("m2f_cli.demo", "demo", "demo", "gradio", "Try a server in the browser."),
    "export": Lazy(
        "m2f_cli.export", "export", "export", "torch", "Turn a trained Mask2Former into a model repository."
    ),
    "engine": Lazy(
        "m2f_cli.engine",
        "engine",
        "engine",
        "onnx",
        "Build the TensorRT engine of an exported model, where it will run.",
    ),
    "doctor": Lazy(
        "m2f_cli.doctor", "doctor", "export", "onnx", "Report what is wrong with PATH before a server does."
    ),
    "serve": Lazy(
        "m2f_cli.serve",
        "serve",
        "server",
        "prometheus_client",
        "Run Triton on a model repository until it is told to stop.",
    ),
    "rollout": Lazy(
        "m2f_cli.rollout", "rollout", "models", "prometheus_client", "Replace the engine of a running server."
    ),
}


class LazyGroup(click.Group):
    """A group that imports a command when it is called, and lists all commands without importing any."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command, whatever its streams are, and report what the system refuses."""
        prepare()
        with surroundings():
            return super().main(*args, **kwargs)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return sorted({*COMMANDS, *super().list_commands(ctx)})

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, _summary(COMMANDS[name])) for name in self.list_commands(ctx)])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command. If its requirements are missing, return one that says what to install."""
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        lazy = COMMANDS[cmd_name]
        if find_spec(lazy.requirement) is None:
            return _not_installed(cmd_name, lazy.extra, lazy.requirement)
        try:
            command: click.Command = getattr(importlib.import_module(lazy.module), lazy.attribute)
        except ModuleNotFoundError as error:
            return _not_installed(cmd_name, lazy.extra, error.name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that the arguments name; for an unknown name, suggest similar ones."""
        known = self.list_commands(ctx)
        if args[0] in known or args[0].startswith("-"):
            return super().resolve_command(ctx, args)
        near = difflib.get_close_matches(args[0], known)
        hint = f"Did you mean {' or '.join(map(repr, near))}?" if near else f"There are: {', '.join(known)}."
        raise click.UsageError(f"No such command {args[0]!r}. {hint}", ctx)


def _summary(lazy: Lazy) -> str:
    return lazy.summary if find_spec(lazy.requirement) else _needs(lazy.extra)


def _needs(extra: str) -> str:
    return f"Needs: pip install 'm2f[{extra}]'"


def _not_installed(name: str, extra: str, module: str | None) -> click.Command:
    message = f"m2f {name} needs: pip install 'm2f[{extra}]' (no module named {module!r})"

    @click.command(
        name,
        short_help=_needs(extra),
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
        add_help_option=False,
    )
    def missing() -> None:
        raise click.ClickException(message)

    return missing


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="m2f", prog_name="m2f")
def main() -> None:
    """Mask2Former on NVIDIA Triton: serve it, and find the instances of images."""
