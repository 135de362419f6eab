"""The result of `ModelBenchmark` as text, for a terminal or a document."""

from collections.abc import Iterable, Mapping, Sequence

from revvideo.benchmark.machine import name_hardware


def format_result(result: Mapping) -> str:
    """Header, then an aligned table for each kind of figure that the result has."""
    parts = [_header(result), _steps(result)]
    for name, format_part in (
        ("growth_with_batch", _growth_with_batch),
        ("depths", _depths),
        ("largest_batches", _largest_batches),
    ):
        parts += [format_part(result)] if result[name] else []
    if result["skipped"]:
        parts.append("\n".join(["not measured:", *(f"  {line}" for line in result["skipped"])]))
    return "\n\n".join(parts)


def _header(result: Mapping) -> str:
    header, machine = result["header"], result["header"]["machine"]
    lines = [
        header["command"],
        f"{machine['date']}, {name_hardware(machine)}",
        f"torch {machine['torch']}, revvideo {machine['revvideo']}, {machine['threads']} threads, "
        f"load average before {machine['load_average']}",
    ]
    if result["matmul_tflops"]:
        peaks = ", ".join(f"{name} {value:.0f}" for name, value in result["matmul_tflops"].items())
        lines.append(f"fastest matrix product, TFLOP/s: {peaks}")
    notes = ("step", "time", "memory", "ratio", "spread", *(["mfu"] if result["matmul_tflops"] else []))
    return "\n".join([*lines, *(f"{name}: {result['conventions'][name]}" for name in notes)])


def _steps(result: Mapping) -> str:
    has_peer, has_peak = bool(result["peers"]), bool(result["matmul_tflops"])
    heads = ["model", "mode", "precision", "batch", "step s", "least s", "spread", "clips/s", "peak MiB"]
    heads += ["x peer", "of medians", "lowest", "highest"] if has_peer else []
    heads += ["MFU"] if has_peak else []
    lines = []
    rows = [(_mode(row), row) for row in result["rows"]] + [("peer", row) for row in result["peers"]]
    for mode, row in rows:
        cells = [row["model"], mode, row["precision"], row["batch_size"]]
        if not row.get("seconds"):
            lines.append([*cells, row["error"] or f"not timed; peak {row['peak_mib']:.1f} MiB"])
            continue
        cells += [f"{row[name]:.4f}" for name in ("median_seconds", "min_seconds")]
        cells += [f"{row['spread']:.0%}", f"{row['clips_per_second']:.3f}", f"{row['peak_mib']:.1f}"]
        if has_peer:
            names = ("ratio", "ratio_of_medians", "ratio_lowest", "ratio_highest")
            cells += [_number(row.get(name), ".3f") for name in names]
        cells += [_number(row["mfu"], ".1%")] if has_peak else []
        lines.append(cells)
    return align(heads, lines)


def _growth_with_batch(result: Mapping) -> str:
    rows = [[*_names(r), f"{r['mib_per_clip']:.1f}", f"{r['mib_at_0']:.1f}"] for r in result["growth_with_batch"]]
    return align(["model", "mode", "precision", "MiB per clip", "MiB without"], rows)


def _depths(result: Mapping) -> str:
    """A line for each network, a column for each depth."""
    depths = sorted({figures["depth"] for figures in result["depths"]})
    lines: dict[tuple, dict] = {}
    for figures in result["depths"]:
        lines.setdefault(tuple(_names(figures)), {})[figures["depth"]] = f"{figures['peak_mib']:.1f}"
    slopes = {tuple(_names(r)): f"{r['mib_per_block']:.2f}" for r in result["growth_with_depth"]}
    rows = [[*names, *(peaks.get(d, "-") for d in depths), slopes.get(names, "-")] for names, peaks in lines.items()]
    heads = ["model", "mode", "precision", *(f"depth {depth}" for depth in depths), "MiB per block"]
    return f"peak MiB at batch {result['depths'][0]['batch_size']}\n{align(heads, rows)}"


def _largest_batches(result: Mapping) -> str:
    rows = [
        [*_names(r), r["batch_size"], f"{r['total_bytes'] / 2**30:.2f}", r["too_large"] or "-", r["reason"]]
        for r in result["largest_batches"]
    ]
    table = align(["model", "mode", "precision", "largest batch", "GiB", "too large", "because"], rows)
    return f"largest batch: {result['conventions']['largest_batch']}\n{table}"


def _mode(figures: Mapping) -> str:
    more = ([f"({figures['pooling']})"] if figures["pooling"] else []) + (["compiled"] if figures["compiled"] else [])
    return " ".join([figures["mode"], *more])


def _names(figures: Mapping) -> list[str]:
    return [figures["model"], _mode(figures), figures["precision"]]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def align(heads: Sequence[str], rows: Iterable[Sequence]) -> str:
    """Columns of text to the left, those of numbers to the right; a row may end early."""
    table = [list(map(str, heads)), *(list(map(str, row)) for row in rows)]
    widths = [max(len(row[i]) for row in table if i < len(row)) for i in range(len(heads))]
    whole = [row for row in table[1:] if len(row) == len(heads)]
    numeric = [bool(whole) and all(_is_number(row[i]) for row in whole) for i in range(len(heads))]
    lines = [
        "  ".join(cell.rjust(w) if right else cell.ljust(w) for cell, w, right in zip(row, widths, numeric))
        for row in table
    ]
    return "\n".join(line.rstrip() for line in lines)


def _is_number(cell: str) -> bool:
    return cell == "-" or cell.rstrip("%").replace(".", "", 1).isdigit()
