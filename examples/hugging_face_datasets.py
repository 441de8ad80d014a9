"""A data set of Hugging Face's `datasets` as a run of fastgan: `pip install datasets`.

    python examples/hugging_face_datasets.py [STEPS]

Here it is made in memory; `datasets.load_dataset("NAME", split="train")` takes its place.
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
    """A batch of rows, every image grey and SIDE x SIDE."""
    return {**rows, "image": [image.convert("L").resize((SIDE, SIDE)) for image in rows["image"]]}


# pixels and labels as one file: a run knows its data again by it when it is resumed
dataset = dataset.map(resized, batched=True)
np.savez("images.npz", images=np.stack([np.asarray(image) for image in dataset["image"]]),
         labels=np.array(dataset["label"]))

config = presets.get("digits", source="npz:images.npz", image_size=str(SIDE), cond=True, steps=STEPS)
folder = Trainer(config).fit()
print(f"pictures: {folder}; to go on: fastgan resume {folder} --steps {2 * STEPS}")
