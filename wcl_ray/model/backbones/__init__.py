"""Families of backbones, one a module. A new one is a function under ``@BACKBONES.add("FAMILY")``:

    (name, image_size) → a module (B, 3, image_size, image_size) → (B, classes)

``name`` is what follows the colon of ``--model.backbone FAMILY:NAME``. The last linear layer of the
network is taken off as its classifier, unless it has timm's ``reset_classifier``.
"""
