"""``runyard profile``: write a cluster's profile from what its SLURM says."""

from __future__ import annotations

import argparse
import json

from runyard.errors import UserError

HELP = "write a cluster's profile, configs/cluster/NAME.yaml, from what its SLURM says"
EXAMPLE = "runyard profile new mycluster --partition gpu"
PROFILE_DETAILS = """
Asks sinfo, scontrol and sacctmgr for partitions, GPUs, CPUs, memory, limits and your accounts, and writes a file in
which each setting has a comment of what SLURM said; it submits nothing. In a checkout the file goes into its
configs/cluster/, else into configs/cluster/ of the working folder, where `cluster=NAME` finds it."""
SHIPPED = ("local", "nyu_greene", "nyu_torch", "rehearsal", "slurm")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = f"{HELP}\n{PROFILE_DETAILS}"
    parser.add_argument("action", choices=["new"])
    parser.add_argument("name", metavar="NAME", help="the profile's name, as in cluster=NAME")
    parser.add_argument("--partition", metavar="P", help="the partition to use (default: the cluster's default)")
    parser.add_argument("--account", metavar="A", help="the account to charge (default: your default)")
    parser.add_argument("--out", metavar="FILE", help="write this file instead")
    parser.add_argument("--force", action="store_true", help="replace a file that exists")
    parser.add_argument("--json", action="store_true", help="print file, settings, notes and the next command as JSON")


def run(args: argparse.Namespace) -> None:
    import re
    import shlex
    from pathlib import Path

    from runyard.cluster.slurm.cluster_info import ClusterInfo
    from runyard.cluster.slurm.site_profile import site_profile
    from runyard.config import patterns
    from runyard.config.overrides import parse_override
    from runyard.files import file_fix, write_atomic
    from runyard.installation import CONFIGS, new_profile_path
    from runyard.slurm_client import QueryError

    name = args.name
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name) or parse_override(f"cluster={name}").value() != name:
        raise UserError(f"profile new {name}: not a plain name", "begin with a letter; then letters, digits, _ and -")
    if name in SHIPPED:
        raise UserError(f"profile new {name}: runyard comes with a profile of that name", "choose another name")
    if args.account is not None and not re.fullmatch(patterns.NAME.regex, args.account):
        raise UserError(f"--account {args.account!r}: expected {patterns.NAME.expected}")
    found_at = new_profile_path(name)
    file = found_at if args.out is None else Path(args.out)
    hidden_by = CONFIGS.resolve() / "cluster" / f"{name}.yaml"
    if args.out is None and file.resolve() != hidden_by and hidden_by.exists():
        raise UserError(f"profile new {name}: cluster={name} would still be {hidden_by}", "choose another name")
    if not args.force and file.exists():
        raise UserError(f"{file}: exists", "give --force to replace it, or choose another name")
    cluster = ClusterInfo()
    profile = site_profile(name, cluster, args.partition, args.account)
    try:
        version = f"SLURM {cluster.version}"
    except QueryError:
        version = "SLURM"
    try:
        if args.out is None:
            file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, profile.text(version))
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}", file_fix(error)) from None
    following = f"runyard doctor cluster={name}"
    if file.resolve() != found_at.resolve():
        following = f"mkdir -p {shlex.quote(str(found_at.parent))} && cp {shlex.quote(str(file))} " + (
            f"{shlex.quote(str(found_at))} && {following}"
        )
    if args.json:
        answer = {"file": str(file), "settings": profile.settings, "notes": profile.notes, "next": following}
        print(json.dumps(answer, indent=1))
        return
    print(f"wrote {file}")
    for note in profile.notes:
        print(f"note: {note}")
    print(f"next: {following}")
