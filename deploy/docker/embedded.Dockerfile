# The embedded engine behind NVIDIA Triton, on x86-64 processors, without a GPU. Commands start at the repository's root.
# The image has not been built since this file changed last; hadolint accepts the file.
#
# Build the image of the server, and that of the tools, which has a C++ compiler:
#   docker build -t trtllm_pt -f deploy/docker/embedded.Dockerfile .
#   docker build -t trtllm_pt:tools -f deploy/docker/embedded.Dockerfile --target tools .
#
# An engine runs beside the versions that built it, so build it with the tools:
#   docker run --rm -u "$(id -u):$(id -g)" -e HOME=/tmp -v "$PWD:/work" -w /work trtllm_pt:tools \
#       sh -c 'trtllm-pt convert pretrained/stdlib-pt -o build/demo --ranks 2 && trtllm-pt build build/demo -o engines/demo'
#
# The server listens on 127.0.0.1. Either let it do so on the host,
#   docker run --rm --init --shm-size 1g --network host -v "$PWD/engines/demo:/engine:ro" trtllm_pt
# or let it listen inside the container, and publish the ports to the host's loopback only. It has no authentication:
# put a proxy before it where others can reach it (SECURITY.md).
#   docker run --rm --init --shm-size 1g -p 127.0.0.1:8000:8000 -p 127.0.0.1:9000:9000 \
#       -v "$PWD/engines/demo:/engine:ro" trtllm_pt serve /engine --host 0.0.0.0

FROM python:3.12-slim-bookworm AS tools
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_EXTRA_INDEX_URL=$TORCH_INDEX PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ git \
    && rm -rf /var/lib/apt/lists/* \
    && python -m venv /opt/trtllm_pt
ENV PATH=/opt/trtllm_pt/bin:$PATH
WORKDIR /source
# The packages change less often than the sources: a layer of their own. The version there is only for this layer.
COPY pyproject.toml README.md LICENSE ./
RUN mkdir trtllm_pt && touch trtllm_pt/__init__.py && pip install '.[embedded,release]' && pip uninstall --yes trtllm_pt
COPY . .
RUN TRTLLM_PT_BUILD_OPS=1 pip wheel --no-build-isolation --no-deps --wheel-dir /dist . \
    && pip install --no-deps /dist/*.whl \
    && rm -rf build
WORKDIR /

FROM python:3.12-slim-bookworm
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# With ssh, the ranks of a server can be on several nodes (docs/nodes.md).
RUN apt-get update \
    && apt-get install --yes --no-install-recommends openssh-client openssh-server \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1001 trtllm_pt
RUN --mount=type=bind,from=tools,source=/dist,target=/dist \
    PIP_EXTRA_INDEX_URL=$TORCH_INDEX pip install --no-cache-dir "$(ls /dist/*.whl)[embedded,serve]"
USER 1001
WORKDIR /home/trtllm_pt
EXPOSE 8000 8001 8002 9000
# The models load before the server is ready; an engine of some gigabytes takes minutes.
HEALTHCHECK --interval=15s --timeout=12s --start-period=300s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9000/health', timeout=11)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["trtllm-pt"]
CMD ["serve", "/engine"]
