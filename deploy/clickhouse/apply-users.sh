#!/bin/sh
# Create Auditspan's two accounts on a ClickHouse server, or set their passwords and grants anew.
#
#   CLICKHOUSE_HOST, CLICKHOUSE_USER, CLICKHOUSE_PASSWORD   an administrator; clickhouse-client reads them itself
#   AUDITSPAN_WRITER_PASSWORD, AUDITSPAN_READER_PASSWORD    at least 32 characters each
#
# Not run where it was written against a server, for there was none; a test runs it with a stand-in that keeps
# what clickhouse-client would have been given.
set -eu

hash_of() {
    if [ "${#1}" -lt 32 ]; then
        echo "apply-users.sh: a password has ${#1} characters; use at least 32, from: openssl rand -hex 32" >&2
        exit 2
    fi
    printf %s "$1" | sha256sum | cut -d' ' -f1
}

: "${CLICKHOUSE_HOST:?}" "${CLICKHOUSE_USER:?}" "${CLICKHOUSE_PASSWORD:?}"
# Assigned first: an exit inside an argument's $(...) would not stop the script.
writer=$(hash_of "${AUDITSPAN_WRITER_PASSWORD:?}")
reader=$(hash_of "${AUDITSPAN_READER_PASSWORD:?}")

exec clickhouse-client --host "$CLICKHOUSE_HOST" --user "$CLICKHOUSE_USER" \
    --param_writer_sha256="$writer" --param_reader_sha256="$reader" \
    --queries-file "$(dirname "$0")/users.sql"
