# The HTTP service and every other command of eat-audio, with the tagger that ships.
#   docker build -t eat-audio .                           # a CPU
#   docker build -t eat-audio --build-arg DEVICE=cu128 .  # CUDA 12.8, then: docker run --gpus all
#   docker run -p 8000:8000 eat-audio
#   docker run -v "$PWD:/data" eat-audio predict dog.wav
ARG PYTHON=3.11
FROM python:${PYTHON}-slim

ARG DEVICE=cpu
ARG EXTRAS=data,serve
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PYTHONUNBUFFERED=1

WORKDIR /src
COPY constraints.txt ./
RUN python -m pip install -c constraints.txt --extra-index-url "https://download.pytorch.org/whl/${DEVICE}" torch
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN python -m pip install -c constraints.txt ".[${EXTRAS}]"

RUN useradd --create-home --uid 10001 eat && mkdir /data && chown eat /data
USER 10001
WORKDIR /data
EXPOSE 8000
HEALTHCHECK --start-period=60s CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health')"]
ENTRYPOINT ["eat"]
CMD ["serve", "--host", "0.0.0.0"]
