# docker build -t vmunet .                                       # on the CPU; for an NVIDIA GPU: --build-arg WHEELS=cu128
# docker run --rm -v "$PWD:/work" vmunet predict isic17 photo.jpg --output masks          # --gpus all
FROM python:3.12-slim
ARG WHEELS=cpu
COPY . /source
RUN pip install --no-cache-dir "/source[predict]" --extra-index-url "https://download.pytorch.org/whl/$WHEELS" && rm -r /source
WORKDIR /work
ENTRYPOINT ["vmunet"]
