# shellcheck shell=bash
# What every backend needs: messages, ports, starting a process, knowing whether it lives, ending it.
# Sourced by ../backends. Linux only: a process is recognised by what /proc says of it.

step() { printf '%s\n' "backends: $*" >&2; }
die() { printf '%s\n' "backends: error: $*" >&2; exit 1; }

# need PROGRAM HOW WHY
need() { command -v "$1" >/dev/null || die "'$1' is not on the PATH: $2 ($3)"; }

# wait_until SECONDS COMMAND… : polls five times a second.
wait_until() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@"; do
    ((SECONDS < deadline)) || return 1
    sleep 0.2
  done
}

# ---- ports ---------------------------------------------------------------------------------------------------

port_is_taken() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# Sets `port` to one that nobody has: below the ephemeral range (32768 upward on Linux), so that no client's own
# socket takes it first.
PICKED=' '
free_port() {
  local try
  for ((try = 0; try < 200; try++)); do
    port=$((20000 + RANDOM % 12000))
    [[ $PICKED == *" $port "* ]] && continue
    port_is_taken "$port" && continue
    PICKED+="$port "
    return
  done
  die "found no free port between 20000 and 31999"
}

# choose_ports NAME KEY:VARIABLE:DEFAULT… : sets the global KEY of each to its port and records them all in
# DIR/NAME.ports. The variable wins over what was recorded before, which wins over the default; 0, or
# --free-ports, picks a free one.
choose_ports() {
  local name=$1 spec key variable default port lines='' recorded=$DIR/$1.ports
  shift
  for spec in "$@"; do
    IFS=: read -r key variable default <<<"$spec"
    port=${!variable:-}
    [[ -n $port ]] || port=$(sed -n "s/^$key=//p" "$recorded" 2>/dev/null || true)
    [[ -n $port ]] || { ((FREE_PORTS)) && port=0 || port=$default; }
    if [[ ! $port =~ ^(0|[1-9][0-9]{0,4})$ ]] || ((port > 65535)); then
      die "$variable must be a port number, or 0 for a free one; it is '$port'"
    fi
    ((port)) || free_port
    printf -v "$key" %s "$port"
    lines+="$key=$port"$'\n'
  done
  printf %s "$lines" >"$recorded"
}

# load_ports NAME : what choose_ports recorded, for verbs that don't start anything.
load_ports() {
  local key port
  [[ -r $DIR/$1.ports ]] || return 1
  while IFS='=' read -r key port; do printf -v "$key" %s "$port"; done <"$DIR/$1.ports"
}

# require_free NAME PORT VARIABLE
require_free() {
  port_is_taken "$2" || return 0
  local holder=''
  command -v ss >/dev/null &&
    holder=$(ss -Hltnp "sport = :$2" 2>/dev/null | sed -n 's/.*users:(("\([^"]*\)",pid=\([0-9]*\).*/\1 (pid \2)/p;q' || true)
  printf '%s\n' "backends: error: $1 can't start: port $2 on 127.0.0.1 is already in use${holder:+ by $holder}." \
    "  Stop what listens there, or set $3 to another port (0 picks a free one)." >&2
  return 1
}

# ---- processes -----------------------------------------------------------------------------------------------

# When a process started, in clock ticks since boot: with its pid, it names one process for ever. `gone` for a
# process that is no more, or is a zombie nobody has reaped.
start_time() {
  local stat fields
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || true
  # What follows the program's name, which may hold anything: the state, and 19 fields on the start time.
  read -ra fields <<<"${stat##*) }"
  case ${fields[0]:-gone} in
    gone | Z | X) echo gone ;;
    *) echo "${fields[19]}" ;;
  esac
}

# pid_of NAME : its pid, if the process its pid file names is alive and is still that process.
pid_of() {
  local pid started
  pid=$(cat "$DIR/$1.pid" 2>/dev/null) && started=$(cat "$DIR/$1.started" 2>/dev/null) || return 1
  [[ -n $pid && $started =~ ^[0-9]+$ && $(start_time "$pid") == "$started" ]] || return 1
  echo "$pid"
}

# Stands in a log where a run begins.
LAUNCHED='==== started by compose/backends'

# last_run NAME : the end of what NAME has logged in its last run.
last_run() { tac "$DIR/$1.log" | sed "\\|^$LAUNCHED|q" | head -n 30 | tac; }

# launch NAME COMMAND… : starts it in a session of its own, with every output in DIR/NAME.log and no descriptor
# of ours: whoever waits for our output to end must not wait for the server.
launch() {
  local name=$1 try
  shift
  forget "$name"
  printf -- '%s %(%FT%T%z)T\n' "$LAUNCHED" -1 >>"$DIR/$name.log"
  # shellcheck disable=SC2016 # expanded by the inner shell, whose pid the server keeps through exec
  setsid bash -c '
    file=$1; shift
    for fd in /proc/$$/fd/*; do fd=${fd##*/}; ((fd > 2)) && eval "exec $fd>&-"; done
    cd /
    echo $$ >"$file.pid.new" && mv "$file.pid.new" "$file.pid"
    exec "$@"
  ' launch "$DIR/$name" "$@" </dev/null >>"$DIR/$name.log" 2>&1 &
  for ((try = 0; try < 50; try++)); do
    [[ -s $DIR/$name.pid ]] && break
    sleep 0.1
  done
  [[ -s $DIR/$name.pid ]] || die "$name: its process did not start within 5 s; see $DIR/$name.log"
  start_time "$(<"$DIR/$name.pid")" >"$DIR/$name.started"
}

forget() { rm -f "$DIR/$1.pid" "$DIR/$1.started"; }

is_gone() { ! pid_of "$1" >/dev/null; }

# end NAME SIGNAL SECONDS : asks with SIGNAL, insists with KILL after SECONDS, and forgets the process.
end() {
  local name=$1 pid
  if pid=$(pid_of "$name"); then
    kill -s "$2" "$pid" 2>/dev/null || true
    kill -s CONT "$pid" 2>/dev/null || true # a paused process hears nothing else
    if ! wait_until "$3" is_gone "$name"; then
      step "$name: did not stop within $3 s of SIG$2; killing it"
      kill -s KILL "$pid" 2>/dev/null || true
      wait_until 10 is_gone "$name" || die "$name: pid $pid outlived SIGKILL"
    fi
  fi
  forget "$name"
}
