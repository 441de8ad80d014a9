#!/usr/bin/env bash
# A tour of fastgan for a new user: own images, an own network, a kill, a resume, and exports. Prints what passed.
#
#     bash examples/stranger.sh [FOLDER]
#
# Works in FOLDER, by default a temporary folder. PYTHON: a Python with fastgan. IMPL: the engine to verify.
set -euo pipefail
python=${PYTHON:-python}
work=${1:-$(mktemp -d)}
passed=() skipped=()
cd "$work"

show() { printf '\n$ %s\n' "$*" >&2; "$@"; }  # prints to stderr, so that the command's output can be piped
fastgan() { "$python" -m fastgan "$@"; }
done_with() { passed+=("$1"); }
has_option() { local help; help=$(fastgan "$1" --help) && [[ $help == *"$2"* ]]; }

# small networks and batches: this checks that everything works, not the quality of the images
small=(--ngf 8 --ndf 8 --nz 16 --batch 16 --grid 16 --plan default --channels 3)
data=folder:$PWD/images

printf '\n# a folder of images, a subfolder for each class\n'
show "$python" -c '
from pathlib import Path
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
digits = load_digits()
for i in range(300):
    folder = Path("images", str(digits.target[i]))
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray((digits.images[i] * 15).astype(np.uint8)).resize((64, 64)).save(folder / f"{i}.png")
'
done_with "a folder of images"

show fastgan train --preset dcgan-64 --data "$data" "${small[@]}" --dry-run | tail -7
[ ! -e runs ]
done_with "dry run"

show fastgan train --preset dcgan-64 --data "$data" "${small[@]}" --steps 10 --snap 5
run=runs/00000-dcgan-64
done_with "train"

show fastgan verify --preset digits --impl "${IMPL:-native}" --batch 4 --steps 1 | tail -3
done_with "verify"

printf '\n# an own network, converted: the same outputs\n'
show "$python" -c '
import torch, fastgan
from torch import nn
mine = nn.Sequential(nn.Conv2d(3, 8, 4, 2, 1), nn.BatchNorm2d(8), nn.LeakyReLU(0.2), nn.Conv2d(8, 1, 32), nn.Flatten(0))
theirs, x = fastgan.convert(mine), torch.randn(4, 3, 64, 64)
print(*theirs.fastgan_report, sep="\n")
torch.testing.assert_close(theirs(x), mine(x), rtol=1e-4, atol=1e-5)
'
done_with "own network converted"

# two processes, if this version supports them
if has_option train --sync-bn; then
    show "$python" -m torch.distributed.run --standalone --nproc-per-node 2 -m fastgan train --preset dcgan-64 \
        --data "$data" "${small[@]}" --steps 4 --sync-bn --outdir two
    [ -e two/00000-dcgan-64/checkpoints/step000004.pt ]
    done_with "two processes"
else
    skipped+=("two processes: this version has no --sync-bn")
fi

printf '\n# kill -9 in the middle, then resume\n'
echo "$ fastgan train --preset dcgan-64 ... --steps 100000 --snap 5 --outdir killed &"
"$python" -m fastgan train --preset dcgan-64 --data "$data" "${small[@]}" --steps 100000 --snap 5 --outdir killed \
    2>train.log &
killed=$!
for _ in $(seq 600); do
    [ -e killed/00000-dcgan-64/checkpoints/step000005.pt ] && break
    kill -0 "$killed" || { cat train.log; exit 1; }
    sleep 0.2
done
show kill -9 "$killed"
wait "$killed" || true
newest=$(basename "$(ls killed/00000-dcgan-64/checkpoints/step*.pt | tail -1)" .pt)
last=$((10#${newest#step}))
show fastgan resume killed/00000-dcgan-64 --steps $((last + 3))
[ -e "killed/00000-dcgan-64/checkpoints/step$(printf %06d $((last + 3))).pt" ]
done_with "resume after kill -9 at step $last"

show fastgan sample "$run" --seeds 0-15 --out samples.png
show fastgan interpolate "$run" --seeds 0,5 --frames 4 --out walk
[ -s samples.png ] && [ -s walk.png ] && [ -s walk.gif ]
done_with "sample and interpolate"

show fastgan evaluate "$run" --metrics score --images 100
[ -s "$run/metrics.json" ]
done_with "evaluate"

# run the program of each export's model card without fastgan
forms=(safetensors torch.export pytorch-example)
if "$python" -c 'import onnx, onnxscript, onnxruntime' 2>/dev/null; then
    forms+=(onnx)
else
    skipped+=("export to onnx: needs the extra export")
fi
for form in "${forms[@]}"; do
    show fastgan export "$run" --format "$form" --out "out/$form"
    if [ "$form" = pytorch-example ]; then
        [ -s "out/$form/netG.pth" ] && [ -s "out/$form/netD.pth" ]
    else
        { echo 'import sys; sys.modules["fastgan"] = None'
          sed -n '/^```python$/,/^```$/p' "out/$form/README.md" | sed '/^```/d'
          echo 'assert tuple(images.shape) == (16, 3, 64, 64), images.shape; print("16 images without fastgan")'
        } >"out/$form/draw.py"
        (cd "out/$form" && show "$python" draw.py)
    fi
    done_with "export to $form"
done

# the page of a run, if this version has it; `report` of older versions is another command
if has_option report --out; then
    show fastgan report "$run" --out report.html
    [ -s report.html ]
    done_with "report"
else
    skipped+=("report: this version has no page of a run")
fi

printf '\n'
for what in "${skipped[@]:-}"; do [ -z "$what" ] || echo "skipped: $what"; done
echo "passed: $(IFS=,; echo "${passed[*]}" | sed 's/,/, /g')"
