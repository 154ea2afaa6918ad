"""A run of `m2f predict`: many images in; tables, pictures and COCO files out."""
