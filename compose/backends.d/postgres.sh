# shellcheck shell=bash
# PostgreSQL: the services' databases. Anyone on this machine may connect (trust, loopback only): it is for
# development and tests. It refuses to run as root; root runs it as the user `postgres`.

# Its port, set by choose_ports or load_ports.
postgres_port=''

install_postgres() {
  pg_bin >/dev/null || install_debian postgres postgresql-15
  pg_bin >/dev/null || die "postgres: installed, but neither /usr/lib/postgresql/*/bin nor pg_config knows where it is"
  link_tool psql || true
}

is_present_postgres() { pg_bin >/dev/null; }

# The newest installed server's programs, which Debian keeps off the PATH.
pg_bin() {
  local dir
  while read -r dir; do
    [[ -x $dir/initdb && -x $dir/postgres && -x $dir/psql ]] && { echo "$dir"; return; }
  done < <(compgen -G '/usr/lib/postgresql/*/bin' | sort -rV; pg_config --bindir 2>/dev/null)
  return 1
}

# Runs a command as a user that PostgreSQL accepts; by exec alone, so that the pid stays.
as_pg() { ((EUID == 0)) && echo setpriv --reuid=postgres --regid=postgres --init-groups -- || true; }

ports_postgres() { choose_ports postgres postgres_port:OMNI_TEST_POSTGRES_PORT:15432; }
check_postgres() { require_free postgres "$postgres_port" OMNI_TEST_POSTGRES_PORT; }

# Sets pg_home: DIR/postgres, or, where that won't do, a folder in /tmp that DIR/postgres.home names. It won't do
# when the user `postgres` can't reach DIR, or when a socket's path (107 bytes at most) would not fit.
choose_pg_home() {
  local as
  read -ra as <<<"$(as_pg)"
  pg_home=$(cat "$DIR/postgres.home" 2>/dev/null || true)
  [[ -n $pg_home && -d $pg_home ]] && return
  pg_home=$DIR/postgres
  mkdir -p "$pg_home"
  ((EUID)) || chown postgres: "$pg_home"
  if ((${#pg_home} > 85)) || ! "${as[@]}" test -w "$pg_home"; then
    rmdir "$pg_home"
    pg_home=$(mktemp -d /tmp/omnibridge-postgres.XXXXXX)
    ((EUID)) || chown postgres: "$pg_home"
    step "postgres: keeps its data in $pg_home, because $DIR won't do (not reachable for it, or too long for a socket)"
  fi
  echo "$pg_home" >"$DIR/postgres.home"
}

launch_postgres() {
  local as bin
  read -ra as <<<"$(as_pg)"
  bin=$(pg_bin)
  choose_pg_home
  if [[ ! -e $pg_home/data/PG_VERSION ]]; then
    # Into a temporary name: an interrupted initdb leaves a folder that is neither empty nor whole.
    rm -rf "$pg_home/data.new"
    (cd / && "${as[@]}" "$bin/initdb" -D "$pg_home/data.new" -U postgres -A trust -E UTF8 --locale=C.UTF-8) \
      >>"$DIR/postgres.log" 2>&1 </dev/null || return 1
    mv "$pg_home/data.new" "$pg_home/data"
  fi
  clear_stale_lock || return 1
  launch postgres "${as[@]}" "$bin/postgres" -D "$pg_home/data" -c "port=$postgres_port" \
    -c listen_addresses=127.0.0.1 -c "unix_socket_directories=$pg_home" -c max_connections=200 -c fsync=on
}

# A killed server leaves its lock files, which stop the next one as long as the pid in it exists: also as a zombie,
# and somebody else's process may have got it. Where ours is gone for sure, and so are its children, they are stale.
clear_stale_lock() {
  local lock=$pg_home/data/postmaster.pid
  [[ -e $lock ]] || return 0
  if ! wait_until 20 nobody_uses "$pg_home/data"; then
    step "postgres: processes of an earlier server still work in $pg_home/data"
    return 1
  fi
  rm -f "$lock" "$pg_home"/.s.PGSQL.*
}

# nobody_uses DIR : no living process has it as its working folder, as every process of a PostgreSQL has.
nobody_uses() {
  local cwd
  for cwd in /proc/[0-9]*/cwd; do
    [[ $(readlink "$cwd" 2>/dev/null) != "$1" ]] || return 1
  done
}

ready_postgres() {
  "$(pg_bin)/pg_isready" -q -t 2 -U postgres -h 127.0.0.1 -p "$postgres_port" && make_database
}

# The role and the database of OmniBridge. CREATEDB, so that a test can have a database of its own.
make_database() {
  local psql=("$(pg_bin)/psql" -X -q -A -t -v ON_ERROR_STOP=1 -h 127.0.0.1 -p "$postgres_port" -U postgres -d postgres)
  [[ $("${psql[@]}" -c "SELECT 1 FROM pg_roles WHERE rolname = 'omnibridge'" 2>/dev/null) == 1 ]] ||
    "${psql[@]}" -c 'CREATE ROLE omnibridge LOGIN CREATEDB' >>"$DIR/postgres.log" 2>&1 || return 1
  [[ $("${psql[@]}" -c "SELECT 1 FROM pg_database WHERE datname = 'omnibridge'" 2>/dev/null) == 1 ]] ||
    "${psql[@]}" -c 'CREATE DATABASE omnibridge OWNER omnibridge' >>"$DIR/postgres.log" 2>&1
}

# INT is its fast shutdown; TERM would wait for every client to leave first.
stop_postgres() { end postgres INT 30; }

clean_postgres() {
  local home
  home=$(cat "$DIR/postgres.home" 2>/dev/null || true)
  [[ $home == /tmp/omnibridge-postgres.* || $home == "$DIR/postgres" ]] && rm -rf "$home"
  rm -rf "$DIR/postgres" "$DIR/postgres.home"
}

address_postgres() { echo "postgres://omnibridge@127.0.0.1:$postgres_port/omnibridge"; }
env_postgres() { env_line OMNI_DATABASE "$(address_postgres)"; }
