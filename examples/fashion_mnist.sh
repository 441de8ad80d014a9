#!/bin/sh
# A conditional DCGAN on Fashion-MNIST from Debian's package dataset-fashion-mnist (apt install dataset-fashion-mnist).
# Pictures have one column for each of the ten classes. STEPS=200 shortens the run.
set -eu
data=${DATA:-/usr/share/datasets/fashion-mnist}
python -m fastgan train --preset dcgan-32 --data "idx:$data" --cond --ngf 32 --ndf 32 --batch 64 --ema 0.999 \
    --steps "${STEPS:-4000}" --grid 80 --outdir "${OUTDIR:-runs}"
python -m fastgan sample --label 9 --seeds 0-15 --out ankle-boots.png
