# Three images of one source; --target chooses:
#   docker build --target server -t stepwise-server .      the model server, the default
#   docker build --target ui -t stepwise-ui .              the pages, without TensorFlow
#   docker build --target train -t stepwise-train .        training on a processor
#   docker build --target train --build-arg TENSORFLOW='tensorflow[and-cuda]' -t stepwise-train .
# compose.yaml and deploy/ start them. The same exports run in the stock image:
#   tensorflow/serving:2.20.0

FROM python:3.12-slim AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
RUN useradd --create-home --uid 10001 stepwise
WORKDIR /app

# Packages are installed where compilers may be, and only their folder is copied.
FROM base AS server-packages
COPY requirements-server.txt .
RUN python -m venv /venv && /venv/bin/pip install --no-cache-dir -r requirements-server.txt

FROM base AS ui-packages
COPY requirements-ui.txt .
RUN python -m venv /venv && /venv/bin/pip install --no-cache-dir -r requirements-ui.txt

FROM base AS train-packages
COPY requirements.txt requirements-server.txt requirements-ui.txt ./
ARG TENSORFLOW=tensorflow
RUN python -m venv /venv \
    && /venv/bin/pip install --no-cache-dir -r requirements.txt "${TENSORFLOW}>=2.21,<2.22"

FROM base AS train
COPY --from=train-packages /venv /venv
COPY model model
COPY training training
USER 10001
ENV PATH=/venv/bin:$PATH
WORKDIR /work
ENV PYTHONPATH=/app
# docker run --rm -v "$PWD:/work" stepwise-train all sentiment
ENTRYPOINT ["python", "-m", "training"]
CMD ["list"]

FROM base AS ui
COPY --from=ui-packages /venv /venv
COPY serving/__init__.py serving/client.py serving/
COPY .streamlit .streamlit
COPY ui ui
USER 10001
ENV PATH=/venv/bin:$PATH
EXPOSE 8502
HEALTHCHECK --start-period=20s CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8502/_stcore/health', timeout=2)"]
ENTRYPOINT ["python", "-m", "ui", "--host", "0.0.0.0"]

FROM base AS server
COPY --from=server-packages /venv /venv
COPY model model
COPY serving serving
USER 10001
ENV PATH=/venv/bin:$PATH
EXPOSE 8500 8501
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8501/healthz', timeout=2)"]
# Started directly, so that SIGTERM reaches the server and drains it. It listens beyond the
# container, so it wants keys: -e STEPWISE_API_KEYS=..., or --insecure behind something that checks.
ENTRYPOINT ["python", "-m", "serving", "--host=0.0.0.0"]
CMD ["--exports=/exports"]
