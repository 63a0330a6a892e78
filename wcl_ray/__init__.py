"""wcl_ray: image encoders from images and the metadata people already have about them."""

__version__ = "0.3.0.dev0"
