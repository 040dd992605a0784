"""Keep the engine inside its folder: what it is configured with, and what it may reach.

The store runs with its owner's rights on files and network, so nobody who may only ask may read a file or call an
address through it. Everything here is enforced by the engine, for writers too, whatever the statement looks like:

- Its one user has the grants in `_GRANTS` and nothing else: no SOURCES (file, url, remote, s3, mysql, ...), no
  BACKUP, FUNCTION, NAMED COLLECTION, DICTIONARY or user management, and table and database engines by name.
- The scalar function ``file`` asks for no grant, so a SQL function of the same name stands before it.
- Settings that would open a way out are pinned: disks named in a table's SETTINGS, files that formats read or write
  (schemas, templates, lists of errors), other dialects, Python objects of this process as tables, and SQL in strings
  (``eval``).
- The ``default`` database is an ordinary one; chDB's own would show the file system as tables.

What no grant covers is refused by what the engine's own parser says of a statement (*engine*): INTO OUTFILE, FROM
INFILE, several statements at once, table engines that are not in `ENGINES` (EmbeddedRocksDB writes to any folder and
asks for no grant), and SETTINGS of a database, which may name a disk.
"""

from __future__ import annotations

import os
import uuid
from typing import TYPE_CHECKING, Final
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from pathlib import Path

    from auditspan_collector.store.config import Config

ENGINES: Final = (
    "Atomic",
    "MergeTree",
    "ReplacingMergeTree",
    "SummingMergeTree",
    "AggregatingMergeTree",
    "CollapsingMergeTree",
    "VersionedCollapsingMergeTree",
    "CoalescingMergeTree",
    "Join",
    "Memory",
    "Merge",
    "Null",
    "Set",
    "MaterializedView",
    "View",
)
_GRANTS: Final = (
    "SHOW, SELECT, INSERT, OPTIMIZE, CHECK, KILL QUERY ON *.*",
    "ALTER TABLE, ALTER VIEW, CREATE DATABASE, CREATE TABLE, CREATE VIEW, DROP, UNDROP TABLE, TRUNCATE ON *.*",
    "SYSTEM MERGES, SYSTEM TTL MERGES, SYSTEM FLUSH ON *.*",
    *(f"TABLE ENGINE ON {engine}" for engine in ENGINES),
)
_REVOKED: Final = ("ALTER FETCH PARTITION, ALTER FREEZE PARTITION, ALTER MOVE PARTITION ON *.*",)

_PINNED: Final = {
    "allow_python_table_function": "0",
    "allow_experimental_eval_table_function": "0",
    "allow_introspection_functions": "0",
    "dialect": "clickhouse",
    "implicit_select": "0",
    "jemalloc_enable_profiler": "0",
    # Each names a file or an address that a format then reads, or writes, without asking for any grant.
    "format_avro_schema_registry_url": "",
    "format_schema": "",
    "format_schema_source": "file",
    "format_template_resultset": "",
    "format_template_row": "",
    "input_format_record_errors_file_path": "",
    "output_format_schema": "",
    "url_base": "",
}
_NO_FILES = "The function file is not available: it could read every file that the store may read"

# With another number of arguments than one it is an error by itself.
_SHADOWED: Final = {
    "file": f"CREATE FUNCTION file AS path -> CAST(throwIf(true, '{_NO_FILES}'), 'String')",
}

# What a started engine must answer with which error. The engine drops a function that it can't read without a word,
# and a later version may look at things differently; a store that leaks must not start.
PROBES: Final = {
    "SELECT file('probe')": 395,  # FUNCTION_THROW_IF_VALUE_IS_NON_ZERO: the function in front of it
    "SELECT * FROM file('probe', 'LineAsString')": 497,  # ACCESS_DENIED
    "SELECT * FROM url('http://127.0.0.1:1/', 'LineAsString')": 497,
    "SELECT * FROM default.`/etc/hostname`": 60,  # UNKNOWN_TABLE: no file system behind the default database
    "SELECT * FROM python(probe)": 446,  # FUNCTION_NOT_ALLOWED
    "SELECT * FROM eval('SELECT 1') SETTINGS allow_experimental_eval_table_function = 1": 452,
    "SELECT 1 FORMAT Template SETTINGS format_template_resultset = '/probe'": 452,
    "SELECT 1 FORMAT Protobuf SETTINGS output_format_schema = '/probe'": 452,
    "CREATE DATABASE probe ENGINE = Filesystem('/')": 497,
}


def _users(config: Config) -> str:
    defaults = {
        # With more, two inserts and four queries on two cores fell from 114,000 to 3,000 rows/s.
        "max_threads": "1",
        "max_execution_time": str(max(1, round(config.max_execution_time_s))),
        "max_memory_usage": str(config.max_memory_bytes // 2),
        "async_insert": "0",  # an insert that was answered is on disk
        "max_query_size": str(config.max_query_bytes),
        **_PINNED,
    }
    settings = "".join(f"<{name}>{escape(value)}</{name}>" for name, value in defaults.items())
    pinned = "".join(f"<{name}><const/></{name}>" for name in (*_PINNED, "merge_tree_disk"))
    grants = "".join(f"<query>GRANT {grant}</query>" for grant in _GRANTS)
    grants += "".join(f"<query>REVOKE {grant}</query>" for grant in _REVOKED)
    return (
        "<clickhouse>"
        f"<profiles><default>{settings}<constraints>{pinned}</constraints></default></profiles>"
        "<quotas><default/></quotas>"
        "<users><default><password/><networks><ip>::1</ip><ip>127.0.0.1</ip></networks>"
        f"<profile>default</profile><quota>default</quota><grants>{grants}</grants></default></users>"
        "</clickhouse>"
    )


def _server(config: Config, folder: Path, users: Path) -> str:
    megabytes = config.max_memory_bytes >> 20
    settings = {
        "max_server_memory_usage": config.max_memory_bytes,
        "mark_cache_size": (megabytes // 16) << 20,
        "index_mark_cache_size": (megabytes // 32) << 20,
        "primary_index_cache_size": (megabytes // 16) << 20,
        "query_condition_cache_size": (megabytes // 64) << 20,
        "text_index_tokens_cache_size": (megabytes // 64) << 20,
        "text_index_header_cache_size": (megabytes // 64) << 20,
        "text_index_postings_cache_size": (megabytes // 32) << 20,
        "compiled_expression_cache_size": 16 << 20,
        "mmap_cache_size": 100,
        "max_thread_pool_size": 1000,
        "max_thread_pool_free_size": 16,
        # An empty default_database leaves out chDB's own, which shows the file system as tables.
        "default_database": "",
        "database": "default",
        "user_scripts_path": str(folder / "no-scripts"),
        "users_config": str(users),
    }
    body = "".join(f"<{name}>{escape(str(value))}</{name}>" for name, value in settings.items())
    return f"<clickhouse>{body}</clickhouse>"


def _write(path: Path, text: str) -> None:
    """Replace *path*; only its owner may read it."""
    fresh = path.with_name(path.name + ".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    fresh.replace(path)


def _default_database(data: Path) -> None:
    """An ordinary database ``default``, made once; the engine expects it to be there."""
    metadata = data / "metadata"
    metadata.mkdir(mode=0o700, parents=True, exist_ok=True)
    definition = metadata / "default.sql"
    if not definition.exists():
        _write(definition, f"ATTACH DATABASE _ UUID '{uuid.uuid4()}'\nENGINE = Atomic\n")


def prepare(folder: Path, config: Config) -> tuple[Path, Path]:
    """Write the engine's configuration into *folder*; its data folder and its configuration file.

    Everything but the data is written anew at each start, so an edited file can't loosen it for long.
    """
    data = folder / "data"
    data.mkdir(mode=0o700, exist_ok=True)
    _default_database(data)
    functions = data / "user_defined"
    functions.mkdir(mode=0o700, exist_ok=True)
    for name, definition in _SHADOWED.items():
        _write(functions / f"function_{name}.sql", definition)
    users, server = folder / "engine-users.xml", folder / "engine.xml"
    _write(users, _users(config))
    _write(server, _server(config, folder, users))
    return data, server
