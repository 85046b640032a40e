"""``muplan serve PLAN_DIR``: serve a generated repository with a real Triton."""

from __future__ import annotations

from pathlib import Path

import click

from muplan.deploy.ports import Ports
from muplan.deploy.serve import ServeOptions, serve

_PORT = click.IntRange(1, 65535)


@click.command()
@click.argument("plan_dir", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--node", help="Node of the plan to serve; needed when the plan has several.")
@click.option(
    "--tritonserver",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="The tritonserver program; default: $TRITONSERVER, PATH, then the nvidia-pytriton wheel.",
)
@click.option("--http-port", type=_PORT, default=8000, show_default=True)
@click.option("--grpc-port", type=_PORT, default=8001, show_default=True)
@click.option("--metrics-port", type=_PORT, default=8002, show_default=True)
@click.option(
    "--openai-port",
    type=_PORT,
    help="Also offer the generative models at /v1/chat/completions and /v1/completions on this port.",
)
@click.option("--address", default="127.0.0.1", show_default=True, help="Address to listen on.")
def command(
    plan_dir: Path,
    node: str | None,
    tritonserver: Path | None,
    http_port: int,
    grpc_port: int,
    metrics_port: int,
    openai_port: int | None,
    address: str,
) -> None:
    """Serve what `muplan generate` wrote to PLAN_DIR with a real Triton until Ctrl-C.

    Prints the endpoints on stdout once every model is ready; logs go to stderr. Models whose Python
    process dies are loaded again.
    """
    options = ServeOptions(
        node=node,
        tritonserver=tritonserver,
        ports=Ports(http=http_port, grpc=grpc_port, metrics=metrics_port, openai=openai_port),
        address=address,
    )
    serve(plan_dir, options, out=click.echo, log=lambda line: click.echo(f"triton | {line}", err=True))
