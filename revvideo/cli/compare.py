"""`revvideo compare A B`: is B really better than A?"""

import argparse
import dataclasses
import json

DESCRIPTION = "Compare two evaluations of the same list: paired difference of the accuracies with its 95 % interval."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    for name in "AB":
        parser.add_argument(name.lower(), metavar=name, help="run folder, or a predictions*.npz in one")
    parser.add_argument("--json", action="store_true", help="all figures, as one JSON object")


def run(args: argparse.Namespace) -> int:
    from revvideo.engine.accuracy import hits
    from revvideo.engine.paired_difference import paired_difference
    from revvideo.engine.read_evaluation import common_rows, read_evaluation

    a, b = read_evaluation(args.a), read_evaluation(args.b)
    rows_a, rows_b = common_rows(a, b)
    _, *right_a = hits(a.scores[rows_a], a.labels[rows_a])
    _, *right_b = hits(b.scores[rows_b], b.labels[rows_b])
    differences = {k: paired_difference(*pair) for k, *pair in zip(("top1", "top5"), right_a, right_b)}
    num_listed = len(a.paths) + len(a.failed)
    if args.json:
        figures = {k: dataclasses.asdict(difference) for k, difference in differences.items()}
        protocols = {name: each.results.get("protocol") for name, each in (("a", a), ("b", b))}
        print(json.dumps({"num_listed": num_listed, "protocols": protocols, **figures}, indent=2))
        return 0
    for name, each in (("A", a), ("B", b)):
        print(f"{name}: {each.source} ({each.results.get('protocol', 'protocol unknown')})")
    print(f"videos that both have read: {len(rows_a)} of {num_listed}")
    for k, found in differences.items():
        low, high = found.interval
        print(
            f"{k.replace('top', 'top-')}: A {found.a_percent:.2f} %, B {found.b_percent:.2f} %; "
            f"B - A {found.difference:+.2f} points, 95 % interval {low:+.2f} to {high:+.2f}; "
            f"right in A alone {found.only_a}, in B alone {found.only_b}, McNemar p = {found.p_value:.2g}"
        )
    return 0
