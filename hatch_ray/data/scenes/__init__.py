"""Posed pictures in the forms that others publish, read as scenes: `hatch_ray.data.scenes.forms.read_scene`."""
