# geoseg on CPUs. Build and run:
#
#     docker build -t geoseg --build-arg TORCH_INDEX=… .
#     docker run --rm -v "$PWD:/data" --user "$(id -u):$(id -g)" geoseg predict scene.tif -m buildings-tiny -o houses.gpkg
#
# Tested without Docker: the same steps in a fresh virtual environment and an empty home folder, ending in `geoseg demo`.
# The image itself has not been built.
FROM python:3.12-slim AS build

RUN python -m venv /opt/geoseg
# Pass the index of torch's CPU wheels for a small image: the default torch brings several GB of CUDA libraries.
ARG TORCH_INDEX=""
RUN /opt/geoseg/bin/pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch torchvision
COPY . /src
RUN /opt/geoseg/bin/pip install --no-cache-dir /src

FROM python:3.12-slim

# The wheels of rasterio and pyogrio bring GDAL; numba and OpenMP need libgomp.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home geoseg \
    && mkdir -m 1777 /cache /data
COPY --from=build /opt/geoseg /opt/geoseg

# Converted networks and compiled kernels; mount a volume to keep them between runs.
ENV PATH=/opt/geoseg/bin:$PATH XDG_CACHE_HOME=/cache NUMBA_CACHE_DIR=/cache/numba MPLCONFIGDIR=/cache/matplotlib
VOLUME /cache
USER geoseg
WORKDIR /data
ENTRYPOINT ["geoseg"]
CMD ["--help"]
