# geoseg on CPUs. Build and run:
#
#     docker build -t geoseg --build-arg TORCH_INDEX=… .
#     docker run --rm -v "$PWD:/data" --user "$(id -u):$(id -g)" geoseg predict scene.tif -m buildings-tiny -o houses.gpkg
#
# The image has not been built yet. Tested in its place: the pip steps in a fresh environment of Python 3.11, then `geoseg demo`
# as an unprivileged user without a home folder, with an empty environment but for the ENV lines below; and the shared
# libraries that the wheels load but do not bring, which are those that apt installs here. The environment took 6.9 GB
# with the default torch, 4.1 GB of it CUDA libraries and Triton.
FROM python:3.12-slim AS build

RUN python -m venv /opt/geoseg
# For a small image pass the index of torch's CPU wheels.
ARG TORCH_INDEX=""
RUN /opt/geoseg/bin/pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch torchvision
COPY . /src
RUN /opt/geoseg/bin/pip install --no-cache-dir /src

FROM python:3.12-slim

# The wheels of rasterio and pyogrio bring GDAL, but not expat; numba uses libgomp.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libexpat1 libgomp1 \
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
