"""Training on a data set of Hugging Face's `datasets` (`pip install datasets`).

    python examples/hugging_face_datasets.py [STEPS]

This example creates the data set in memory; replace it by `datasets.load_dataset("NAME", split="train")`.
"""

import sys

import datasets
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from fastgan import presets
from fastgan.trainer import Trainer

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 500
SIDE = 32

digits = load_digits()
dataset = datasets.Dataset.from_dict(
    {"image": [Image.fromarray((pixels * 15).astype(np.uint8)) for pixels in digits.images], "label": digits.target},
    features=datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)}))


def resized(rows: dict) -> dict:
    """A batch of rows, with gray images of SIDE x SIDE pixels."""
    return {**rows, "image": [image.convert("L").resize((SIDE, SIDE)) for image in rows["image"]]}


# store pixels and labels in a file, from which the run can be resumed
dataset = dataset.map(resized, batched=True)
np.savez("images.npz", images=np.stack([np.asarray(image) for image in dataset["image"]]),
         labels=np.array(dataset["label"]))

config = presets.get("digits", source="npz:images.npz", image_size=str(SIDE), cond=True, steps=STEPS)
folder = Trainer(config).fit()
print(f"pictures: {folder}; to continue: fastgan resume {folder} --steps {2 * STEPS}")
