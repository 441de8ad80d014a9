#!/bin/sh
# Creates a virtual environment at PATH with the oldest versions that a GPU machine is likely to have: PyTorch 2.11
# with Triton 3.6 (the CUDA build, about 5 GB), without tyro. Triton 3.6's interpreter does not work with NumPy 2.4.
#     sh proofs/gpu/venv.sh PATH [PYTHON]
set -eu
path=${1:?usage: sh proofs/gpu/venv.sh PATH [PYTHON]}
"${2:-python3}" -m venv "$path" || { rm -rf "$path"; "${2:-python3}" -m virtualenv "$path"; }
"$path/bin/python" -m pip install --disable-pip-version-check --quiet \
    torch==2.11.0 torchvision==0.26.0 triton==3.6.0 "numpy<2.4" pillow safetensors tensorboard tqdm matplotlib \
    scikit-learn "setuptools>=77" wheel pybind11 ninja pytest pytest-benchmark hypothesis
"$path/bin/python" -c "import torch, triton, numpy; print(torch.__version__, triton.__version__, numpy.__version__)"
