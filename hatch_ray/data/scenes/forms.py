"""Which form a folder is in, and its scene. A new form is one file with FORM, LOOKS_LIKE, `recognises` and `read`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from hatch_ray.data.scenes import co3d, colmap, realestate, recorded, sens, transforms
from hatch_ray.data.scenes.posed import PosedScene

FORMS: dict[str, ModuleType] = {form.FORM: form for form in (colmap, transforms, co3d, realestate, sens, recorded)}


def forms_of(path: Path) -> list[str]:
    """Names of the forms that a folder is in."""
    return [name for name, form in FORMS.items() if form.recognises(path)]


def read_scene(path: Path, form: str = "") -> PosedScene:
    """The scene of one folder. form: one of FORMS, where a folder is in two.

    Raises ValueError: the folder is in no form, or in two; and whatever the form's reader refuses.
    """
    if not path.is_dir():
        raise ValueError(f"{path} is not a folder")
    names = forms_of(path)
    if form and form not in names:
        looks = FORMS[form].LOOKS_LIKE if form in FORMS else f"a form that is not known; known are {', '.join(FORMS)}"
        raise ValueError(f"{path} is not in the form {form}: {looks}")
    if not names:
        known = "; ".join(f"{name}: {module.LOOKS_LIKE}" for name, module in FORMS.items())
        raise ValueError(f"{path} is in no known form; a scene is one folder with {known}")
    if len(names) > 1 and not form:
        raise ValueError(f"{path} is in {len(names)} forms, {' and '.join(names)}; say which: form={names[0]}")
    scene: PosedScene = FORMS[form or names[0]].read(path)
    return scene


def find_scenes(root: Path) -> Iterator[Path]:
    """Folders at or below a root that are in some form, sorted; not below one that is."""
    for folder, below, _ in os.walk(root):
        below.sort()
        if forms_of(Path(folder)):
            below.clear()
            yield Path(folder)
