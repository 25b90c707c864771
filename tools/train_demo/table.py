"""The table of results, and the bars that the built-in model was made to reach."""

BARS = {
    "count": 0.95,
    "colour": 0.97,
    "shape": 0.97,
    "caption en": 0.85,
    "caption de": 0.80,
    "caption fr": 0.80,
    "caption es": 0.80,
    "detect: mean IoU of matched objects": 0.75,
    "detect: recall at IoU 0.5": 0.92,
    "detect: precision at IoU 0.5": 0.92,
    "segment: mean IoU of the mask": 0.70,
    "mask VAE alone: mean IoU": 0.95,
    "ocr": 0.85,
}


def table(rows: dict[str, tuple[float, int]], scenes: int) -> str:
    """The rows in Markdown, those with a bar first."""
    lines = [f"| task, {scenes:,} held-out scenes | bar | measured | answers or objects |", "|---|---|---|---|"]
    for name in [*BARS, *(name for name in sorted(rows) if name not in BARS)]:
        if name in rows:
            value, count = rows[name]
            bar = f"{BARS[name]:.2f}" if name in BARS else ""
            missed = " (missed)" if name in BARS and value < BARS[name] else ""
            lines.append(f"| {name} | {bar} | {value:.3f}{missed} | {count:,} |")
    return "\n".join(lines)
