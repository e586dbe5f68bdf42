"""lora-c serve"""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..configs import QUANT_TYPES
from ..configs.serving import ServeConfig
from ..errors import ConfigError
from ..notices import tell
from .addresses import share_one_arena
from .data_options import chat_template_option, device_option
from .generate import open_model
from .options import Command, config_options, take
from .paths import InputPath
from .streams import fitting_output

if TYPE_CHECKING:
    from ..serve.answering import Service

_NEEDED = ("starlette", "uvicorn", "prometheus_client")


@click.command("serve", cls=Command, short_help="Answer over HTTP as OpenAI does: one base, many adapters.")
@click.option("--model", type=InputPath(), help="Model folder.")
@click.option("--adapters", type=InputPath(), metavar="DIR", help="Folder whose folders are adapters; their names are models.")
@click.option("--quantize", type=click.Choice(QUANT_TYPES), help="Quantize the base while loading.")
@click.option("--api-key-file", type=InputPath(), metavar="FILE", help=ServeConfig.model_fields["api_key_file"].description)
@device_option
@chat_template_option
@config_options(ServeConfig, "Server", skip=("api_key_file",))
def command(**own: Any) -> None:
    """Answer over HTTP as OpenAI does, with one base and many adapters, which share the steps of one batch.

    Clients of OpenAI's interface give http://HOST:PORT/v1 as base_url, and an adapter's name as model. A page to talk with
    the models is at /. Ctrl-C or SIGTERM: what is under way is answered, then the server ends; docs/SERVE.md says more.
    """
    config = ServeConfig(**take(own, ServeConfig))
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"serve: expected the extra [serve] (starlette, uvicorn, prometheus-client), got no {missing[0]}; "
            "pip install 'lora-c[serve]'"
        )
    share_one_arena()
    from ..serve.listening import bound, is_loopback
    from ..serve.server import keys_of, log_to_stderr, serve

    folder = Path(own["adapters"]) if own.get("adapters") else None
    if folder is not None and not folder.is_dir():
        raise ConfigError(f"adapters: expected a folder with a folder for each adapter, got {str(folder)!r}, which is none")
    keys = keys_of(config)
    with bound(config) as door:
        if not is_loopback(config.host) and not keys:
            tell(f"host: {config.host} is reached by other machines, and no key is asked for; --api-key-file names some")
        model = open_model(own)
        log_to_stderr()
        serve(model, folder, config, door, keys, partial(_tell, folder))


def _tell(folder: Path | None, address: str, service: Service) -> None:
    names = service.adapters.names()
    with fitting_output():
        click.echo(f"model     {names[0]}")
        if folder is not None:
            more = f" and {len(names) - 9} more" if len(names) > 9 else ""
            click.echo(f"adapters  {', '.join(names[1:9]) or 'none yet'}{more}")
        click.echo(f"listening {address} (page) and {address}/v1 (OpenAI); Ctrl-C ends it")
