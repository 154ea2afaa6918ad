"""The `m2f` command. Each subcommand's module is imported only when called: no command needs another one's extra."""

from __future__ import annotations

import difflib
import importlib
from importlib.util import find_spec

import click

COMMANDS = {  # name: (module, attribute, extra with its requirements)
    "predict": ("m2f_cli.predict", "predict", "client"),
    "eval": ("m2f_cli.eval", "evaluate", "eval"),
    "demo": ("m2f_cli.demo", "demo", "demo"),
    "export": ("m2f_cli.export", "export", "export"),
    "doctor": ("m2f_cli.doctor", "doctor", "export"),
    "serve": ("m2f_cli.serve", "serve", "server"),
    "rollout": ("m2f_cli.rollout", "rollout", "models"),
}
HEAVY = {"demo": "gradio"}  # a requirement that the command imports only when it runs, because that takes seconds


class LazyGroup(click.Group):
    """A group that imports a command when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return sorted({*COMMANDS, *super().list_commands(ctx)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command. If its requirements are missing, return one that says what to install."""
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        module, attribute, extra = COMMANDS[cmd_name]
        heavy = HEAVY.get(cmd_name)
        if heavy is not None and find_spec(heavy) is None:
            return _not_installed(cmd_name, extra, heavy)
        try:
            command: click.Command = getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            return _not_installed(cmd_name, extra, error.name)
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


def _not_installed(name: str, extra: str, module: str | None) -> click.Command:
    message = f"m2f {name} needs: pip install 'm2f[{extra}]' (no module named {module!r})"

    @click.command(
        name,
        short_help=f"Needs: pip install 'm2f[{extra}]'",
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
