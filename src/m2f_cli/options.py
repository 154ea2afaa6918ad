"""Options that several commands have."""

from __future__ import annotations

import inspect
import json
from typing import Any

import click

from m2f.settings import Settings
from m2f_client.client import Client
from m2f_client.transports.protocol import Parameter

MAX_CONCURRENCY = 32  # as many as the HTTP transport carries

_NOT_PARAMETERS = tuple(inspect.signature(Client.predict).parameters)  # what `predict` itself takes


class KeyValue(click.ParamType):
    """KEY=VALUE, where VALUE is a number, true or false, or else text."""

    name = "key=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Parameter]:
        """Return key and typed value."""
        key, equals, text = value.partition("=")
        if not key or not equals:
            self.fail(f"{value!r} is not KEY=VALUE", param, ctx)
        if key in _NOT_PARAMETERS:
            self.fail(f"{key!r} is not a request parameter", param, ctx)
        if isinstance(getattr(Settings, key, None), str):
            return key, text  # a text setting: classes=0 is the text "0"
        try:
            parsed = json.loads(text)
        except json.JSONDecodeError:
            return key, text
        return key, parsed if isinstance(parsed, bool | int | float | str) else text
