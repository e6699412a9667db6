"""The accounting of a temporary SLURM: MariaDB behind a unix socket, slurmdbd on loopback, an account and two QOS.

slurmdbd listens on every interface, whatever its DbdAddr is. With NoInAddrAny in its own file (in slurm.conf it has no
effect) it listens on the address of its host name instead, which its namespace's /etc/hosts resolves to 127.0.0.1.
"""

from __future__ import annotations

import os
import shlex
import socket
from pathlib import Path

from runyard.cluster.rehearsal import supervisor
from runyard.errors import UserError

ACCOUNTING_PROGRAMS = ("mariadbd", "slurmdbd", "sacct", "sacctmgr")
DATABASE, ACCOUNTING = "database", "accounting"
ACCOUNT = "lab"

SLURM_CONF_LINES = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
AccountingStoragePass={folder}/munge.sock
AccountingStorageEnforce=associations,limits,qos
"""
SLURMDBD = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={port}
CommunicationParameters=NoInAddrAny
SlurmUser={user}
PidFile={folder}/slurmdbd.pid
LogFile={folder}/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm
CommitDelay=0
"""
# Durability is switched off: a power failure may lose data, because the folder is deleted at the end.
MARIADB = (
    "--no-defaults", "--skip-networking", "--skip-grant-tables", "--innodb-buffer-pool-size=64M",
    "--innodb-log-file-size=8M", "--innodb-flush-method=nosync", "--skip-sync-frm", "--innodb-doublewrite=0",
    "--innodb-lock-wait-timeout=900",
)  # fmt: skip


def write_files(folder: Path, port: int, user: str) -> None:
    """Write the files that slurmdbd and MariaDB need into ``folder``."""
    (folder / "database").mkdir(mode=0o700)  # whoever reaches its socket has full access to the database
    (folder / "database" / "data").mkdir()
    with open(os.open(folder / "slurmdbd.conf", os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
        file.write(SLURMDBD.format(folder=folder, port=port, user=user, host=ACCOUNTING))
    tables = "\n".join(["create database mysql;", "use mysql;", _system_tables().read_text()])
    (folder / "database" / "tables.sql").write_text(tables)


def start_accounting(running: supervisor.Supervisor, folder: Path, port: int) -> None:
    """Start the database, then slurmdbd, which creates its tables before it listens."""
    database_dir = folder / "database"
    files = [
        f"--datadir={database_dir}/data",
        f"--tmpdir={database_dir}",
        f"--socket={database_dir}/socket",
        f"--init-file={database_dir}/tables.sql",
    ]
    user = ["--user=root"] if os.getuid() == 0 else []
    running.start(DATABASE, ["mariadbd", *MARIADB, *files, *user])
    running.wait_until(DATABASE, (database_dir / "socket").exists)
    running.start_isolated(ACCOUNTING, f"env {shlex.quote(f'MYSQL_UNIX_PORT={database_dir}/socket')} slurmdbd -D")
    running.wait_until(ACCOUNTING, lambda: _listens(port))


def sacctmgr_commands(user: str) -> list[list[str]]:
    """Return sacctmgr's arguments for each call: ``user`` gets one account with two QOS, one limited to ten minutes."""
    return [
        ["add", "qos", "short", "MaxWall=10", "Flags=DenyOnLimit"],
        ["add", "account", ACCOUNT, "QOS=normal,short", "DefaultQOS=normal"],
        ["add", "user", user, f"Account={ACCOUNT}", f"DefaultAccount={ACCOUNT}"],
    ]


def _system_tables() -> Path:
    folders = [Path(f"/usr/share/{name}") for name in ("mariadb", "mysql")]  # Debian 13 and later, and earlier releases
    for folder in folders:
        for name in ("mariadb_system_tables.sql", "mysql_system_tables.sql"):
            if (folder / name).exists():
                return folder / name
    raise UserError(f"no system tables of MariaDB in {' or '.join(map(str, folders))}", "run `make rehearsal-tools`")


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
