# Headway's serving image. Two targets: `cpu` (the default) and `cuda`. Neither holds torch.
#
#   docker build -t headway:0.1.0 .
#   docker build --target cuda -t headway:0.1.0-cuda .
#
# Everything is installed in the versions that requirements.lock pins. docs/deployment.md has the rest.
ARG PYTHON_IMAGE=python:3.12-slim-bookworm

# -- an empty environment and the list of what goes into it -----------------------------------------------------------
FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
WORKDIR /src
# The environment has no pip of its own: what serves cannot install.
RUN python -m venv --without-pip /opt/headway
COPY pyproject.toml requirements.lock ./
# The dependencies come before the source, so that an edit of the source does not install them again.
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; x = p['optional-dependencies']; \
        media = x['image'] + x['text'] + x['audio']; \
        [open(f'/{e}.txt', 'w').write('\n'.join(p['dependencies'] + x[e] + media)) for e in ('cpu', 'cuda')]"

FROM build AS dependencies-cpu
RUN pip --python /opt/headway/bin/python install -r /cpu.txt -c requirements.lock

FROM build AS dependencies-cuda
# CUDA and cuDNN come as wheels, so the base is the same slim Python; the host brings only the driver.
RUN pip --python /opt/headway/bin/python install -r /cuda.txt -c requirements.lock

# -- Headway itself, apart from its dependencies: a release changes one small layer ------------------------------------
FROM build AS package
COPY README.md LICENSE ./
COPY service service
COPY models models
COPY exporters exporters
RUN pip --python /opt/headway/bin/python install --no-deps --no-warn-script-location --root /package .

# -- what both images share -------------------------------------------------------------------------------------------
FROM ${PYTHON_IMAGE} AS runtime
RUN groupadd --gid 10001 headway \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin headway \
    && install -d -o 10001 -g 10001 -m 0770 /data
# No bytecode is written, and HOME is /tmp: the root file system can be read-only with only /tmp and /data writable.
# One BLAS thread: the engines are the parallelism, and a second thread under each of them only adds jitter.
ENV PATH=/opt/headway/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    OPENBLAS_NUM_THREADS=1 \
    HEADWAY_HOST=0.0.0.0 \
    HEADWAY_PORT=8000 \
    HEADWAY_METRICS_PORT=9090 \
    HEADWAY_STORE=sqlite+aiosqlite:////data/headway.db
WORKDIR /data
VOLUME ["/data"]
EXPOSE 8000 9090
STOPSIGNAL SIGTERM
# http.client and not urllib: a proxy named in the environment must not be asked for the loopback address.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['HEADWAY_PORT']), timeout=3); c.request('GET', '/v2/health/ready'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["headway"]
CMD ["serve"]
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.title="headway" \
      org.opencontainers.image.description="Model serving with a personal head for every user" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"

# -- the two images; each refuses to be built with torch, with a broken dependency, or without a working command -------
FROM runtime AS cuda
# The service does not fall back to the CPU: a model that the GPU cannot take is not ready. HEADWAY_DEVICE=cpu overrides.
ENV HEADWAY_DEVICE=cuda \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=dependencies-cuda /opt/headway /opt/headway
COPY --from=package /package/opt/headway /opt/headway
# The loader is told where the wheels put CUDA and cuDNN, and every library but the host's driver must be found.
RUN find /opt/headway/lib -type d -path '*/site-packages/nvidia/*/lib' > /etc/ld.so.conf.d/headway-cuda.conf \
    && ldconfig \
    && python -c "import glob, subprocess, sys; [provider] = glob.glob('/opt/headway/lib/python3.*/site-packages/onnxruntime/capi/libonnxruntime_providers_cuda.so'); \
        lost = [line.strip() for line in subprocess.check_output(['ldd', provider], text=True).splitlines() if 'not found' in line and 'libcuda.so' not in line]; \
        sys.exit('\n'.join(lost) or 0)"
RUN pip --python /opt/headway/bin/python check \
    && python -c "import importlib.util, sys; sys.exit('torch is in the image' if importlib.util.find_spec('torch') else 0)" \
    && headway --help > /dev/null
USER 10001:10001

FROM runtime AS cpu
COPY --from=dependencies-cpu /opt/headway /opt/headway
COPY --from=package /package/opt/headway /opt/headway
RUN pip --python /opt/headway/bin/python check \
    && python -c "import importlib.util, sys; sys.exit('torch is in the image' if importlib.util.find_spec('torch') else 0)" \
    && headway --help > /dev/null
USER 10001:10001
