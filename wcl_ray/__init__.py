"""wcl_ray: image encoders from images and the metadata people already have about them."""

__version__ = "0.2.0"
