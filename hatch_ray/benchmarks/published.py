"""The paper's published rows, as data.

Source: Oi, Maeda, Koike, Oba, Inoue, Okazaki, "From Correspondence to Actions: Human-Like Multi-Image Spatial
Reasoning in Multi-modal Large Language Models" (HATCH), Tables 1 and 4, https://stjohn2007.github.io/HATCH_project/.
Percent. A line that begins with # names the group of the rows below it; a row is a model's name and its figures.
"""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = "HATCH (Oi et al.), Tables 1 and 4"

LAYOUT: dict[int, tuple[tuple[str, str], ...]] = {
    1: (
        ("spar_mv", "Low"), ("spar_mv", "Mid"), ("spar_mv", "High"), ("spar_mv", "Avg"),
        ("mindcube_tiny", "Aro"), ("mindcube_tiny", "Rot"), ("mindcube_tiny", "Amo"), ("mindcube_tiny", "Avg"),
        ("mmsi", "Pos"), ("mmsi", "Att"), ("mmsi", "Mot"), ("mmsi", "MSR"), ("mmsi", "Avg"),
        ("overall", "Avg"),
    ),
    4: (
        ("spar_si", "Low"), ("spar_si", "High"), ("spar_si", "Avg"),
        ("cvbench", "2D"), ("cvbench", "3D"), ("cvbench", "Avg"),
    ),
}  # fmt: skip
"""Table -> its columns: (part of `columns.PARTS`, column). "overall" is the mean of the table's three averages."""

_ROWS = {
    1: """\
# Proprietary
GPT-4.1              38.2  37.0  43.1  39.9  59.6  49.5  47.2  50.6  29.3  33.8  38.7  31.3  31.7  40.7
GPT-5.2              43.7  41.5  66.4  52.6  69.2  95.5  41.5  58.4  42.9  47.6  36.0  40.4  42.0  51.0
Gemini-3-Pro         40.6  21.7  58.0  43.1  51.6  54.5  46.0  49.0  42.9  50.0  38.0  40.9  42.7  44.9
# Open-Weight
InternVL-2.5-4B      30.3  30.1  38.5  33.6  57.6  33.5  45.2  45.9  28.7  26.2  20.7  28.3  27.1  35.5
InternVL-2.5-8B      31.8  30.8  48.2  38.3  25.6  37.0  20.3  24.8  31.0  30.0  20.7  23.2  27.8  30.3
LLaVA-OneVision-4B   23.0  28.0  40.1  31.5  50.0  33.5  39.2  40.7  30.8  26.9  26.0  26.8  28.8  33.7
Qwen2.5-VL-32B       25.6  29.0  45.4  34.7  43.6  41.5  38.2  40.0  25.9  26.9  28.7  27.3  26.7  33.8
Qwen2.5-VL-72B       26.9  32.7  43.6  35.4  44.8  42.0  41.2  42.2  33.3  38.5  24.7  28.8  31.8  36.5
# Qwen2.5-VL-7B Based
Qwen2.5-VL-7B        16.9  29.4  40.7  30.1  38.0  33.5  32.7  34.1  28.4  21.5  29.3  25.8  27.1  30.4
SpaceR-7B            31.6  32.3  49.2  39.1  31.6  31.5  28.7  29.9  30.3  25.4  22.0  21.7  26.7  31.9
Video-R1             29.4  30.0  46.2  36.5  44.0  30.0  38.5  38.2  30.5  33.8  18.7  24.7  28.0  34.2
# Qwen2.5-VL-3B Based
Qwen2.5-VL-3B        13.4  26.2  32.6  24.9  46.4  34.5  35.3  37.8  27.8  19.2  23.3  25.8  25.6  29.4
Spatial-MLLM-4B      22.3  32.4  35.2  30.4  52.0  29.0  34.5  37.6  28.0  21.5  14.7  22.7  24.1  30.7
SpatialLadder-3B     26.2  33.5  44.5  35.8  56.4  31.5  47.8  46.8  24.1  23.1  26.7  20.2  23.6  35.4
HATCH                41.3  47.4  67.1  53.6  65.6  31.0  50.2  50.2  30.5  20.8  23.3  24.7  27.0  43.6
""",
    4: """\
# Proprietary
GPT-4.1              46.5  50.1  48.2  75.0  86.9  80.9
GPT-5.2              54.3  66.0  60.2  77.9  90.4  84.2
Gemini-3-Pro         52.5  54.5  53.5  80.7  91.2  85.9
# Open-Weight
InternVL-2.5-4B      32.1  33.7  32.9  73.2  74.6  73.9
InternVL-2.5-8B      32.9  44.1  38.3  74.0  79.5  76.8
LLaVA-OneVision-4B   27.6  41.4  34.2  70.8  79.2  75.0
Qwen2.5-VL-32B       35.6  49.3  42.2  76.8  84.0  80.4
Qwen2.5-VL-72B       32.7  48.0  40.1  77.1  84.2  80.7
# Qwen2.5-VL-7B Based
Qwen2.5-VL-7B        18.7  45.2  31.4  74.8  83.3  79.1
SpaceR-7B            33.6  46.3  39.7  71.9  81.1  76.4
Video-R1             33.8  42.7  38.1  71.7  74.9  73.3
# Qwen2.5-VL-3B Based
Qwen2.5-VL-3B        16.0  32.5  23.9  69.3  72.2  70.7
Spatial-MLLM-4B      24.3  37.6  30.7  65.7  69.5  67.6
SpatialLadder-3B     25.7  39.8  32.5  72.2  74.6  73.4
HATCH                41.1  49.7  45.2  70.5  78.4  74.5
""",
}

TINY_GROUP = "Proprietary"
"""These rows' SPAR-Bench figures are taken as those of SPAR-Bench-Tiny (50 rows a task), as the paper says of figures
in grey italics: the averages of GPT-5.2 and Gemini-3-Pro are what equal task sizes give, GPT-4.1's fit both. Fewer rows
claim less."""
TINY_ROWS = {
    "spar_mv": {"Low": 200, "Mid": 150, "High": 250, "Avg": 600},
    "spar_si": {"Low": 200, "High": 200, "Avg": 400},
}


@dataclass(frozen=True)
class PublishedRow:
    """A model's figures in one table, percent, in the order of LAYOUT."""

    model: str
    group: str
    figures: tuple[float, ...]


def published_rows(table: int) -> list[PublishedRow]:
    """The rows of Table 1 or 4, in the paper's order."""
    rows, group = [], ""
    for line in _ROWS[table].splitlines():
        if line.startswith("#"):
            group = line.removeprefix("#").strip()
            continue
        words = line.split()
        figures = tuple(float(word) for word in words[-len(LAYOUT[table]) :])
        rows.append(PublishedRow(" ".join(words[: -len(figures)]), group, figures))
    return rows
