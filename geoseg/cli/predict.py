"""``geoseg predict``: scenes and a model to a class map, or straight on to polygons."""

from __future__ import annotations

from typing import Annotated

import typer

from geoseg.cli import options


def predict(
    ctx: typer.Context,
    scenes: Annotated[
        list[str],
        typer.Argument(metavar="SCENE", help="Rasters, or a folder of them. Several become one mosaic; or see -o."),
    ],
    model: options.Model,
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT",
            help="File to write; its suffix is its format. FOLDER/ or 'FOLDER/{stem}.gpkg' maps each scene on its own.",
        ),
    ],
    size: options.Size = None,
    overlap: options.Overlap = None,
    blend: Annotated[
        str,
        typer.Option(
            "--blend",
            metavar="|".join(options.BLENDS),
            callback=options.one_of("blend", options.BLENDS),
            help="How overlapping windows are weighted.",
        ),
    ] = "sine",
    tta: Annotated[
        str,
        typer.Option(
            "--tta",
            metavar="|".join(options.TTA),
            callback=options.one_of("tta", options.TTA),
            help="Predict flipped, turned and scaled windows too.",
        ),
    ] = "none",
    batch_size: options.BatchSize = None,
    device: options.Device = "auto",
    backend: options.Backend = "auto",
    precision: options.Precision = "auto",
    bands: options.Bands = None,
    nodata: options.Nodata = None,
    alpha: options.Alpha = False,
    crs: options.Crs = None,
    aoi: Annotated[
        str | None, typer.Option("--aoi", metavar="FILE", help="Polygons; nothing outside them is mapped.")
    ] = None,
    gsd: Annotated[
        str | None,
        typer.Option(
            "--gsd",
            metavar="M|model",
            callback=options.check_metres,
            help="Resample on the way, to metres or to the model's pixels.",
        ),
    ] = None,
    ignore_gsd: Annotated[
        bool, typer.Option("--ignore-gsd", help="Predict though the pixels are not of the size the model knows.")
    ] = False,
    confidence: Annotated[
        bool, typer.Option("--confidence", help="Write OUT_confidence.tif too: the probability of the class.")
    ] = False,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Write OUT_probabilities.tif too: of every class.")
    ] = False,
    disagreement: Annotated[
        bool,
        typer.Option(
            "--disagreement",
            help="Write OUT_disagreement.tif too: where overlapping windows see different classes, in cells of the "
            "network's stride (8 px for SegNeXt).",
        ),
    ] = False,
    simplify: options.Simplify = "1.5px",
    simplify_method: options.SimplifyMethod = "vw",
    smooth: options.Smooth = False,
    regularize: options.Regularize = None,
    min_area: options.MinArea = 0,
    small: options.Small = "merge",
    fill_holes: options.FillHoles = 0,
    keep: options.Keep = None,
    dissolve: options.Dissolve = None,
    executor: Annotated[
        str,
        typer.Option(
            "--executor",
            metavar="|".join(options.EXECUTORS),
            callback=options.one_of("executor", options.EXECUTORS),
            help="Where the work is done.",
        ),
    ] = "in-process",
    address: Annotated[
        str | None,
        typer.Option(
            "--address", metavar="HOST:PORT", help="Ray cluster.", show_default="$RAY_ADDRESS, or this machine alone"
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and how long it will take; write nothing.")
    ] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Discard what an interrupted run has finished.")] = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Map a scene with a model.

    To a class GeoTIFF (-o map.tif), or straight on to polygons (-o map.gpkg, .geojson, .shp, .fgb, .parquet, .pmtiles);
    --simplify to --dissolve are for those. Interrupted, the same command goes on where it stopped. With several
    scenes and -o FOLDER/ each is mapped on its own; those that fail are listed at the end (exit code 1).
    """
    from geoseg.programs.early import check_prediction

    rules = options.polygon_rules(
        simplify=simplify,
        method=simplify_method,
        smooth=smooth,
        regularize=regularize,
        min_area=min_area,
        small=small,
        fill_holes=fill_holes,
        keep=keep,
        dissolve=dissolve,
    )
    is_each = check_prediction(
        scenes, model, output, size=size, overlap=overlap, aoi=aoi, rules=rules, overwrite=overwrite
    )
    from geoseg.programs.predict import PredictOptions, run_prediction
    from geoseg.programs.predict import dry_run as run_dry

    how = PredictOptions(
        size=size,
        overlap=overlap,
        batch_size=batch_size,
        blend=blend,
        tta=tta,
        device=device,
        backend=backend,
        precision=precision,
        bands=options.parse_bands(bands),
        nodata=nodata,
        alpha=alpha,
        crs=crs,
        aoi=aoi,
        gsd=gsd,
        ignore_gsd=ignore_gsd,
        confidence=confidence,
        probabilities=probabilities,
        disagreement=disagreement,
        rules=rules,
        executor=executor,
        address=address,
    )
    progress = ctx.obj.progress
    if not is_each:
        if dry_run:
            _print(run_dry(scenes, model, output, how, overwrite=overwrite).lines())
            return
        report = run_prediction(scenes, model, output, how, overwrite=overwrite, restart=restart, progress=progress)
        ctx.obj.report(report.lines(), report.path)
        return
    from geoseg.programs.predict_each import dry_run_each, predict_each

    if dry_run:
        _print(dry_run_each(scenes, model, output, how))
        return
    each = predict_each(scenes, model, output, how, overwrite=overwrite, restart=restart, progress=progress)
    ctx.obj.report(each.lines(), each.folder)
    for _, error in each.failed:
        typer.echo(f"error: {error.message}" + (f"\nhint:  {error.hint}" if error.hint else ""), err=True)
    if each.failed:
        raise typer.Exit(1)


def _print(lines: list[str]) -> None:
    for line in lines:
        typer.echo(line)
