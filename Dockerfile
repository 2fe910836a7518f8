# A CPU:   docker build -t gradsift .
# NVIDIA:  docker build -t gradsift:cuda --build-arg TORCH=cu130 \
#              --build-arg BASE=nvidia/cuda:13.0.1-base-ubuntu24.04 .
# Use:     docker run --rm -v "$PWD:/work" --user "$(id -u):$(id -g)" gradsift run data.jsonl …
#
# Any base with glibc will do: uv brings Python, and PyTorch's wheels bring CUDA's libraries.
ARG BASE=debian:bookworm-slim
ARG UV=ghcr.io/astral-sh/uv:0.13.8

FROM ${UV} AS uv

FROM ${BASE} AS build
# What of gradsift is installed, and the build of PyTorch: cpu, cu130, … (uv's --torch-backend).
ARG EXTRA=compare
ARG TORCH=cpu
ENV UV_PYTHON_INSTALL_DIR=/opt/python UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 UV_NO_CACHE=1
COPY --from=uv /uv /usr/local/bin/uv
RUN uv venv --python 3.12 --managed-python /opt/gradsift
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
RUN VIRTUAL_ENV=/opt/gradsift uv pip install --torch-backend="${TORCH}" -c constraints.txt ".[${EXTRA}]"

FROM ${BASE}
ARG TORCH=cpu
# Triton compiles a launcher where there is a GPU, and models of the hub want to know whom to trust.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && if [ "${TORCH}" != cpu ]; then apt-get install -y --no-install-recommends gcc libc6-dev; fi \
    && rm -rf /var/lib/apt/lists/* \
    && mkdir -m 1777 /work /cache
COPY --from=build /opt /opt
# Whoever --user names can write there; a volume at /cache keeps what comes from the hub.
ENV PATH=/opt/gradsift/bin:${PATH} HOME=/cache
USER 10001:10001
WORKDIR /work
ENTRYPOINT ["gradsift"]
CMD ["--help"]
