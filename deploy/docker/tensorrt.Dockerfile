# TensorRT-LLM engines behind NVIDIA's own Triton, on NVIDIA GPUs. This image has not been built, and nobody has served
# from it: docs/tensorrt_llm.md says what has been checked.
#
#   docker build -t trtllm_pt:tensorrt -f deploy/docker/tensorrt.Dockerfile .
#   docker run --rm --init --gpus all --ipc=host --ulimit memlock=-1 --ulimit stack=67108864 \
#       -p 127.0.0.1:8000:8000 -p 127.0.0.1:9000:9000 -v "$PWD/engines/stdlib-8:/engine:ro" \
#       trtllm_pt:tensorrt serve /engine --host 0.0.0.0
#
# Build the engines in the container of the same TensorRT-LLM (docs/serving.md).

FROM nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3
# git tells the version of the package; leaders reach workers by ssh (docs/nodes.md).
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git openssh-client openssh-server \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1001 trtllm_pt
WORKDIR /source
COPY . .
# The extra `serve` would bring another tritonserver, without the backend for TensorRT-LLM.
RUN pip install --no-cache-dir . 'aiohttp>=3.9' 'jinja2>=3.1' 'tritonclient[grpc]>=2.51'
USER 1001
WORKDIR /home/trtllm_pt
EXPOSE 8000 8001 8002 9000
# The models load before the server is ready; an engine of some gigabytes takes minutes.
HEALTHCHECK --interval=15s --timeout=12s --start-period=900s --retries=3 \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9000/health', timeout=11)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["trtllm-pt"]
CMD ["serve", "/engine"]
