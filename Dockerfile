# The embedded server in a container: docker build -t stepwise . &&
#   docker run --rm -p 127.0.0.1:8501:8501 -p 127.0.0.1:8500:8500 -v "$PWD/exports:/exports:ro" stepwise
# The same exports run in the stock image, which is what `python -m serving --engine docker` starts:
#   tensorflow/serving:2.20.0
FROM python:3.12-slim

RUN useradd --create-home stepwise
WORKDIR /app
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt
COPY model model
COPY training training
COPY serving serving
COPY ui ui
COPY .streamlit .streamlit
USER stepwise
ENV PYTHONUNBUFFERED=1
EXPOSE 8500 8501 8502
HEALTHCHECK --start-period=30s CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8501/healthz', timeout=2)"]
# Started directly, so that SIGTERM reaches the server and drains it. Inside a container the ports
# are reached from outside only where `docker run -p` publishes them.
CMD ["python", "-m", "serving", "--host", "0.0.0.0", "--exports", "/exports"]
