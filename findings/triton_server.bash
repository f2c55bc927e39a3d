# shellcheck shell=bash disable=SC2154  # the scripts set $work
# Starts the tritonserver of the wheel nvidia-pytriton for the scripts beside this file. They source it.

# The argument is the virtual environment that has the wheel. The models lie in $work/models. Sets $url and $triton_pid.
start_triton() {
    local venv=$1 version packages wheel file port libraries
    version=$("$venv/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    packages=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    libraries=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_config_var("LIBDIR"))')
    wheel=$packages/pytriton/tritonserver
    # The server looks for the program that runs a model beside the backend; the wheel keeps one for each Python elsewhere.
    mkdir -p "$work/backends/python"
    for file in "$wheel"/backends/python/{libtriton_python.so,triton_python_backend_utils.py} \
        "$wheel/python_backend_stubs/$version/triton_python_backend_stub"; do
        ln -s "$file" "$work/backends/python/"
    done
    port=$("$venv/bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    url=http://127.0.0.1:$port
    PATH="$venv/bin:$PATH" LD_LIBRARY_PATH="$libraries" "$wheel/bin/tritonserver" \
        --model-repository="$work/models" --backend-directory="$work/backends" --cache-directory="$wheel/caches" \
        --disable-auto-complete-config --allow-grpc=false --allow-metrics=false --exit-timeout-secs=5 \
        --pinned-memory-pool-byte-size=0 --backend-config="python,shm-region-prefix-name=findings${port}_" \
        --http-address=127.0.0.1 --http-port="$port" > "$work/triton.log" 2>&1 &
    triton_pid=$!
    for _ in {1..120}; do
        if "$venv/bin/python" -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1])' \
            "$url/v2/health/ready" 2> "$work/not-ready"; then
            return
        fi
        if ! kill -0 "$triton_pid"; then
            break
        fi
        sleep 1
    done
    echo "the server did not start:" >&2
    tail "$work/triton.log" >&2
    exit 1
}

# Ends the server and removes the temporary folder; to be called on EXIT.
stop_triton() {
    if [[ -n ${triton_pid:-} ]]; then
        kill "$triton_pid" || true
        wait "$triton_pid" || true
    fi
    rm -rf "$work"
}
