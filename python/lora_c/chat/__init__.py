"""A conversation with a model: what was said (`conversation`), the commands (`commands`), and how people type it in.

On a terminal `terminal` reads with prompt_toolkit (`keys`, `completion`, `history`); from a pipe `piped` reads lines.
"""
