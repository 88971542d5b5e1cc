"""``geoseg models``: every variant of SegNeXt and what it costs."""

from typing import Annotated

import typer


def models(
    csv: Annotated[bool, typer.Option("--csv", help="Print comma-separated values with exact numbers.")] = False,
) -> None:
    """List the variants of SegNeXt.

    With parameters and cost, measured and as published: sizes T, S, B and L, the ImageNet classifiers, and the design
    studies of the paper's Tables 5, 6 and 7 on T.
    """
    from geoseg.paper.variants import as_csv, as_text

    typer.echo(as_csv().rstrip("\n") if csv else "\n".join(as_text()))
