"""Finds the runs below a results folder, merges shards, and keeps machines and models apart."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

from bench import published, words
from bench.questions.spec_bench import SUBTASKS
from bench.records.directory import run_folders
from bench.records.frame import Run, asked_otherwise, merge, ordered_subtasks, read_run
from bench.records.identity import differences, environment, facts, file_keys, measured
from bench.report.machines import machine_labels
from bench.serve.metrics import Comparison
from methods.digest import sha256
from methods.errors import UserError

PUBLISHED = ", published"
PLACES = ("runs", "experiments/runs")  # below a results folder
CROWDED = 8  # more curves than this in one figure cannot be told apart
USUAL = ("kangaroo", "medusa", "lookahead", "rest", "vanilla")


@dataclass(frozen=True)
class Entry:
    """One line of a table: a run, the label that tells it from its neighbours, and its metrics."""

    run: Run
    label: str
    metrics: dict[str, Any]
    index: int  # place in its group, which fixes colour and marker

    def row(self, subtask: str) -> dict[str, Any] | None:
        """Figures of a subtask or of "overall"; None when it was not run."""
        return self.metrics["overall"] if subtask == "overall" else self.metrics["subtasks"].get(subtask)

    def warning(self, subtask: str) -> str:
        """What belongs beside the figures of a subtask or of "overall", as one text; empty if there is nothing.

        That there are few questions marks no figure: it holds for whole reports, and stands among the warnings once.
        """
        found = [w for w in self.metrics["warnings"] if w["scope"] == subtask and w["figure"] != "questions"]
        return "; ".join(warning["text"] for warning in found)

    @property
    def of_paper(self) -> bool:
        """Whether it answered the paper's subtasks: Spec-Bench's questions, or joey's, which are made after them.

        Of a file that data.path names, its digest says so.
        """
        asked = self.run.config.get("questions")
        name = None  # from before there were question sets
        if isinstance(asked, dict):
            name = asked.get("name")
            if _own_file(self.run) and asked.get("sha256") != self.run.info.get("questions_sha256"):
                return False
        return name in (None, "spec_bench", "joey") and not self.metrics["subtasks"].keys().isdisjoint(SUBTASKS)

    @property
    def published(self) -> dict[str, tuple[float | None, float | None]]:
        """The paper's figures of this model and method, see `published.table1`; none beside other questions."""
        return published.table1(self.run.model, self.run.method) if self.of_paper else {}

    @property
    def comparable(self) -> bool:
        """Whether the paper measured the method with this setting, as far as both say which."""
        mine = shape(self.run)[0]
        return not mine or published.SETTINGS.get(self.run.method, mine) == mine

    @property
    def source(self) -> str:
        """`measured` by this harness, or `imported` from another's answer files, which do not name their machine."""
        return "imported" if "imported" in self.run.config else "measured"

    @property
    def architecture(self) -> str:
        """Name in the paper's Table 2: the adapter variant, or the method."""
        method = self.run.config.get("method")
        variant = method.get("variant") if isinstance(method, dict) else None
        return str(variant or self.run.method)


@dataclass(frozen=True)
class Group:
    """Runs that may stand in one table: one machine, dtype and set of versions, and one model."""

    machine: str  # "A", "B", ...
    environment: dict[str, Any]
    model: str
    entries: tuple[Entry, ...]
    warnings: tuple[str, ...] = ()
    slug: str = ""  # ending of this group's figure files; empty for the first
    machine_label: str = ""  # the machine in a phrase that tells it from the others

    @property
    def subtasks(self) -> list[str]:
        return ordered_subtasks([name for entry in self.entries for name in entry.metrics["subtasks"]])

    @property
    def demonstration(self) -> bool:
        return any(entry.metrics["demonstration"] for entry in self.entries)

    @property
    def drawn(self) -> tuple[Entry, ...]:
        """Entries for crowded figures: without vanilla, and of each method's sweep only the fastest run."""
        methods = [entry for entry in self.entries if entry.run.method != "vanilla"] or list(self.entries)
        if len(methods) <= CROWDED:
            return tuple(methods)
        by_speed = sorted(methods, key=lambda entry: entry.metrics["overall"]["speedup"] or 0, reverse=True)
        fastest = {entry.run.method: entry for entry in reversed(by_speed)}
        return tuple(fastest[name] for name in dict.fromkeys(entry.run.method for entry in methods))

    @property
    def title(self) -> str:
        return f"{self.model}{' (demonstration)' if self.demonstration else ''} on machine {self.machine}"


def measured_rows(entries: Iterable[Entry], subtask: str, *names: str) -> list[tuple[Entry, dict[str, Any]]]:
    """Entries with their figures of a subtask, where all those named were measured."""
    found = ((entry, entry.row(subtask)) for entry in entries)
    return [(entry, row) for entry, row in found if row and all(row[name] is not None for name in names)]


def ctar_curves(group: Group, subtask: str) -> list[tuple[Entry, str, list[float]]]:
    """(entry, label, CTAR(1..6) in per cent) of what is drawn; the paper's curve, labelled as such, behind its own."""
    curves, shown = [], set()
    for entry, row in measured_rows(group.drawn, subtask, "cr"):
        curves.append((entry, entry.label, [100 * value for value in row["ctar"]]))
        method = entry.run.method
        of_paper = subtask == "math_reasoning" and entry.of_paper and method not in shown
        if beside := published.ctar_math_reasoning(group.model, method) if of_paper else None:
            shown.add(method)
            curves.append((entry, f"{published.named(method)}{PUBLISHED}", [100 * value for value in beside]))
    return curves


@dataclass(frozen=True)
class Collection:
    """All that a report shows. warnings: what concerns no single group."""

    groups: tuple[Group, ...]
    warnings: tuple[str, ...] = field(default=())
    servers: tuple[Comparison, ...] = ()  # engines measured from outside; no table of the groups has them


def collect(results_dir: Path, imported: Sequence[Run] = (), others: Sequence[Comparison] = ()) -> Collection:
    """Every run below results_dir, the experiments' too, that can be read, grouped, and every pair of servers, to which
    `others` are added. Raises UserError for none.
    """
    unread = list[str]()
    folders = sorted(folder for place in PLACES for folder in run_folders(results_dir / place, unread))
    servers = [*Comparison.all_below(results_dir, unread), *others]
    if not folders and not imported and not servers:
        raise UserError(f"{results_dir}: no runs in it; expected {results_dir}/runs/<model>/<method>/<hash>/run.json")
    odd, known = list[str](), dict[str, Run]()
    for folder in folders:
        try:
            run = read_run(folder)
        except UserError as error:
            odd.append(str(error))
            continue
        said = json.dumps([run.info, run.answers.wall_s.tolist() or str(folder)], sort_keys=True)
        first = known.setdefault(said, run)
        if first is not run:
            known[said], copy = (run, first) if _lines(run) > _lines(first) else (first, run)
            unread.append(f"left out: {copy.folders[0]}: a copy of {known[said].folders[0]}")
    runs = [*imported, *known.values()]
    collection = replace(group_runs(runs, [*(f"left out: {text}" for text in odd), *unread]), servers=tuple(servers))
    if not collection.groups and not servers:
        why = f"none that can be read: {odd[0]}" if odd else "no answers in any of them yet"
        raise UserError(f"{results_dir}: {len(folders)} run directories in it, and {why}")
    return collection


def _lines(run: Run) -> int:
    """How much was recorded beside the answers."""
    return len(run.failures) + (0 if run.baseline is None else len(run.baseline))


def group_runs(runs: Iterable[Run], warnings: Iterable[str] = ()) -> Collection:
    """Runs with an answer each, by environment and model. warnings: what is known of others."""
    warnings = list(warnings)
    by_place: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        if not len(run.answers) and not len(run.failures):
            warnings.append(f"{run.folders[0]}: no answers recorded yet, left out")
            continue
        place = json.dumps(environment(run.info), sort_keys=True, default=str)
        by_place.setdefault((place, run.model, _weights(run)), []).append(run)
    # The fullest group comes first: its figures carry the plain names.
    ordered = sorted(by_place.items(), key=lambda item: (-len(item[1]), item[0][1], item[0][0]))
    letters: dict[str, str] = {}
    for number, place in enumerate(dict.fromkeys(place for (place, *_), _ in ordered)):
        letters[place] = chr(ord("A") + number) if number < 26 else f"A{number}"
    places = machine_labels({place: environment(members[0].info) for (place, *_), members in ordered})
    groups: list[Group] = []
    for (place, name, weights), members in ordered:
        namesakes = sum((place, name) == key[:2] for key in by_place)  # other weights under the same name
        model = f"{name} ({weights[:7] or 'weights not recorded'})" if namesakes > 1 else name
        slug = f"_{file_name(model)}_{letters[place]}" if groups else ""
        groups.append(replace(_group(letters[place], model, members, slug), machine_label=places[place]))
    return Collection(tuple(groups), tuple(warnings + _scattered_shards(groups)))


def file_name(name: str, longest: int = 48) -> str:
    """A name as part of a file's; a long one ends with a hash of the whole."""
    plain = re.sub(r"[^\w.-]+", "-", name)
    return plain if len(plain) <= longest else f"{plain[: longest - 9]}-{sha256(name)[:8]}"


def _weights(run: Run) -> str:
    """A hash of the target's files, as far as they were recorded: two models are never one table."""
    hashes = run.info.get("checkpoint_sha256") or {}
    target = sorted((name, digest) for name, digest in hashes.items() if name.startswith("target/"))
    return sha256(repr(target)) if target else ""


def shape(run: Run) -> tuple[str, tuple[str, ...]]:
    """What a step of a method with a choice verifies ("chain", "tree of 63", "accepts 3"), and the keys that say so."""
    settings = run.config.get("method")
    if not isinstance(settings, dict):
        return "", ()
    tree, nodes = settings.get("tree"), settings.get("nodes")
    if isinstance(tree, list):
        return f"tree of {len(tree)}", ()
    if tree == "dynamic" and isinstance(nodes, int):
        return f"dynamic tree of {nodes - 1}", ("method.tree", "method.nodes")
    if isinstance(tree, str) and tree != "auto":
        number = re.search(r"_(\d+)$", tree)  # as in mc_sim_7b_63
        if number and settings.get("_target_") == "methods.eagle.Eagle":  # its tree of 25 nodes has the same name
            return "tree of 25", ("method.tree",)
        return f"tree of {number[1]}" if number else tree, ("method.tree", "method.nodes")
    if isinstance(nodes, int):
        nodes -= "width" in settings  # a beam's nodes are the rows of a pass, the pending token's included
        whose = "our reading, " if settings.get("_target_") == "methods.kangaroo_tree.KangarooTree" else ""
        return f"{whose}tree of up to {nodes}", ("method.tree", "method.nodes")
    if isinstance(level := settings.get("level"), int) and "max_accept" in settings:
        return f"accepts {settings['max_accept'] or level - 1}", ("method.max_accept",)
    return "", ()


def identity(run: Run) -> dict[str, Any]:
    """What was measured: the flat configuration without what says only where and how, and which questions."""
    digest = run.info.get("questions_sha256")
    return {**measured(run.config), **({"questions_sha256": digest[:12]} if digest else {})}


def _own_file(run: Run) -> bool:
    """Whether data.path named what was asked, in place of a set."""
    data = run.config.get("data")
    return isinstance(data, dict) and data.get("path") is not None


def _shards(run: Run) -> int:
    """In how many parts the questions were asked."""
    found = re.fullmatch(r"\d+/(\d{1,6})", str(run.config.get("shard")))
    return int(found[1]) if found else 1


def _group(machine: str, model: str, runs: list[Run], slug: str) -> Group:
    by_config: dict[str, list[Run]] = {}
    for run in runs:
        key = json.dumps([run.method, identity(run), _shards(run)], sort_keys=True, default=str)
        by_config.setdefault(key, []).append(run)
    merged, warnings = list[Run](), list[str]()
    for members in by_config.values():
        alike: dict[str, list[Run]] = {}
        for run in members:
            alike.setdefault(json.dumps(facts(run.info), sort_keys=True, default=str), []).append(run)
        first, *others = (facts(part[0].info) for part in alike.values())
        have = [{str(run.config.get("shard")) for run in part} for part in alike.values()]
        if others and min(map(len, have)) < _shards(members[0]):
            keys = dict.fromkeys(key for other in others for key, _, _ in differences(first, other))
            warnings.append(f"shards of {members[0].method} with another {', '.join(keys)} are not merged")
        for part, shards in zip(alike.values(), have, strict=True):
            try:
                merged += [merge(part)] if len(shards) == len(part) else part
            except UserError as error:
                warnings.append(str(error))
                merged += part
    merged.sort(key=_order)
    labels = _labels(merged)
    entries = tuple(
        Entry(run, label, words.summary(run), index)
        for run, label, index in zip(merged, labels, _indices(merged), strict=True)
    )
    group = Group(machine, environment(runs[0].info), model, entries, slug=slug)
    return replace(group, warnings=(*warnings, *_group_warnings(entries), *_not_drawn(group)))


def _not_drawn(group: Group) -> list[str]:
    counts = Counter(entry.run.method for entry in group.entries)
    return [
        f"figure 1 draws {entry.label}, the fastest of {counts[entry.run.method]} runs of {entry.run.method}"
        for entry in group.drawn
        if len(group.drawn) < len(group.entries) - counts["vanilla"] and counts[entry.run.method] > 1
    ]


def _order(run: Run) -> tuple[Any, ...]:
    """Sort key: vanilla first, then by method and its settings (numbers by size, files last), then by start."""
    files = file_keys(run.info)
    found = [(key, value) for key, value in identity(run).items() if key.startswith("method.")]
    found.sort(key=lambda setting: (setting[0] in files, setting[0]))
    settings = [(key, float(v) if isinstance(v, (int, float)) else 0.0, str(v)) for key, v in found]
    return run.method != "vanilla", run.method, settings, str(run.info.get("started"))


def _indices(runs: list[Run]) -> list[int]:
    """The paper's methods keep their colour from report to report; others take what is left."""
    free = list(range(len(USUAL), len(USUAL) + len(runs)))
    taken: list[int] = []
    for run in runs:
        usual = USUAL.index(run.method) if run.method in USUAL else None
        taken.append(free.pop(0) if usual is None or usual in taken else usual)
    return taken


def _labels(runs: list[Run]) -> list[str]:
    """The method's name, with the settings that tell runs of one method apart; paths only where nothing else does."""
    named: list[list[str]] = []
    for run in runs:
        mine, files = identity(run), file_keys(run.info)
        same = [identity(other) for other in runs if other.method == run.method]
        varying = sorted({key for other in same for key, _, _ in differences(same[0], other)})
        short = [key for key in varying if key not in files]
        alike = [other for other in same if not any(other.get(key) != mine.get(key) for key in short)]
        keys = short if all(other == mine for other in alike) else varying
        said, by = shape(run)
        keys = [key for key in keys if key not in by]
        asked: dict[str, Any] = {}
        if "questions" in keys and _own_file(run):  # a file, with the set's subtasks
            asked["questions"] = f"{_brief(run.config['data']['path'])} as {mine.get('questions')}"
        ends = Counter(key.rpartition(".")[2] for key in keys)
        names = {key: end if ends[end := key.rpartition(".")[2]] == 1 else key for key in keys if key in mine}
        parts = [f"{name}={asked.get(key) or _brief_of(key, mine, same)}" for key, name in names.items()]
        named.append([run.method, *filter(None, [said]), *parts])
    labels = []
    for place, (method, *parts) in enumerate(named):
        if named.count(named[place]) > 1:
            parts.append(f"run {named[: place + 1].count(named[place])}")
        labels.append(f"{method} ({', '.join(parts)})" if parts else method)
    return labels


def _brief_of(key: str, mine: dict[str, Any], same: Sequence[dict[str, Any]]) -> str:
    """One run's value for a label: as much of a path as tells it from other runs'."""
    others = [other[key] for other in same if key in other and other[key] != mine[key]]
    for parts in range(1, str(mine[key]).count("/") + 2):
        brief = _brief(mine[key], parts)
        if all(_brief(other, parts) != brief for other in others):
            return brief
    return str(mine[key])


def _brief(value: Any, parts: int = 1) -> str:
    """A setting for a label: a list joined, a path by its last parts."""
    if isinstance(value, (list, tuple)):
        return "+".join(_brief(one, parts) for one in value)
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return "/".join(str(value).rstrip("/").split("/")[-parts:])


def _group_warnings(entries: Sequence[Entry]) -> list[str]:
    texts = []
    asked = {frozenset(entry.run.answers.question_id) for entry in entries}
    if len(asked) > 1:
        counts = ", ".join(f"{entry.label} {entry.metrics['overall']['questions']}" for entry in entries)
        texts.append(f"not all methods answered the same questions ({counts}): compare them with care")
    if other := asked_otherwise([entry.run for entry in entries]):
        texts.append(
            f"{words.plural('question', other)} asked with another prompt in some runs (another question file or "
            "chat template): compare them with care"
        )
    commits = {str((entry.run.info.get("git") or {}).get("commit")) for entry in entries}
    if len(commits) > 1:
        texts.append(f"made with {len(commits)} different commits of this harness")
    for entry in entries:
        if len(entry.run.folders) < _shards(entry.run):
            texts.append(f"{entry.label}: {len(entry.run.folders)} of {_shards(entry.run)} shards are here")
    return texts


def _scattered_shards(groups: Sequence[Group]) -> list[str]:
    """Shards of one configuration measured on different machines: kept apart, and said."""
    return [
        f"shards of {ours.label} were measured on machines {a.machine} and {b.machine} "
        f"({found[0][0]}: {found[0][1]!r}, {found[0][2]!r}) and are not merged"
        for a, b in combinations(groups, 2)
        if (found := differences(a.environment, b.environment))
        for ours, theirs in product(a.entries, b.entries)
        if _shards(ours.run) > 1 and ours.run.method == theirs.run.method and identity(ours.run) == identity(theirs.run)
    ]
