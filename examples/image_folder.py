"""A pretrained network for a folder of images, with one subfolder for each class.

    python examples/image_folder.py [--folder FOLDER] [--pretrained] [--quick] [--seed N]

Without ``--folder`` the program draws circles, squares and triangles into a temporary folder. Without ``--pretrained`` it
downloads nothing: the network is ``resnet18(weights=None)``, whose weights are random, and all its layers are trained.
With ``--pretrained`` it downloads the weights of ImageNet once (45 MB). Then the new head learns alone for two epochs,
and all layers learn with a lower learning rate from then on.
"""

import argparse
import random
import tempfile
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision import models
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

import easytorch
from easytorch.callbacks import Freeze

options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
options.add_argument("--folder", help="images in one subfolder for each class; drawn if it is missing")
options.add_argument("--pretrained", action="store_true", help="download the weights of ImageNet")
options.add_argument("--quick", action="store_true", help="30 images per class, and fewer epochs")
options.add_argument("--seed", type=int, default=0, help="random seed of the weights, the order and the augmentation")
options.add_argument("--workers", type=int, default=0, help="processes that load the images")
args = options.parse_args()


def draw_images(folder: Path, per_class: int) -> None:
    rng = random.Random(0)
    for kind in ("circle", "square", "triangle"):
        (folder / kind).mkdir(parents=True)
        for number in range(per_class):
            color = tuple(rng.randrange(256) for _ in range(3))
            image = Image.new("RGB", (48, 48), tuple((part + 128) % 256 for part in color))
            x, y, r = rng.randrange(16, 32), rng.randrange(16, 32), rng.randrange(9, 15)
            box, draw = (x - r, y - r, x + r, y + r), ImageDraw.Draw(image)
            if kind == "triangle":
                draw.polygon([(x - r, y + r), (x + r, y + r), (x, y - r)], fill=color)
            else:
                (draw.ellipse if kind == "circle" else draw.rectangle)(box, fill=color)
            image.save(folder / kind / f"{number}.png")


temporary = tempfile.TemporaryDirectory()
folder = Path(args.folder or temporary.name)
if not args.folder:
    draw_images(folder, 30 if args.quick else 100)
torch.manual_seed(args.seed)
# The pretrained weights expect these statistics.
normalize = v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
size = 224 if args.pretrained else 48
to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), normalize]
augment = v2.Compose([v2.RandomResizedCrop(size, scale=(0.8, 1)), v2.RandomHorizontalFlip(), *to_tensor])
plain = v2.Compose([v2.Resize((size, size)), *to_tensor])

# Two datasets of the same files: the images of the training are augmented, those of the validation are not.
train_images, val_images = ImageFolder(folder, augment), ImageFolder(folder, plain)
train_rows, val_rows = easytorch.data.split(val_images, fraction=0.2, seed=0)
train = easytorch.data.seeded(Subset(train_images, train_rows.indices))  # exact with any number of workers
workers = {"num_workers": args.workers, "persistent_workers": args.workers > 0}
train_loader = DataLoader(train, batch_size=16, shuffle=True, **workers)
val_loader = DataLoader(Subset(val_images, val_rows.indices), batch_size=64, **workers)

net = models.resnet18(weights=models.ResNet18_Weights.IMAGENET1K_V1 if args.pretrained else None)
net.fc = nn.Linear(net.fc.in_features, len(train_images.classes))
model = easytorch.Model(net)
if args.pretrained:
    model.compile("adamw", "cross_entropy", metrics=["accuracy"], lr=1e-3)
    head_alone = Freeze("conv1", "bn1", "layer[1-4]")
    model.fit(train_loader, epochs=2, validation_data=val_loader, callbacks=[head_alone], verbose=2)
model.compile("adamw", "cross_entropy", metrics=["accuracy"], lr=1e-4 if args.pretrained else 1e-3)
history = model.fit(train_loader, epochs=4 if args.quick else 8, validation_data=val_loader, verbose=2)

model.class_names = train_images.classes
first = val_rows.indices[0]
path, prediction = Path(val_images.samples[first][0]), model.predict_classes(val_images[first][0][None])[0]
print(f"{path.parent.name}/{path.name} is predicted as {prediction}")
print(f"Result: validation accuracy = {history['val_accuracy'][-1]:.4f}")
print(f"Result: parameters = {sum(p.numel() for p in net.parameters())}")
temporary.cleanup()
