-- The two accounts that Auditspan needs on a ClickHouse server, each with the least that its work asks for.
-- Run it as an administrator, before the collector starts for the first time. Running it again sets the passwords
-- and grants anew, so it also rotates passwords. apply-users.sh beside this file does it with passwords from the
-- environment; by hand:
--
--   clickhouse-client --host HOST --user ADMIN --password \
--     --param_writer_sha256="$(printf %s "$WRITER_PASSWORD" | sha256sum | cut -d' ' -f1)" \
--     --param_reader_sha256="$(printf %s "$READER_PASSWORD" | sha256sum | cut -d' ' -f1)" \
--     --queries-file users.sql
--
-- Only hashes travel, so no password is in a command line, a query log or this file. Use passwords that a program
-- drew (32 bytes): a SHA-256 of a word that a person chose can be guessed.
--
-- Not run where it was written, for there was no ClickHouse server (the embedded engine has no accounts). Each
-- statement was parsed by ClickHouse 26.9's own parser; a test repeats that.

-- The collector. It creates and extends the tables, appends records, and reads what is there. It can't change,
-- delete or drop anything: not ALTER UPDATE, ALTER DELETE, DELETE, TRUNCATE, DROP or OPTIMIZE. A stolen collector
-- password can add records, which the ledger shows, and not take any away.
CREATE USER IF NOT EXISTS auditspan_writer IDENTIFIED WITH sha256_hash BY {writer_sha256:String};
ALTER USER auditspan_writer IDENTIFIED WITH sha256_hash BY {writer_sha256:String};
GRANT CREATE DATABASE, CREATE TABLE, CREATE VIEW ON audit.* TO auditspan_writer;
GRANT ALTER ADD COLUMN, ALTER ADD INDEX, ALTER ADD PROJECTION, ALTER MODIFY COMMENT ON audit.* TO auditspan_writer;
GRANT SELECT, INSERT, SHOW ON audit.* TO auditspan_writer;
-- Needed only where the server's table_engines_require_grant is on.
GRANT TABLE ENGINE ON MergeTree TO auditspan_writer;

-- On a cluster (clickhouse.cluster in the collector's configuration) add ON CLUSTER to each statement here, and:
--   GRANT CLUSTER, REMOTE ON *.* TO auditspan_writer;
--   GRANT TABLE ENGINE ON ReplicatedMergeTree, TABLE ENGINE ON Distributed TO auditspan_writer;

-- Readers: `auditspan search`, `trace` and `sql`, Grafana, analysts. readonly = 2 refuses every write and still lets
-- a client set a time-out or a format, as Grafana and clickhouse-connect do; the limits are ceilings that no client
-- can raise.
CREATE SETTINGS PROFILE IF NOT EXISTS auditspan_reader;
ALTER SETTINGS PROFILE auditspan_reader SETTINGS
    readonly = 2,
    max_execution_time = 60 MAX 300,
    max_memory_usage = 4000000000 MAX 4000000000;
CREATE USER IF NOT EXISTS auditspan_reader IDENTIFIED WITH sha256_hash BY {reader_sha256:String}
    SETTINGS PROFILE 'auditspan_reader';
ALTER USER auditspan_reader IDENTIFIED WITH sha256_hash BY {reader_sha256:String}
    SETTINGS PROFILE 'auditspan_reader';
GRANT SELECT, SHOW ON audit.* TO auditspan_reader;
