# docker build -t pcr-seg .
# docker run --gpus all --ipc host -v "$PWD:/work" pcr-seg train dataset=folder dataset.root=FOLDER
# Without a GPU: docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu -t pcr-seg .
FROM python:3.12-slim
ARG TORCH_INDEX=https://pypi.org/simple
RUN pip install --no-cache-dir torch torchvision --index-url "$TORCH_INDEX"
COPY . /src
RUN pip install --no-cache-dir "/src[weights,export]" && rm -r /src
WORKDIR /work
ENTRYPOINT ["pcr-seg"]
CMD ["train", "--help"]
