#!/usr/bin/env bash
# A tracking server for a team: MLflow with accounts on PostgreSQL, the artifacts in a folder of their own.
#
#   MLFLOW_AUTH_ADMIN_PASSWORD=... scripts/team_tracking.sh FOLDER [options of `mlflow server`]
#
# The first start creates FOLDER, and later ones use it: postgres/ (runs, metrics, accounts), artifacts/, and secrets that
# nobody else may read. HOST, PORT, PGPORT (of PostgreSQL, loopback only) and WORKERS may be set. The admin's password is
# needed once. Ctrl-C stops both servers.
set -euo pipefail
umask 077
HOST=${HOST:-127.0.0.1} PORT=${PORT:-5000} PGPORT=${PGPORT:-5433} WORKERS=${WORKERS:-4} BIN=${BIN:-.venv/bin}

refuse() {
  echo "team_tracking: $1" >&2
  exit 2
}

[ "$(uname)" = Linux ] || refuse "runs on Linux alone; start mlflow server by hand elsewhere"
[ -n "${1:-}" ] || refuse "no folder; scripts/team_tracking.sh FOLDER"
folder=$(realpath -m "$1")
shift
initdb=$(command -v initdb || ls -d /usr/lib/postgresql/*/bin/initdb 2>/dev/null | sort -V | tail -1) ||
  refuse "PostgreSQL is not installed; apt-get install postgresql, or put its bin folder on PATH"
pg=$(dirname "$(realpath "$initdb")")
"$BIN/python" -c 'import psycopg2, flask_wtf' 2>/dev/null ||
  refuse "$BIN lacks what the server needs; make team-env"
as=() # PostgreSQL refuses to run as root
if [ "$(id -u)" = 0 ]; then
  as=(runuser -u postgres --)
fi

if ! "${as[@]}" test -f "$folder/postgres/PG_VERSION"; then
  admin=${MLFLOW_AUTH_ADMIN_PASSWORD:-}
  [ ${#admin} -ge 12 ] ||
    refuse "the first start makes the account 'admin', and no default is safe; set MLFLOW_AUTH_ADMIN_PASSWORD, 12 characters or more"
  mkdir -p "$folder/artifacts" "$folder/postgres"
  random() { "$BIN/python" -c 'import secrets; print(secrets.token_urlsafe(32))'; }
  random >"$folder/flask.key"
  password=$(random)
  echo "127.0.0.1:*:*:mlflow:$password" >"$folder/pgpass"
  echo "$password" >"$folder/password"
  if [ ${#as[@]} -gt 0 ]; then
    chmod 711 "$folder"
    chown postgres "$folder/postgres" "$folder/password"
  fi
  "${as[@]}" "$initdb" -D "$folder/postgres" -U mlflow -A scram-sha-256 --pwfile="$folder/password" -E UTF8 >/dev/null ||
    refuse "$folder/postgres: PostgreSQL made no cluster there; mend what it says above"
  rm "$folder/password"
fi
export PGPASSFILE=$folder/pgpass PGHOST=127.0.0.1 PGPORT PGUSER=mlflow

cleanup() {
  trap - EXIT INT TERM
  # Its own process group: the parent does not hand a signal on to the workers.
  [ -z "${server:-}" ] || { kill -TERM -- "-$server" && wait "$server"; } 2>/dev/null || true
  "${as[@]}" "$pg/pg_ctl" -D "$folder/postgres" -m fast -w stop >/dev/null
}
"${as[@]}" "$pg/pg_ctl" -D "$folder/postgres" -l "$folder/postgres/log" -w \
  -o "-h 127.0.0.1 -p $PGPORT -k '' -c max_connections=200" start >/dev/null ||
  refuse "PostgreSQL does not start on port $PGPORT ($folder/postgres/log says why); stop what runs there, or set PGPORT"
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
"$pg/psql" -d postgres -Atc "SELECT 1 FROM pg_database WHERE datname = 'mlflow'" | grep -q 1 || "$pg/createdb" mlflow

# A password's hash is slow by design: each worker keeps a good answer for a minute, in which an old password still holds.
# Whoever has an account may write to every experiment, unless told otherwise by its permissions.
uri=postgresql+psycopg2://mlflow@127.0.0.1:$PGPORT/mlflow
cat >"$folder/auth.ini" <<INI
[mlflow]
default_permission = ${DEFAULT_PERMISSION:-EDIT}
database_uri = $uri
admin_username = admin
auth_cache_ttl_seconds = 60
INI
export MLFLOW_AUTH_CONFIG_PATH=$folder/auth.ini MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
MLFLOW_FLASK_SERVER_SECRET_KEY=$(cat "$folder/flask.key")
export MLFLOW_FLASK_SERVER_SECRET_KEY
case $HOST in
127.* | localhost | ::1) ;;
*) echo "team_tracking: plain HTTP shows passwords to the network between; put a proxy with TLS before port $PORT, or use ssh -L" >&2 ;;
esac
# On a busy machine a worker that answers its parent late is no dead one.
setsid "$BIN/mlflow" server --app-name basic-auth --host "$HOST" --port "$PORT" --workers "$WORKERS" \
  --uvicorn-opts "--timeout-worker-healthcheck 60" \
  --backend-store-uri "$uri" --artifacts-destination "$folder/artifacts" "$@" &
server=$!
wait "$server"
