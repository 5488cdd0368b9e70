# The command `optgen` on a CPU, with the compiler that kernels need: docker build -t optgen .
#   docker run --rm optgen list
#   docker run --rm -v "$PWD:/work" optgen build my_optimizer.yaml
FROM python:3.13-slim
# The distribution keeps one version of a package, so that none is pinned.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY LICENSE README.md SECURITY.md pyproject.toml ./
COPY generated generated
COPY optgen optgen
COPY specs specs
COPY templates templates
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir --extra-index-url "$TORCH_INDEX" . && rm -rf /source
RUN useradd --create-home --uid 1000 optgen
USER 1000
WORKDIR /work
ENTRYPOINT ["optgen"]
CMD ["--help"]
