"""Keys of a chat: when Enter sends, and steps by characters as people see them."""

from __future__ import annotations

import regex
from prompt_toolkit.application import get_app
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import Condition, has_selection
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.key_binding.key_processor import KeyPressEvent

QUOTES = '"""'
_CHARACTER = regex.compile(r"\X")


def chat_keys() -> KeyBindings:
    """Enter sends, and begins a new line behind a backslash or inside of triple quotes; Esc-Enter always begins one.

    Backspace, Delete and the arrows take whole characters: a Hangul syllable of several letters, an emoji of several parts.
    """
    keys = KeyBindings()
    is_editing = ~has_selection & Condition(lambda: get_app().current_buffer.name == DEFAULT_BUFFER)

    @keys.add("enter", filter=is_editing)
    def send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        text, at_end = buffer.text, buffer.document.is_cursor_at_the_end
        if at_end and text.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        elif at_end and is_open(text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter", filter=is_editing)
    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c", filter=is_editing)
    def clear_or_leave(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt, style="class:aborting")

    @keys.add("backspace", filter=is_editing)
    def delete_before(event: KeyPressEvent) -> None:
        event.current_buffer.delete_before_cursor(last_character(event.current_buffer.document.text_before_cursor))

    @keys.add("delete", filter=is_editing)
    def delete_after(event: KeyPressEvent) -> None:
        event.current_buffer.delete(first_character(event.current_buffer.document.text_after_cursor))

    @keys.add("left", filter=is_editing)
    def left(event: KeyPressEvent) -> None:
        event.current_buffer.cursor_left(last_character(event.current_buffer.document.current_line_before_cursor))

    @keys.add("right", filter=is_editing)
    def right(event: KeyPressEvent) -> None:
        event.current_buffer.cursor_right(first_character(event.current_buffer.document.current_line_after_cursor))

    return keys


def is_open(text: str) -> bool:
    """Whether triple quotes were begun and not ended."""
    quoted = _argument(text)
    return quoted.startswith(QUOTES) and (len(quoted) < 2 * len(QUOTES) or not quoted.endswith(QUOTES))


def without_quotes(text: str) -> str:
    """The text without the triple quotes around it."""
    quoted = _argument(text)
    if not quoted.startswith(QUOTES) or is_open(text):
        return text
    return text[: len(text) - len(quoted)] + quoted[len(QUOTES) : -len(QUOTES)].strip("\n")


def _argument(text: str) -> str:
    return text[len("/system ") :].lstrip(" ") if text.startswith("/system ") else text


def first_character(text: str) -> int:
    """Code points of the first character that people see; 1 where there is none."""
    match = _CHARACTER.match(text)
    return len(match[0]) if match else 1


def last_character(text: str) -> int:
    """Code points of the last one."""
    tail = text[-64:]
    return max(len(found[-1]), 1) if (found := _CHARACTER.findall(tail)) else 1
