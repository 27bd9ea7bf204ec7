"""The controls with which an operator steers the job."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeAlias

from bokeh.document import Document
from bokeh.models import Button, Div, Select, Spinner, Widget

from ministream.errors import MinistreamError
from ministream.view import texts
from ministream.wire.live import COMMANDS, Command

Steer: TypeAlias = Callable[[Command, float | None], str]
"""Sends a command with its value and returns what happens. Raises MinistreamError."""

_WITH_VALUE: tuple[Command, ...] = ("iterations", "step", "axis")


class SteeringControls:
    """A command, its value, and the answer; no `widgets` on a page that may not steer.

    The answer is awaited in a thread: the page and its neighbours go on.
    """

    def __init__(self, document: Document, steer: Steer | None) -> None:
        self.widgets: list[Widget] = []
        if steer is None:
            return
        self._document, self._steer = document, steer
        self._command = Select(title="Command", value="snapshot", options=list(COMMANDS), name="command")
        self._value = Spinner(title="Value", value=1, step=1, name="value", disabled=True)
        self._send = Button(label="Send", name="send", button_type="light", width=90)
        self._answer = Div(name="answer", sizing_mode="stretch_width")
        self._command.on_change("value", self._chosen)
        self._send.on_click(self._sent)
        self.widgets = [self._command, self._value, self._send, self._answer]

    def _chosen(self, _name: str, _old: Any, command: Command) -> None:
        self._value.disabled = command not in _WITH_VALUE

    def _sent(self) -> None:
        self._send.disabled = True
        command: Command = self._command.value
        value = float(self._value.value) if command in _WITH_VALUE and self._value.value is not None else None
        threading.Thread(target=self._ask, args=(command, value), name="steering", daemon=True).start()

    def _ask(self, command: Command, value: float | None) -> None:
        try:
            answer = texts.answer(self._steer(command, value), refused=False)
        except MinistreamError as error:
            answer = texts.answer(str(error), refused=True)
        self._document.add_next_tick_callback(lambda: self._show(answer))

    def _show(self, answer: str) -> None:
        self._answer.text = answer
        self._send.disabled = False
