# shellcheck shell=bash
# Consul: discovery, the Connect CA and intentions. One server with consul/agent.hcl; its data directory is kept,
# so a restart keeps the CA and the registrations.

# Its ports, set by choose_ports or load_ports.
consul_http='' consul_grpc='' consul_server='' consul_serf=''

install_consul() {
  # Two of Consul's own modules are missing from the public checksum database; go.sum pins them.
  install_go consul github.com/hashicorp/consul 'github.com/hashicorp/consul/*' '4 to 6 min'
}

is_present_consul() { [[ -x $CACHE/bin/consul ]]; }

ports_consul() {
  choose_ports consul consul_http:OMNI_TEST_CONSUL_PORT:8500 consul_grpc:OMNI_TEST_CONSUL_GRPC_PORT:8502 \
    consul_server:OMNI_TEST_CONSUL_SERVER_PORT:8300 consul_serf:OMNI_TEST_CONSUL_SERF_PORT:8301
}

check_consul() {
  require_free consul "$consul_http" OMNI_TEST_CONSUL_PORT &&
    require_free consul "$consul_grpc" OMNI_TEST_CONSUL_GRPC_PORT &&
    require_free consul "$consul_server" OMNI_TEST_CONSUL_SERVER_PORT &&
    require_free consul "$consul_serf" OMNI_TEST_CONSUL_SERF_PORT
}

launch_consul() {
  mkdir -p "$DIR/consul"
  launch consul "$CACHE/bin/consul" agent -config-file="$ROOT/consul/agent.hcl" -data-dir="$DIR/consul" \
    -http-port="$consul_http" -grpc-port="$consul_grpc" \
    -server-port="$consul_server" -serf-lan-port="$consul_serf"
}

# A leader alone is not enough: the CA is made after the election, and a leaf can't be had before.
ready_consul() {
  local url=http://127.0.0.1:$consul_http
  [[ $(curl -fs -m 2 "$url/v1/status/leader") == '"'?*'"' ]] &&
    [[ $(curl -fs -m 2 "$url/v1/agent/connect/ca/roots") == *'BEGIN CERTIFICATE'* ]]
}

stop_consul() { end consul TERM 15; }
clean_consul() { rm -rf "$DIR/consul"; }
address_consul() { echo "http://127.0.0.1:$consul_http"; }

env_consul() {
  env_line OMNI_REGISTRY "consul://127.0.0.1:$consul_http"
  env_line OMNI_IDENTITY consul:
  env_line CONSUL_HTTP_ADDR "http://127.0.0.1:$consul_http"
}
