"""Families of backbones, one per module. A new one is a function decorated with
``@BACKBONES.add("FAMILY")``:

    (name, image_size) → a module (B, 3, image_size, image_size) → (B, classes)

``name`` follows the colon in ``--model.backbone FAMILY:NAME``. The last linear layer of the network
is removed as its classifier, unless the network has timm's ``reset_classifier``. A family whose
function takes ``drop_path=RATE`` has stochastic depth; one that takes ``pretrained=True`` has
published weights, and its networks have a ``pretrained_cfg`` (``mean``, ``std``, ``input_size``).
"""
