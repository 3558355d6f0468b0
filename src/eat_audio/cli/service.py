"""The HTTP service."""

from importlib.util import find_spec
from typing import Annotated

import typer
from typer import Option

from eat_audio.cli.console import Device, ModelSource, Precision
from eat_audio.cli.inference import load_predictor
from eat_audio.errors import EatError

app = typer.Typer()

NEEDED = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")
"""What the extra [serve] brings."""


@app.command()
def serve(
    *,
    model: ModelSource = None,
    host: Annotated[
        str, Option(help="0.0.0.0: every network of this machine, for everybody there.")
    ] = "127.0.0.1",
    port: Annotated[int, Option(min=0, max=65_535, help="0: a free one.")] = 8000,
    max_megabytes: Annotated[float, Option(help="The largest upload.")] = 25.0,
    max_seconds: Annotated[float, Option(help="The longest recording.")] = 600.0,
    max_requests: Annotated[
        int, Option(min=1, help="Recordings at a time, waiting ones too.")
    ] = 64,
    timeout: Annotated[float, Option(help="Seconds for one request.")] = 60.0,
    device: Device = "auto",
    precision: Precision = "auto",
) -> str:
    """Answer HTTP requests: POST a recording to /tag, /embed or /detect.

    /health describes the service, /metrics counts for Prometheus, /openapi.json has all settings.

    Example: eat serve --port 8000, then curl -F file=@dog.wav localhost:8000/tag
    """
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise EatError(
            f"eat serve: needs {missing[0]}; install it (pip install 'eat-audio[serve]')"
        )
    from eat_audio.app.service import Limits
    from eat_audio.app.service import serve as run

    limits = Limits(max_megabytes, max_seconds, max_requests, timeout)
    predictor = load_predictor(model, device, precision)
    name = model or "the tagger that ships with eat-audio"
    run(predictor, name, host=host, port=port, limits=limits)
    return ""
