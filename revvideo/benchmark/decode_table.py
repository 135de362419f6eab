"""The result of `DecodeBenchmark` as text, for a terminal or a document."""

from collections.abc import Mapping
from pathlib import PurePath

from revvideo.benchmark.decoders import OURS
from revvideo.benchmark.machine import name_hardware
from revvideo.benchmark.model_table import align


def format_decode_result(result: Mapping) -> str:
    """Header, what was compared, a table for each case, the means, and what preparing brings."""
    parts = [_header(result), _backends(result), _files(result)]
    for case in dict.fromkeys(row["case"] for row in result["rows"]):
        parts.append(_case(result, case))
    parts += [_means(result)] if result["means"] else []
    parts += [_prepared(result)] if result["prepared"] else []
    return "\n\n".join(parts)


def header_lines(header: Mapping) -> list[str]:
    """The command, the machine and the software of a result."""
    machine = header["machine"]
    return [
        header["command"],
        f"{machine['date']}, {name_hardware(machine)}",
        f"torch {machine['torch']}, revvideo {machine['revvideo']}, load average before {machine['load_average']}",
    ]


def _header(result: Mapping) -> str:
    lines = header_lines(result["header"])
    return "\n".join([*lines, *(f"{name}: {text}" for name, text in result["conventions"].items())])


def _backends(result: Mapping) -> str:
    rows = [
        [backend["name"], backend["version"] or "-", backend["calls"] or f"not measured: {backend['missing']}"]
        for backend in result["backends"]
    ]
    return align(["backend", "version", "what is called"], rows)


def _files(result: Mapping) -> str:
    rows = []
    for file in result["files"]:
        facts = [file["group"], PurePath(file["path"]).name, f"{file['width']}x{file['height']}"]
        facts += [file["num_frames"], f"{file['fps']:.2f}", f"{file['mbit_per_s']:.2f}"]
        rows.append([*facts, "; ".join(filter(None, map(_finding, file["checks"]))) or "the same frames"])
    return align(["group", "file", "size", "frames", "fps", "Mbit/s", "against ours"], rows)


def _finding(check: Mapping) -> str:
    """What a user should know about a peer's frames; empty: they are ours, bit by bit."""
    if check["error"]:
        return f"{check['backend']} not measured ({check['error']})"
    if check["other_frames"]:
        return f"{check['backend']}: {check['other_frames']} other frames"
    return f"{check['backend']} differs by up to {check['max_difference']}" if check["max_difference"] else ""


def _case(result: Mapping, case: str) -> str:
    plan = result["plan"]
    what = f"one {plan['num_frames']}x{plan['stride']} clip"
    if case == "views":
        what = f"{plan['views']} views of {plan['num_frames']}x{plan['stride']} in one open"
    unit = "clips/s" if case == "clip" else "videos/s"
    heads = ["group", "backend", "files", "CPU ms", "wall ms", "spread", unit, "x ours", "lowest", "highest"]
    rows = []
    for row in (row for row in result["rows"] if row["case"] == case):
        cells = [row["group"], row["backend"], row["files"]]
        if not row["cpu_seconds"]:
            rows.append([*cells, "not measured"])
            continue
        cells += [f"{1e3 * row[name]:.1f}" for name in ("median_cpu_seconds", "median_wall_seconds")]
        cells += [f"{row['spread']:.0%}", f"{row['per_second']:.1f}"]
        names = ("ratio", "ratio_lowest", "ratio_highest")
        rows.append(cells + (["-"] * 3 if row["backend"] == OURS else [f"{row[name]:.2f}" for name in names]))
    return f"{what}:\n{align(heads, rows)}"


def _means(result: Mapping) -> str:
    rows = [
        [
            mean["case"],
            mean["backend"],
            f"{mean['ratio']:.2f}",
            f"{mean['ratio_of_medians']:.2f}",
            ", ".join(mean["groups"]),
        ]
        for mean in result["means"]
    ]
    return "geometric means:\n" + align(["case", "backend", "x ours", "of medians", "over"], rows)


def _prepared(result: Mapping) -> str:
    names = ("ratio", "ratio_of_medians", "ratio_lowest", "ratio_highest")
    rows = [
        [row["case"], row["original"], row["group"], row["backend"], *(f"{row[name]:.2f}" for name in names)]
        for row in result["prepared"]
    ]
    heads = ["case", "original", "re-encoded", "backend", "times as fast", "of medians", "lowest", "highest"]
    return "re-encoded by `revvideo prepare_videos`:\n" + align(heads, rows)
