# The zoo with its pinned versions on CUDA. docs/guide/installation.md says what of this has been tried.
#
#     docker build --tag zoo .
#     docker run --rm --gpus all --shm-size 16g --volume "$PWD/cache:/zoo/cache" zoo      # make gpu
#
# PyTorch's wheels have their own CUDA 13.0 libraries; devel also compiles flash-attn and causal-conv1d. Python is 3.12.
FROM nvidia/cuda:13.0.2-devel-ubuntu24.04
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates git make python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /zoo
COPY . .
RUN make install
ENV PATH=/zoo/.venv/bin:$PATH
CMD ["make", "gpu", "PYTHON=.venv/bin/python"]
